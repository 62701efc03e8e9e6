"""Lazy training: the moment of each computation, and the results."""

import numpy as np
import pytest

from fedmq.participant.training.methods import Start, make
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.studies.problems.lazy_training import LazyTraining, Trained

CONFIG = TrainingConfig(learning_rate=0.1)


class Adding:
    """A backend with y = x + the participant's number + 1, in arrays that are parts of the whole cohort's array."""

    name = "adding"

    def __init__(self, at_once=None):
        self.at_once = at_once
        self.cohorts = []

    def train(self, jobs):
        self.cohorts.append([job.participant for job in jobs])
        stacked = np.stack([job.base["x"] + job.participant + 1 for job in jobs])
        made = [Parameters({"x": stacked[i]}, job.base.non_trainable) for i, job in enumerate(jobs)]
        return [Trained(y, 5, 2, {"loss": float(job.participant)}) for y, job in zip(made, jobs, strict=True)]


def base(*values, flags=frozenset()):
    return Parameters({"x": np.array(values, np.float32)}, flags)


@pytest.mark.parametrize(
    ("at_once", "count", "sizes"), [(None, 5, [5]), (5, 5, [5]), (3, 4, [2, 2]), (3, 7, [3, 3, 1]), (3, 8, [3, 3, 2])]
)
def test_all_that_waits_is_computed_together_in_parts_of_about_one_size(at_once, count, sizes):
    backend = Adding(at_once)
    lazy = LazyTraining(backend, "parameters")
    for i in range(count):
        lazy.add(10 + i, i, base(i), CONFIG)
    assert backend.cohorts == []
    results = [lazy.result(10 + i) for i in range(count)]
    assert [len(cohort) for cohort in backend.cohorts] == sizes
    assert [r.payload["x"].tolist() for r in results] == [[2.0 * i + 1] for i in range(count)]
    assert [r.metrics["loss"] for r in results] == list(range(count))
    assert (lazy.cohorts, lazy.trained) == (1, count)


def test_what_is_dropped_is_not_computed_and_not_kept():
    backend = Adding()
    lazy = LazyTraining(backend, "parameters")
    for number in range(3):
        lazy.add(number, number, base(0.0), CONFIG)
    lazy.drop(1)
    lazy.result(0)
    assert backend.cohorts == [[0, 2]]
    lazy.drop(2)
    for number in (0, 1, 2):
        with pytest.raises(KeyError):
            lazy.result(number)


def test_a_result_keeps_no_array_of_its_cohort():
    lazy = LazyTraining(Adding(), "parameters")
    for number in range(2):
        lazy.add(number, number, base(0.0, 0.0), CONFIG)
    assert lazy.result(0).payload["x"].base is None


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("flags", [frozenset(), frozenset({"x"})])
def test_a_delta_is_what_a_participant_sends(packed, flags):
    class Packing(Adding):
        def train(self, jobs):
            return [
                t._replace(parameters=t.parameters.packed() if packed else t.parameters) for t in super().train(jobs)
            ]

    start = base(0.1, 7.0, flags=flags)
    start = start.packed() if packed else start
    lazy = LazyTraining(Packing(), "delta")
    lazy.add(0, 4, start, CONFIG)
    payload = lazy.result(0).payload
    local = Parameters({"x": start["x"] + 5}, flags)
    sent = make("delta", Start(start, {}, None, None), local, 2, CONFIG).tensors
    assert payload["x"].tobytes() == sent["x"].tobytes()
    assert payload.non_trainable == sent.non_trainable == flags


@pytest.mark.parametrize(
    ("values", "finite"), [([1.0, -2.0], True), ([3e38, 3e38], True), ([1.0, np.inf], False), ([np.nan, 1.0], False)]
)
@pytest.mark.parametrize("packed", [False, True])
def test_large_values_are_finite_although_their_squares_are_not(values, finite, packed):
    class Given(Adding):
        def train(self, jobs):
            made = base(*values)
            return [Trained(made.packed() if packed else made, 1, 1, {}) for _ in jobs]

    lazy = LazyTraining(Given(), "parameters")
    start = base(0.0, 0.0)
    lazy.add(0, 0, start.packed() if packed else start, CONFIG)
    result = lazy.result(0)
    assert (result.payload.block is not None) == packed
    assert result.finite is finite


def test_a_memory_is_the_sum_of_what_was_accepted_and_nothing_else():
    lazy = LazyTraining(Adding(), "change")

    def sent(update_id, x):
        lazy.add(0, 2, base(x), CONFIG)
        result = lazy.result(0)
        lazy.sent(update_id, 2, result)
        return result.payload["x"].tolist(), result.memory

    assert sent("first", 1.0) == ([4.0], None), "y itself"
    lazy.settled("first", accepted=False)
    assert sent("second", 1.0) == ([4.0], None), "again, as the first one was discarded"
    lazy.settled("second", accepted=True)
    assert sent("third", 3.0) == ([2.0], "second"), "6 - 4"
    lazy.settled("third", accepted=False)
    assert sent("fourth", 5.0) == ([4.0], "second"), "8 - 4"
    lazy.settled("fourth", accepted=True)
    assert sent("fifth", 5.0) == ([0.0], "fourth")
