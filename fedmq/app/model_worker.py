"""The coordinator's worker process: the only place on its side that loads the app, and with it TensorFlow or PyTorch.

`python -m fedmq.app.model_worker APP` writes {"ready": true, "evaluates": ..., "exports": ..., "distils": ...} to
stdout. Then it answers each JSON line on stdin with one JSON line, in order:

    {"initial": OUT}                     {"done": true}       the app's first parameters, written to OUT
    {"outline": true}                    {"outline": [...]}   their names, dtypes, shapes and trainable flags
    {"frozen": true}                     {"frozen": {...}}    those that no update moves, with True if they could train
    {"evaluate": IN, "version": n}       {"metrics": {...}}
    {"export": IN, "to": STEM}           {"written": OUT}     OUT is STEM.keras or STEM.pt
    {"hello": ID}                        {"num_examples": n, "replies": [...]}   what this participant says of itself
    {"distil": [IN, ...], "weights": [...], "start": IN, "part": IN or null, "seed": n, "version": n, "to": OUT}
                                         {"done": true}       the version that the app distils from these models
    {"train": TASK, "from": IN, "to": OUT}  {"update": {...}}  the task as its participant does it, for fedmq doctor

or with {"error": text, "missing_extra": true or false}, or with {"error": text, "disk": errno} if a file of ours cannot
be written. Parameters travel as safetensors files
(coordinator.state.checkpoint). Standard output belongs to these lines alone: whatever the app or TensorFlow prints goes
to standard error.
"""

from __future__ import annotations

import errno
import json
import os
import select
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fedmq.app.app import App, load_app, trainer_of
from fedmq.app.ensembles import distil
from fedmq.app.models import Evaluate, Framework, framework_of, frozen_flags, given_data, has_model
from fedmq.app.parameter_files import read_parameters, write_parameters
from fedmq.schemas.errors import AppError, FedmqError, MissingExtra, in_short, shown
from fedmq.schemas.local.leaving import kill_descendants, leave
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of

ORPHAN_S = 10.0
"""Longest time that the worker goes on without its parent. A parent that leaves by itself waits for less."""


class Helper:
    """Answers requests with the app's functions. Each thing is built when it is first needed."""

    def __init__(self, app: App) -> None:
        self._app = app
        if not has_model(app) and app.get("initial_parameters") is None:
            app.need("build_model", "for the first version of the model (or initial_parameters, without one)")
        self.evaluates = app.get("evaluate") is not None or (has_model(app) and app.get("load_test_data") is not None)
        self.exports = has_model(app)
        self.distils = app.get("distil") is not None
        self._framework: Framework | None = None
        self._evaluate: Evaluate | None = None
        self._trainers: dict[str, Any] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request. Raises AppError, CheckpointError or MissingExtra."""
        if "initial" in request:
            write_parameters(Path(request["initial"]), self._initial())
            return {"done": True}
        if "outline" in request:
            return {"outline": [[t.name, t.dtype, t.shape, t.trainable] for t in spec_of(self._initial())]}
        if "frozen" in request:
            return {"frozen": self._frozen()}
        if "evaluate" in request:
            return {"metrics": self._measured(read_parameters(Path(request["evaluate"])))}
        if "distil" in request:
            distil(self._app, request)
            return {"done": True}
        if "export" in request:
            return {"written": self._export(read_parameters(Path(request["export"])), Path(request["to"]))}
        if "hello" in request:
            return self._hello(request["hello"])
        if "train" in request:
            return self._train(request["train"], Path(request["from"]), Path(request["to"]))
        raise AppError(
            f"unknown request {dict(request)}, expected initial, outline, frozen, evaluate, distil, export, hello or "
            "train"
        )

    def _initial(self) -> Parameters:
        own = self._app.get("initial_parameters")
        if own is not None:
            given = own()
            if not isinstance(given, Mapping) or not given:
                raise AppError(f"initial_parameters in {self._app.path} gave {given!r:.80}, expected name -> array.")
            flags = given.non_trainable if isinstance(given, Parameters) else frozenset()
            return Parameters({str(name): np.asarray(array) for name, array in given.items()}, flags)
        return self._model("for the first version of the model").initial()

    def _frozen(self) -> dict[str, bool]:
        return frozen_flags(self._app, self._initial(), lambda: self._model("to know what is frozen"))

    def _measured(self, parameters: Parameters) -> dict[str, float]:
        metrics: object = self._evaluator()(parameters)
        try:
            if isinstance(metrics, Mapping):
                return {str(name): float(value) for name, value in metrics.items()}
        except (TypeError, ValueError) as e:
            raise AppError(
                f"evaluate in {self._app.path} gave {metrics!r:.200}, expected numbers: {in_short(e)}"
            ) from e
        raise AppError(f"evaluate in {self._app.path} returned {shown(metrics)}, expected a dict name -> number")

    def _evaluator(self) -> Evaluate:
        if self._evaluate is None:
            own = self._app.get("evaluate")
            self._evaluate = own or self._model("to evaluate").evaluator(given_data(self._app, "load_test_data"))
        return self._evaluate

    def _export(self, parameters: Parameters, stem: Path) -> str:
        model = self._model("to export it")
        target = stem.with_name(stem.name + model.suffix)
        model.export(parameters, target)
        return str(target)

    def _model(self, why: str) -> Framework:
        if self._framework is None:
            self._framework = framework_of(self._app, why)
        return self._framework

    def _trainer(self, participant_id: str) -> Any:
        if participant_id not in self._trainers:
            self._trainers[participant_id] = trainer_of(self._app, participant_id)
        return self._trainers[participant_id]

    def _hello(self, participant_id: str) -> dict[str, Any]:
        from fedmq.participant.service.startup import num_examples_of  # the doctor asks; a coordinator never does
        from fedmq.participant.training.methods import replies_of

        conditions = self._app.get("conditions")
        if conditions is not None:
            conditions(participant_id)  # a participant takes no task if it raises
        trainer = self._trainer(participant_id)
        return {"num_examples": num_examples_of(trainer), "replies": replies_of(trainer)}

    def _train(self, order: Mapping[str, Any], source: Path, target: Path) -> dict[str, Any]:
        from fedmq.participant.training.task_work import TaskFailed, do_task
        from fedmq.schemas.messages import Task

        task = Task.model_validate(order)
        try:
            done = do_task(self._trainer(task.participant_id), task, read_parameters(source), time.monotonic)
        except TaskFailed as failed:
            raise AppError(failed.detail) from failed
        assert done.payload is not None
        write_parameters(target, done.payload)
        return {"update": done.update.model_dump(mode="json")}


def main(argv: list[str]) -> int:
    """Answer requests until standard input ends."""
    lines = _own_stdout()
    try:
        helper = Helper(load_app(argv[0]))
    except FedmqError as e:
        _say(lines, _failed(e))
        return 2
    can = {"evaluates": helper.evaluates, "exports": helper.exports, "distils": helper.distils}
    _say(lines, {"ready": True, **can})
    threading.Thread(target=_end_without_parent, args=(sys.stdin.fileno(),), name="parent", daemon=True).start()
    for line in sys.stdin:
        try:
            _say(lines, helper.answer(json.loads(line)))
        except FedmqError as e:
            _say(lines, _failed(e))
        except OSError as e:  # those of the app's functions are AppErrors: this one is our own file's
            _say(lines, {"error": e.strerror or str(e), "disk": e.errno or errno.EIO})
        except Exception as e:  # noqa: BLE001 (the user's model failed: the coordinator reports it and goes on)
            _say(lines, {"error": in_short(e)})
    return 0


def _end_without_parent(stdin: int) -> None:
    """End this process if its parent is gone and it is still at work `ORPHAN_S` later, with all that the app started.

    A coordinator that is killed by SIGKILL cannot end a worker that hangs in the app. Its end closes the pipe, and that
    is told here without a byte being read. The platforms without `poll` have nothing of this.
    """
    if not hasattr(select, "poll"):
        return
    hung_up = select.poll()
    hung_up.register(stdin, 0)  # no event but the pipe's end
    while not any(event & (select.POLLHUP | select.POLLERR) for _, event in hung_up.poll()):
        pass
    time.sleep(ORPHAN_S)
    kill_descendants()
    os._exit(1)


def _failed(error: FedmqError) -> dict[str, Any]:
    return {"error": str(error), "missing_extra": isinstance(error, MissingExtra)}


def _own_stdout() -> TextIO:
    """Return standard output, kept for the protocol. All other prints go to standard error."""
    sys.stdout.flush()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lines


def _say(lines: TextIO, answer: Mapping[str, Any]) -> None:
    lines.write(json.dumps(answer) + "\n")
    lines.flush()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    leave(status)
    sys.exit(status)
