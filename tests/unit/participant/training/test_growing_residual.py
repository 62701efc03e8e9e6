"""Error feedback of a model that grows within a run: what was not sent stays, by the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fedmq.participant.memory import Memory
from fedmq.participant.training.uplink import coder_of
from fedmq.schemas.codecs.checked import PLACES, RESIDUAL
from fedmq.schemas.messages import Uplink
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of

TOP = Uplink(codec="topk", error_feedback=True, fraction=0.3)


def delta(**values: list[float]) -> Parameters:
    return Parameters({name: np.array(value, np.float32) for name, value in values.items()})


def sent(update: Parameters, memory: Memory | None, uplink: Uplink = TOP) -> tuple[Parameters, Memory]:
    """Return an update as it is received, and the memory that it leaves."""
    coder = coder_of(uplink, "delta", spec_of(update), 7, memory)
    received = coder.code(update)
    kept = coder.next_memory()
    assert kept is not None
    return received, Memory("m", kept, soft=True)


def test_the_residual_of_a_tensor_goes_on_and_that_of_a_new_one_is_zero():
    received, memory = sent(delta(w=[1, 0.25, 0.5]), None)
    assert received["w"].tolist() == [1, 0, 0]
    received, memory = sent(delta(base=[2, 0.125], w=[0, 0, 0]), memory)
    assert [received["base"].tolist(), received["w"].tolist()] == [[2, 0], [0, 0, 0.5]]
    assert memory.tensors[RESIDUAL].tolist() == [0, 0.125, 0, 0.25, 0]


def test_all_that_was_accepted_and_the_residual_are_all_that_was_trained():
    rng = np.random.default_rng(0)
    total: dict[str, Any] = {"w": np.zeros(50), "base": np.zeros(70)}
    got = {name: np.zeros_like(a) for name, a in total.items()}
    memory = None
    for step in range(20):
        update = delta(w=rng.normal(size=50)) if step < 10 else delta(base=rng.normal(size=70), w=rng.normal(size=50))
        received, memory = sent(update, memory)
        for name in update:
            total[name] += update[name]
            got[name] += received[name]
    left = memory.tensors[RESIDUAL]
    assert got["base"] + left[:70] == pytest.approx(total["base"], rel=1e-5, abs=1e-5)
    assert got["w"] + left[70:] == pytest.approx(total["w"], rel=1e-5, abs=1e-5)


def changed(memory: Memory, **tensors: Any) -> Memory:
    return Memory("m", {**memory.tensors, **tensors}, soft=True)


SPOILT: list[Mapping[str, Any]] = [
    {PLACES: np.frombuffer(b"[[1", np.uint8)},
    {PLACES: np.frombuffer(b'[["w", "x"]]', np.uint8)},
    {PLACES: np.frombuffer(b'{"w": 3}', np.uint8)},
    {PLACES: np.frombuffer(b'[["other", 3]]', np.uint8)},
    {PLACES: np.frombuffer(b'[["w", 9]]', np.uint8)},
    {PLACES: np.frombuffer(b'[[["w"], 3]]', np.uint8)},
    {RESIDUAL: np.ones((3, 1), np.float32)},
]


@pytest.mark.parametrize("spoilt", SPOILT, ids=range(len(SPOILT)))
def test_a_memory_that_cannot_be_read_begins_at_zero(spoilt):
    _, memory = sent(delta(w=[1, 0.25, 0.5]), None)
    received, _ = sent(delta(base=[2, 0.125], w=[0, 0, 0]), changed(memory, **spoilt))
    assert [received["base"].tolist(), received["w"].tolist()] == [[2, 0.125], [0, 0, 0]]


def test_a_memory_of_an_earlier_fedmq_counts_if_its_size_fits():
    _, memory = sent(delta(w=[1, 0.25, 0.5]), None)
    old = Memory("m", {RESIDUAL: memory.tensors[RESIDUAL]}, soft=True)
    assert sent(delta(w=[0, 0, 0]), old)[0]["w"].tolist() == [0, 0, 0.5]
    assert sent(delta(base=[1, 1], w=[0, 0, 0]), old)[0]["w"].tolist() == [0, 0, 0]


def test_powersgds_matrices_begin_the_iteration_of_a_larger_model():
    uplink = Uplink(codec="powersgd", error_feedback=True, rank=1)
    rng = np.random.default_rng(1)
    update = Parameters({"w": rng.normal(size=(8, 6)).astype(np.float32)})
    _, memory = sent(update, None, uplink)
    larger = Parameters({"base": rng.normal(size=(8, 6)).astype(np.float32), **update})
    received, memory = sent(larger, memory, uplink)
    assert received.keys() == larger.keys()
    assert memory.tensors[RESIDUAL].shape == (96,)
