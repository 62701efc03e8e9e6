"""Groups of tensors beside the model's."""

import numpy as np
import pytest

from fedmq.schemas.codec import decode, encode
from fedmq.schemas.errors import AppError, SpecMismatch
from fedmq.schemas.messages import Task, TrainingConfig
from fedmq.schemas.methods import check_groups, join, split, trained, update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of

MODEL = Parameters(
    {"w": np.ones(2, np.float32), "mean": np.zeros(1, np.float32), "steps": np.array(3)}, {"mean", "steps"}
)
CONTROL = {"w": np.array([5.0, 6.0], np.float32)}


def test_what_is_joined_travels_in_one_body_and_splits_into_what_it_was():
    task = Task(
        task_id="t-1", run_id="r", participant_id="p", base_version=0, reply="scaffold", training=TrainingConfig(),
        lease_s=1.0,
    )  # fmt: skip
    got = decode(encode(task, join(MODEL, {"control": CONTROL}))).parameters
    assert got is not None
    assert list(got) == ["w", "mean", "steps", "control:w"]
    own, beside = split(got, ("control",))
    assert (list(own), own.non_trainable) == (["w", "mean", "steps"], {"mean", "steps"})
    assert {n: a.tolist() for n, a in beside["control"].items()} == {"w": [5.0, 6.0]}
    check_groups(own, beside)


def test_a_group_holds_what_gradients_step():
    assert trained(MODEL) == ("w",)
    names = {reply: [s.name for s in update_spec(reply, spec_of(MODEL))] for reply in ("delta", "change", "scaffold")}
    assert names == {"delta": ["w", "mean"], "change": ["w", "mean"], "scaffold": ["w", "mean", "control:w"]}


def test_nothing_is_copied_where_there_are_no_groups():
    assert join(MODEL, {}) is MODEL
    assert split(MODEL, ()) == (MODEL, {})


def test_a_model_whose_names_look_like_a_groups_is_refused_where_that_group_is_sent():
    odd = Parameters({"control:w": np.ones(1)})
    with pytest.raises(AppError, match="give it another name"):
        join(odd, {"control": {}})
    assert join(odd, {}) is odd
    assert split(odd, ()) == (odd, {})


@pytest.mark.parametrize("group", [{}, {"w": np.ones(3, np.float32)}, {"w": np.ones(2)}, {**CONTROL, "v": np.ones(1)}])
def test_a_group_of_other_tensors_is_refused(group):
    with pytest.raises(SpecMismatch, match="expected the model's trainable ones"):
        check_groups(MODEL, {"control": Parameters(group)})
