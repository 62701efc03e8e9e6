"""Frozen parts of models: their names, their digest, and the way apart and back together."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.schemas.codec import decode, encode
from fedmq.schemas.errors import AppError, SpecMismatch
from fedmq.schemas.frozen import beside, frozen_part, split_off, with_beside
from fedmq.schemas.messages import Hello
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import tensors_digest

MODEL = Parameters(
    {"a": np.ones(2, np.float32), "b": np.zeros(3, np.float32), "c": np.array(4), "d": np.full(1, 5.0)}, {"c"}
)


def test_what_is_split_off_travels_by_its_place_and_joins_to_the_same_model():
    moving, part = split_off(MODEL, {"d", "b"})
    assert part is not None
    assert list(moving) == ["a", "c"]
    assert list(part.tensors) == ["frozen:1:b", "frozen:3:d"]
    assert part.digest == tensors_digest(part.tensors).hex()
    whole = part.join(moving)
    assert list(whole) == list(MODEL)
    assert all(whole[name] is MODEL[name] for name in MODEL)
    assert whole.non_trainable == {"b", "c", "d"}


def test_groups_stay_behind_the_model_and_a_tasks_tensors_come_apart_again():
    moving, part = split_off(MODEL, {"a"})
    assert part is not None
    task = Parameters({**moving, "control:d": np.zeros(1)}, moving.non_trainable)
    assert list(part.join(task)) == ["a", "b", "c", "d", "control:d"]
    own, came = beside(with_beside(task, part))
    assert list(own) == list(task)
    assert frozen_part(came).digest == part.digest
    assert list(beside(task)[1]) == []


def test_nothing_frozen_leaves_the_parameters_as_they_are():
    assert split_off(MODEL, ()) == (MODEL, None)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["x"], "has no tensor 'x', which is said to be frozen"),
        (["a", "b", "d"], "all tensors of the model are frozen"),
    ],
)
def test_names_that_cannot_be_frozen_are_told(names, said):
    with pytest.raises(AppError, match=said):
        split_off(MODEL, names)
    with pytest.raises(AppError, match="begins as a frozen one travels"):
        split_off(Parameters({"frozen:0:a": np.ones(1), "b": np.ones(1)}), ["b"])


@pytest.mark.parametrize(
    "names", [["frozen:1:b", "frozen:0:a"], ["frozen:01:b"], ["frozen:-1:b"], ["frozen:1:"], ["b"]]
)
def test_tensors_that_are_no_frozen_part_are_refused(names):
    with pytest.raises(SpecMismatch):
        frozen_part(Parameters({name: np.ones(1) for name in names}))


def test_a_part_of_another_model_does_not_join():
    far = frozen_part(Parameters({"frozen:9:z": np.ones(1)}))
    with pytest.raises(SpecMismatch, match="of two models"):
        far.join(MODEL)
    twice = frozen_part(Parameters({"frozen:0:d": np.ones(1)}))
    with pytest.raises(SpecMismatch, match="of two models"):
        twice.join(MODEL)


def test_one_changed_bit_is_found():
    _, part = split_off(MODEL, {"b", "d"})
    assert part is not None
    same = {name: array.copy() for name, array in MODEL.items()}
    assert part.changed_in(same) is None
    same["b"][1] = -0.0
    assert part.changed_in(same) == "b"


def test_a_hello_says_an_empty_disk_and_an_older_one_says_nothing():
    hello = Hello(participant_id="a", session_id="s", num_examples=1)
    assert decode(encode(hello)).message.frozen is None
    knows = hello.model_copy(update={"frozen": ()})
    assert decode(encode(knows)).message.frozen == ()
    assert b"frozen" not in encode(hello)
