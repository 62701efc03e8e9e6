"""A method's side on the participant, in exact small numbers."""

import numpy as np
import pytest

from fedmq.participant.memory import Memory
from fedmq.participant.trainer import TrainResult
from fedmq.participant.training.methods import begin, make, replies_of
from fedmq.participant.training.task_work import TaskFailed, do_task
from fedmq.schemas.errors import TrainerError
from fedmq.schemas.messages import Task, TrainingConfig, run_uid
from fedmq.schemas.methods import has_memory, join
from fedmq.schemas.parameters import Parameters

MODEL = Parameters({"w": np.array([4.0], np.float32), "mean": np.array([1.0], np.float32)}, {"mean"})
RATE = TrainingConfig(learning_rate=0.5)


def scaffold_task(control=2.0):
    return join(MODEL, {"control": {"w": np.array([control], np.float32)}})


def kept(value):
    return Memory("before", {"w": np.array([value])})


def numbers(tensors):
    return {n: float(a[0]) for n, a in tensors.items()}


def test_the_correction_is_c_minus_c_i_and_c_i_is_0_at_first():
    assert begin("delta", MODEL, None).correction is None
    first = begin("scaffold", scaffold_task(), None)
    assert numbers(first.correction) == {"w": 2.0}
    later = begin("scaffold", scaffold_task(), kept(0.5))
    assert (numbers(later.correction), later.correction["w"].dtype) == ({"w": 1.5}, np.float32)
    assert list(later.parameters) == ["w", "mean"]


def test_scaffold_sends_what_its_control_variate_changes_by():
    start = begin("scaffold", scaffold_task(), kept(0.5))
    local = {"w": np.array([1.0], np.float32), "mean": np.array([3.0], np.float32)}
    made = make("scaffold", start, local, 2, RATE)
    # Δc = (4 - 1)/(2·0.5) - 2; c_i ← 0.5 + 1
    assert numbers(made.tensors) == {"w": -3.0, "mean": 2.0, "control:w": 1.0}
    assert numbers(made.next_memory) == {"w": 1.5}
    assert made.next_memory["w"].dtype == np.float64
    assert made.tensors.non_trainable == {"mean"}


def test_no_step_changes_nothing_and_no_rate_is_an_error():
    start = begin("scaffold", scaffold_task(), None)
    assert numbers(make("scaffold", start, dict(MODEL), 0, RATE).tensors)["control:w"] == 0.0
    with pytest.raises(TrainerError, match=r"needs training\.learning_rate"):
        make("scaffold", start, dict(MODEL), 1, TrainingConfig())


def test_a_change_is_against_the_sum_of_what_was_sent_whose_rounding_it_takes_back():
    first = make("change", begin("change", MODEL, None), {"w": np.float32([0.1]), "mean": np.float32([7])}, 1, RATE)
    assert numbers(first.tensors) == {"w": np.float32(0.1), "mean": 7.0}
    memory = Memory("u", first.next_memory)
    local = {"w": np.float32([1e8]), "mean": np.float32([7])}
    second = make("change", begin("change", MODEL, memory), local, 1, RATE)
    assert second.tensors["w"].dtype == np.float32
    third = make("change", begin("change", MODEL, Memory("v", second.next_memory)), local, 1, RATE)
    total = sum(float(one.tensors["w"][0]) for one in (first, second, third))
    assert total == pytest.approx(1e8, abs=1e-6), "float32 alone would be off by 0.1 for ever"
    assert numbers(third.next_memory) == {"w": total, "mean": 7.0}


class Plain:
    def train(self, parameters, config):
        return TrainResult({n: a + 1 for n, a in parameters.items()}, 3, 1)


class Correcting(Plain):
    def train(self, parameters, config, correction=None):
        self.correction = correction
        return super().train(parameters, config)


def order(reply, **fields):
    values = {"task_id": "ab12-7", "run_id": "r", "participant_id": "p", "base_version": 1, "lease_s": 9.0}
    return Task(**values | {"reply": reply, "training": RATE} | fields)


def test_a_participant_says_what_its_trainer_can_do():
    assert replies_of(Plain()) == ("delta", "parameters", "change")
    assert replies_of(Correcting()) == ("delta", "parameters", "change", "scaffold")
    assert run_uid("ab12-7") == "ab12"
    assert has_memory(order("change"))
    assert not has_memory(order("delta"))
    assert not has_memory(order("change", work="evaluate"))


def test_a_task_of_scaffold_ends_in_one_update_and_what_to_remember_of_it():
    trainer = Correcting()
    done = do_task(trainer, order("scaffold"), scaffold_task(), lambda: 0.0, kept(0.5))
    assert numbers(trainer.correction) == {"w": 1.5}
    assert (done.update.payload, done.update.memory) == ("scaffold", "before")
    assert numbers(done.payload) == {"w": 1.0, "mean": 1.0, "control:w": -1 / 0.5 - 2}
    assert (done.next_memory.mark, numbers(done.next_memory.tensors)) == (done.update.next_memory, {"w": -3.5})
    again = do_task(trainer, order("scaffold"), scaffold_task(), lambda: 0.0, kept(0.5))
    assert again.update.update_id == done.update.update_id
    assert again.update.next_memory != done.update.next_memory, "another training leaves another memory"
    plain = do_task(trainer, order("delta"), MODEL, lambda: 0.0)
    assert (trainer.correction, plain.update.next_memory, plain.next_memory) == (None, None, None)


def test_a_trainer_that_takes_no_correction_declines_as_unsupported():
    with pytest.raises(TaskFailed, match=r"Plain\.train has no argument `correction`") as caught:
        do_task(Plain(), order("scaffold"), scaffold_task(), lambda: 0.0)
    assert (caught.value.reason, caught.value.fatal) == ("unsupported", False)


def test_a_task_without_the_methods_tensors_is_a_failure_of_that_task_alone():
    with pytest.raises(TaskFailed, match="the group 'control'") as caught:
        do_task(Correcting(), order("scaffold"), MODEL, lambda: 0.0)
    assert not caught.value.fatal


@pytest.mark.parametrize("packed", [False, True])
def test_a_delta_beyond_float16_is_infinite_and_no_warning(packed):
    base, local = (Parameters({"w": np.array([x, 1.0], np.float16)}) for x in (-6e4, 6e4))
    if packed:
        base, local = base.packed(), local.packed()
    start = begin("delta", base, None)
    sent = make("delta", start, local, 1, TrainingConfig()).tensors["w"]
    assert (sent.dtype, sent.tolist()) == (np.float16, [np.inf, 0.0])
