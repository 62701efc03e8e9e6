"""A codec at work on one participant's updates, and what is kept of it for the next one."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.participant.memory import Memory
from fedmq.participant.trainer import TrainResult
from fedmq.participant.training.task_work import FinishedTask, TaskFailed, do_task
from fedmq.schemas.codecs.blocks import Int8
from fedmq.schemas.codecs.checked import RESIDUAL
from fedmq.schemas.codecs.codec import Codec
from fedmq.schemas.codecs.known import UplinkCodec, codec_of
from fedmq.schemas.messages import Reply, Task, TrainingConfig, Uplink
from fedmq.schemas.methods import join, update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of

ZEROS = Parameters({"w": np.zeros(4, np.float32)})
TOP1 = Uplink(codec="topk", error_feedback=True, fraction=0.25)


class Adds:
    """A trainer whose delta is the one that it was made with."""

    num_examples = 3

    def __init__(self, *delta: float) -> None:
        self.delta = np.array(delta)

    def train(self, parameters: Parameters, config: TrainingConfig, correction: object = None) -> TrainResult:
        return TrainResult({n: (a + self.delta).astype(a.dtype) for n, a in parameters.items()}, 3, 1, {})


def do(
    trainer: object, uplink: Uplink | None, memory: Memory | None = None, reply: Reply = "delta",
    tensors: Parameters = ZEROS, own: Codec | None = None,
) -> FinishedTask:  # fmt: skip
    task = Task(
        task_id="u-1", run_id="r", participant_id="p", base_version=0, reply=reply, uplink=uplink, lease_s=9,
        training=TrainingConfig(seed=7, learning_rate=0.5),
    )  # fmt: skip
    return do_task(trainer, task, tensors, lambda: 0.0, memory, own_codec=own)


def received(done: FinishedTask, uplink: Uplink, reply: Reply = "delta", model: Parameters = ZEROS) -> Parameters:
    codec = codec_of(uplink)
    assert codec is not None
    assert done.payload is not None
    return UplinkCodec(uplink, codec).wire(update_spec(reply, spec_of(model))).decode(done.payload)


def test_what_is_not_sent_waits_for_the_next_update_and_moves_with_an_accepted_one() -> None:
    wide = Parameters({"w": np.zeros(4)})  # in float32 two values of the second update are equal
    first = do(Adds(1, -0.2, 0.3, 0.4), TOP1, tensors=wide)
    assert received(first, TOP1, model=wide)["w"].tolist() == [1, 0, 0, 0]
    assert first.next_memory is not None
    kept = first.next_memory
    assert kept.tensors[RESIDUAL] == pytest.approx([0, -0.2, 0.3, 0.4])
    second = do(Adds(0.1, -0.3, 0.3, 0.2), TOP1, kept, tensors=wide)  # discarded: the memory stays as it is
    assert received(second, TOP1, model=wide)["w"] == pytest.approx([0, 0, 0, 0.6])
    third = do(Adds(0.2, -0.3, 0.3, 0.4), TOP1, kept, tensors=wide)
    assert received(third, TOP1, model=wide)["w"] == pytest.approx([0, 0, 0, 0.8])
    assert third.next_memory is not None
    assert third.next_memory.tensors[RESIDUAL] == pytest.approx([0.2, -0.5, 0.6, 0], abs=2e-8)


def test_marks_tell_one_memory_from_another() -> None:
    first = do(Adds(1, 2, 3, 4), TOP1)
    assert first.next_memory is not None
    assert (first.update.memory, first.update.codec, first.next_memory.soft) == (None, "topk", True)
    assert first.update.next_memory == first.next_memory.mark
    second = do(Adds(1, 2, 3, 4), TOP1, first.next_memory)
    assert second.update.memory == first.next_memory.mark
    assert second.update.next_memory not in (None, first.next_memory.mark)


def test_without_feedback_nothing_is_kept_and_no_mark_is_made() -> None:
    done = do(Adds(1, 2, 3, 4), Uplink(codec="int8"))
    assert (done.next_memory, done.update.memory, done.update.next_memory) == (None, None, None)


def test_powersgd_starts_from_where_its_last_accepted_update_ended() -> None:
    model, order = Parameters({"w": np.zeros((6, 5), np.float32)}), Uplink(codec="powersgd", rank=1)
    matrix = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)

    class Gives(Adds):
        def __init__(self) -> None:
            self.delta = matrix

    memory, errors = None, []
    for _ in range(4):
        done = do(Gives(), order, memory, tensors=model)
        errors.append(np.linalg.norm(received(done, order, model=model)["w"] - matrix))
        memory = done.next_memory
    assert memory is not None
    assert RESIDUAL not in memory.tensors
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


def test_a_memory_of_another_model_counts_for_nothing() -> None:
    other = Memory("m", {RESIDUAL: np.ones(9, np.float32)}, soft=True)
    assert received(do(Adds(1, -0.2, 0.3, 0.4), TOP1, other), TOP1)["w"].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -1e15])
@pytest.mark.parametrize("uplink", [TOP1, Uplink(codec="int8", rounding="nearest", error_feedback=True)], ids=str)
def test_a_residual_that_no_update_can_carry_is_begun_anew(uplink, value, caplog) -> None:
    """Each update that was made from it would be refused, and a refused update leaves it as it is."""
    spoilt = Memory("m", {RESIDUAL: np.float32([0, 0, 0, value])}, soft=True)
    done = do(Adds(1, -0.2, 0.3, 0.4), uplink, spoilt)
    clean = do(Adds(1, -0.2, 0.3, 0.4), uplink)
    assert received(done, uplink)["w"].tolist() == received(clean, uplink)["w"].tolist()
    assert done.update.memory == "m"
    assert "event=memory_begun_anew mark=m" in caplog.text


def test_a_codecs_own_memory_that_is_not_finite_is_begun_anew() -> None:
    model, order = Parameters({"w": np.zeros((6, 5), np.float32)}), Uplink(codec="powersgd", rank=1)
    spoilt = Memory("m", {"powersgd:0": np.full((5, 1), np.nan, np.float32)}, soft=True)
    assert np.isfinite(received(do(Adds(1.0), order, spoilt, tensors=model), order, model=model)["w"]).all()


def test_an_update_that_its_receiver_would_refuse_is_declined_and_not_sent() -> None:
    """A float16 has no value above 65504, and rounding goes up to the next step of the block."""
    model = Parameters({"w": np.zeros(4, np.float16)})
    feeds_back = Uplink(codec="int8", rounding="nearest", error_feedback=True)
    residual = Memory("m", {RESIDUAL: np.float32([40_000, 0, 0, 0])}, soft=True)
    with pytest.raises(TaskFailed, match="infinite"):
        do(Adds(40_000, 0, 0, 0), feeds_back, residual, tensors=model)


def test_a_change_is_added_up_as_it_arrived() -> None:
    order = Uplink(codec="topk", fraction=0.25, rounding="nearest")
    first = do(Adds(1, -0.2, 0.3, 0.4), order, reply="change")
    assert first.next_memory is not None
    assert first.next_memory.tensors["w"].tolist() == [1, 0, 0, 0]
    assert not first.next_memory.soft
    second = do(Adds(1, -0.2, 0.3, 0.4), order, first.next_memory, reply="change")
    assert received(second, order, "change")["w"] == pytest.approx([0, 0, 0, 0.4])
    assert second.next_memory is not None
    assert second.next_memory.tensors["w"] == pytest.approx([1, 0, 0, 0.4])


def test_scaffold_adds_up_the_control_variates_that_arrived() -> None:
    order = Uplink(codec="int4")
    tensors = join(ZEROS, {"control": {"w": np.zeros(4, np.float32)}})
    done = do(Adds(1, -0.2, 0.3, 0.4), order, reply="scaffold", tensors=tensors)
    arrived = received(done, order, "scaffold")
    assert done.next_memory is not None
    assert np.array_equal(done.next_memory.tensors["w"], arrived["control:w"])
    assert arrived["control:w"] != pytest.approx(np.float32([-2, 0.4, -0.6, -0.8]))  # as it was before the codec


@pytest.mark.parametrize("uplink", [Uplink(codec="int8", lossless="zstd"), Uplink(codec="nobodys")])
def test_a_codec_that_is_not_here_declines_the_task_with_what_to_do(monkeypatch, caplog, uplink) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(TaskFailed) as failed:
        do(Adds(1, 2, 3, 4), uplink)
    assert (failed.value.reason, failed.value.fatal) == ("unsupported", False)
    assert "Traceback" not in caplog.text
    assert (
        "pip install 'fedmq[zstd]'" in failed.value.detail or "'nobodys', which this participant" in failed.value.detail
    )


def test_a_diverged_training_is_declined_before_it_is_coded() -> None:
    with pytest.raises(TaskFailed, match="not finite"):
        do(Adds(np.nan, 0, 0, 0), Uplink(codec="int8"))


def test_a_codec_of_ones_own_is_found_by_its_name() -> None:
    class Own(Int8):
        name = "own"

    done = do(Adds(1, 2, 3, 4), Uplink(codec="own"), own=Own())
    assert done.update.codec == "own"
