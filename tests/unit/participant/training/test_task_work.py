"""One task from parameters to update, with trainers of a few lines."""

import logging
from queue import SimpleQueue
from threading import Event
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fedmq.participant.trainer import TrainResult
from fedmq.participant.training.methods import Start, make
from fedmq.participant.training.task_work import TaskFailed, do_task
from fedmq.participant.training.thread import TrainingThread
from fedmq.schemas.errors import AppError
from fedmq.schemas.frozen import frozen_part
from fedmq.schemas.messages import Task, TrainingConfig, update_id
from fedmq.schemas.parameters import Parameters

BASE = Parameters(
    {
        "w": np.array([1.0, 2.0], np.float32),
        "mean": np.array([0.5], np.float32),
        "steps": np.array(3, np.int64),
    },
    {"mean", "steps"},
)


def make_task(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "task_id": "t1", "run_id": "run-1", "participant_id": "sensor-1", "base_version": 3, "reply": "delta",
        "training": TrainingConfig(), "lease_s": 100.0,
    }  # fmt: skip
    return Task(**values | changes)


class Returns:
    """A trainer that gives a fixed answer, or raises it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def train(self, parameters: Parameters, config: TrainingConfig) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def result(num_examples: Any = 7, metrics: Any = None, **changes: Any) -> TrainResult:
    tensors = {"w": np.array([1.5, 1.0], np.float32), "mean": np.array([0.75], np.float32), "steps": np.array(4)}
    return TrainResult(tensors | changes, num_examples, 2, {"loss": 0.25} if metrics is None else metrics)


def failure_of(trainer: Any, **changes: Any) -> TaskFailed:
    with pytest.raises(TaskFailed) as caught:
        do_task(trainer, make_task(**changes), BASE, lambda: 0.0)
    return caught.value


def test_a_delta_is_local_minus_base_of_the_floating_tensors() -> None:
    clock = iter([10.0, 12.5])
    done = do_task(Returns(result()), make_task(), BASE, lambda: next(clock))
    update, payload = done.update, done.payload
    assert payload is not None
    assert {name: array.tolist() for name, array in payload.items()} == {"w": [0.5, -1.0], "mean": [0.25]}
    assert payload.non_trainable == {"mean"}
    assert update.update_id == update_id("run-1", "t1", "sensor-1")
    assert (update.payload, update.base_version, update.num_examples, update.num_steps) == ("delta", 3, 7, 2)
    assert (update.train_s, update.metrics) == (2.5, {"loss": 0.25})


def test_parameters_are_sent_as_they_are() -> None:
    payload = do_task(Returns(result()), make_task(reply="parameters"), BASE, lambda: 0.0).payload
    assert payload is not None
    assert payload["w"].tolist() == [1.5, 1.0]
    assert tuple(payload) == ("w", "mean")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_a_delta_keeps_the_dtype_of_its_tensor(dtype: Any) -> None:
    base = Parameters({"w": np.array([1.0], dtype)})
    local = Parameters({"w": np.array([1.5], dtype)})
    delta = make("delta", Start(base, {}, None, None), local, 1, TrainingConfig()).tensors["w"]
    assert delta.dtype == np.dtype(dtype)
    assert delta.astype(np.float64).tolist() == [0.5]


def test_the_order_of_returned_tensors_does_not_matter() -> None:
    shuffled = result()
    reordered = TrainResult(dict(reversed(shuffled.parameters.items())), 7, 2)
    payload = do_task(Returns(reordered), make_task(), BASE, lambda: 0.0).payload
    assert payload is not None
    assert tuple(payload) == ("w", "mean")


@pytest.mark.parametrize(
    ("trainer", "text"),
    [
        (Returns(ValueError("first line\nbatch is empty")), "ValueError: first line batch is empty"),
        (Returns(SystemExit(3)), "SystemExit: 3"),
        (Returns(KeyError()), "KeyError"),
        (Returns(None), "train returned None, expected an object with the attributes parameters, num_examples"),
        (Returns(([1], 7, {})), "train returned a tuple of 3, expected an object with the attributes parameters"),
        (Returns(SimpleNamespace(parameters=[1], num_steps=1)), "without num_examples and metrics, expected an object"),
        (Returns(SimpleNamespace(parameters=[1], num_examples=1, num_steps=1, metrics={})), "parameters as list"),
        (Returns(result(w=np.zeros(3, np.float32))), "other tensors than it was given"),
        (Returns(result(w=np.zeros(2, np.float64))), "other tensors than it was given"),
        (Returns(result(extra=np.zeros(2, np.float32))), "other tensors than it was given"),
        (Returns(result(w=np.array([np.nan, 1], np.float32))), "not finite"),
        (Returns(result(w=np.array([np.inf, 1], np.float32))), "not finite"),
        (Returns(result(num_examples=0)), "num_examples=0, expected an integer of at least 1"),
        (Returns(result(metrics=3)), "metrics are int"),
        (object(), "AttributeError"),
    ],
)
def test_a_trainer_that_fails_gives_a_trainer_error_with_its_text(trainer: Any, text: str) -> None:
    failed = failure_of(trainer)
    assert (failed.reason, failed.fatal) == ("trainer_error", False)
    assert text in failed.detail


def test_the_error_of_a_trainer_that_was_asked_to_stop_is_logged_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stops:
        """A trainer that raises as soon as it is asked to stop."""

        def __init__(self) -> None:
            self.begun, self.asked = Event(), Event()

        def train(self, parameters: Parameters, config: TrainingConfig) -> Any:
            self.begun.set()
            self.asked.wait(10)
            raise ValueError("stopped")

        def cancel(self) -> None:
            self.asked.set()

    caplog.set_level(logging.INFO, logger="fedmq.participant")
    done: SimpleQueue[Any] = SimpleQueue()
    trainer = Stops()
    thread = TrainingThread(trainer, "training", 10**6, done.put)
    thread.open()
    for asked in (True, False):
        trainer.begun.clear()
        thread.start(make_task(), BASE, None)
        assert trainer.begun.wait(10)
        if asked:
            thread.cancel()
        assert done.get(timeout=10).reason == "trainer_error"
    thread.close()
    events = [(record.getMessage().partition(" ")[0], bool(record.exc_info)) for record in caplog.records]
    assert events == [("event=training_cancelled", False), ("event=trainer_error", True)]


def test_an_app_error_is_fatal_and_says_the_difference() -> None:
    failed = failure_of(Returns(AppError("kernel is [3], expected [4]")))
    assert (failed.reason, failed.fatal, failed.detail) == ("unsupported", True, "kernel is [3], expected [4]")


def test_metrics_that_no_message_may_carry_are_left_out() -> None:
    metrics = {"loss": np.float32(0.5), "f1": float("nan"), "x" * 65: 1.0, "text": "no number"}
    update = do_task(Returns(result(metrics=metrics)), make_task(), BASE, lambda: 0.0).update
    assert update.metrics == {"loss": 0.5}


def test_an_evaluation_sends_metrics_alone() -> None:
    trainer = SimpleNamespace(evaluate=lambda parameters: {"accuracy": 0.5}, num_examples=9)
    done = do_task(trainer, make_task(work="evaluate"), BASE, lambda: 0.0)
    update, payload = done.update, done.payload
    assert payload is None
    assert (update.payload, update.num_examples, update.metrics) == ("none", 9, {"accuracy": 0.5})


def test_an_evaluation_that_the_trainer_cannot_do_is_unsupported_but_not_fatal() -> None:
    def without_data(_parameters: Parameters) -> dict[str, float]:
        raise NotImplementedError("no evaluation_data")

    for trainer in (Returns(None), SimpleNamespace(evaluate=without_data)):
        failed = failure_of(trainer, work="evaluate")
        assert (failed.reason, failed.fatal) == ("unsupported", False)


@pytest.mark.parametrize(
    ("fields", "frozen"),
    [({"reply": "scaffold"}, None), ({}, Parameters({"frozen:9:w": np.zeros(1, np.float32)}))],
    ids=["without the method's tensors", "with the frozen part of another model"],
)
def test_a_task_whose_tensors_do_not_go_together_is_declined_without_a_traceback(caplog, fields, frozen):
    class Never:
        def train(self, parameters, config, correction=None):
            raise AssertionError("it was asked")

    task = Task(
        task_id="u-1", run_id="r", participant_id="p", base_version=0, lease_s=9,
        training=TrainingConfig(learning_rate=0.5), **({"reply": "delta"} | fields),
    )  # fmt: skip
    part = None if frozen is None else frozen_part(frozen)
    with pytest.raises(TaskFailed) as failed:
        do_task(Never(), task, Parameters({"w": np.zeros(2, np.float32)}), lambda: 0.0, frozen=part)
    assert (failed.value.reason, failed.value.fatal) == ("unreadable", False)
    assert failed.value.detail.startswith("wrong_shape: ")
    assert "Traceback" not in caplog.text


def test_a_task_whose_values_no_update_could_carry_is_declined_before_the_training(caplog):
    class Never:
        def train(self, parameters, config):
            raise AssertionError("it was asked")

    task = Task(
        task_id="u-1", run_id="r", participant_id="p", base_version=0, lease_s=9, reply="delta",
        training=TrainingConfig(learning_rate=0.5),
    )  # fmt: skip
    with pytest.raises(TaskFailed, match=r"overflow: .*1e\+15") as failed:
        do_task(Never(), task, Parameters({"w": np.float32([0, 2e15])}), lambda: 0.0)
    assert (failed.value.reason, failed.value.fatal) == ("unreadable", False)
    assert "Traceback" not in caplog.text
