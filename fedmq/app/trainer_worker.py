"""The participant's worker process: the only place on its side that loads the app, and with it TensorFlow.

`python -m fedmq.app.trainer_worker APP ID SOCKET LEVEL` speaks over the descriptor SOCKET (fedmq.app.channel). It sends
{"answer": 0} when the app is loaded. Then it answers each request {"ask": n, "do": ...} with {"answer": n, ...}:

    hello                              name, methods, replies, num_examples, conditions   builds the trainer
    train, config, with tensors        num_examples, num_steps, metrics, and the parameters
    evaluate, with tensors             num_examples, metrics
                                       either may name the folder where the trainer keeps what it likes
    conditions                         holds
    cancel                             nothing

or with {"answer": n, "error": text, "kind": "app", "extra", "not_implemented" or "other", "traceback": text}.

Rules
1. The main thread trains. The reader's thread answers `conditions` and `cancel` meanwhile.
2. When the socket ends, the process leaves. In the middle of a training it is killed, with all that it has started.
3. Standard output and standard error are the participant's, and so is the form of the log lines.
4. SIGTERM is for the participant, which ends this process. A service manager sends it to both.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any

from fedmq.app.app import App, load_app, trainer_of
from fedmq.app.channel import BrokenChannel, Channel, Groups
from fedmq.broker_config.faults import fault
from fedmq.participant.service.startup import num_examples_of
from fedmq.participant.trainer import keeps
from fedmq.participant.training.methods import replies_of, takes_correction
from fedmq.participant.training.task_work import plain_metrics, plain_result
from fedmq.schemas.errors import AppError, MissingExtra, in_short
from fedmq.schemas.local.allocator import keep_freed_memory
from fedmq.schemas.local.console_log import log_to
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.local.leaving import leave
from fedmq.schemas.local.log_filter import redact_uncaught
from fedmq.schemas.local.streams import prepare_streams
from fedmq.schemas.messages import TrainingConfig

MOST_TRACEBACK_CHARS = 64 * 1024

log = EventLog(__name__)

Answer = tuple[dict[str, Any], Groups]


class Worker:
    """Answers requests with the app's functions and its trainer."""

    def __init__(self, channel: Channel, app: Path, participant_id: str) -> None:
        self._channel = channel
        self._path = app
        self._participant_id = participant_id
        self._app: App | None = None
        self._trainer: Any = None
        self._requests: SimpleQueue[tuple[dict[str, Any], Groups] | None] = SimpleQueue()
        self._turns = threading.Lock()
        self._busy = self._over = False
        """True while the app's code runs, and once the socket has ended."""

    def run(self) -> None:
        """Load the app, and answer until the other end closes."""
        # Cancelling takes no turn behind a training.
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        self._answer(0, lambda: self._in_turn(self._load))
        while True:
            request = self._requests.get()
            if request is None or self._app is None:
                return
            self._answer(request[0]["ask"], lambda request=request: self._in_turn(lambda: self._work(*request)))
            del request

    def _in_turn(self, work: Callable[[], Answer]) -> Answer:
        """Run the app's code, unless nobody waits for its answer any more. If the socket ends meanwhile, the process is
        killed; while it sends an answer it is not."""
        with self._turns:
            if self._over:
                raise BrokenChannel("the participant has closed its end")
            self._busy = True
        try:
            return work()
        finally:
            self._busy = False

    def _read(self) -> None:
        try:
            while (request := self._channel.receive()) is not None:
                values = request[0]
                if values["do"] == "cancel":
                    self._cancel()
                elif values["do"] == "conditions":
                    self._answer(values["ask"], self._conditions)
                else:
                    self._requests.put(request)
                del request
        except BrokenChannel:
            pass  # it ended
        finally:
            with self._turns:
                self._over = True
                if self._busy:
                    os.killpg(os.getpid(), signal.SIGKILL)  # it leads a session of its own
            self._requests.put(None)

    def _answer(self, number: int, work: Any) -> None:
        with contextlib.suppress(BrokenChannel):  # the reader sees it too
            try:
                values, groups = work()
                self._channel.send({**values, "answer": number}, groups)
            except BrokenChannel:
                raise
            except (Exception, SystemExit) as error:  # noqa: BLE001  the user's code failed: the participant goes on
                self._channel.send({**_failed(error), "answer": number})

    def _load(self) -> Answer:
        self._app = load_app(self._path)
        return {}, {}

    def _conditions(self) -> Answer:
        assert self._app is not None, "the participant asks when the app is loaded"
        asked = self._app.get("conditions")
        return {"holds": asked is None or bool(asked(self._participant_id))}, {}

    def _cancel(self) -> None:
        cancel = getattr(self._trainer, "cancel", None)
        if callable(cancel):
            try:
                cancel()
            except Exception:
                log.exception("cancel_failed", participant=self._participant_id)

    def _work(self, values: dict[str, Any], groups: Groups) -> Answer:
        if self._trainer is None:
            assert self._app is not None
            self._trainer = trainer_of(self._app, self._participant_id)
            fault("trainer-built")
        trainer = self._trainer
        if "folder" in values:
            trainer.keep_in(Path(values["folder"]))
        match values["do"]:
            case "hello":
                return self._hello(trainer), {}
            case "train":
                config = TrainingConfig.model_validate(values["config"])
                base = groups["parameters"]
                more = {"correction": groups["correction"]} if "correction" in groups else {}
                result = plain_result(base, trainer.train(base, config, **more))
                fault("trainer-done")
                counts = {"num_examples": result.num_examples, "num_steps": result.num_steps}
                return {**counts, "metrics": dict(result.metrics)}, {"parameters": result.parameters}  # type: ignore[dict-item]
            case "evaluate":
                metrics = plain_metrics(trainer.evaluate(groups["parameters"]))
                return {"num_examples": num_examples_of(trainer), "metrics": metrics}, {}
            case other:
                raise AppError(f"unknown request {other!r}")

    def _hello(self, trainer: Any) -> dict[str, Any]:
        assert self._app is not None
        return {
            "name": type(trainer).__name__,
            "num_examples": num_examples_of(trainer),
            "replies": replies_of(trainer),
            "corrects": takes_correction(trainer),
            "evaluates": hasattr(trainer, "evaluate"),
            "keeps": keeps(trainer),
            "conditions": self._app.get("conditions") is not None,
        }


def _failed(error: BaseException) -> dict[str, Any]:
    kinds = {MissingExtra: "extra", AppError: "app", NotImplementedError: "not_implemented"}
    kind = next((word for one, word in kinds.items() if isinstance(error, one)), "other")
    text = str(error) if kind == "not_implemented" else in_short(error)
    trace = "".join(traceback.format_exception(error)).rstrip("\n")
    return {"error": text, "kind": kind, "traceback": trace[-MOST_TRACEBACK_CHARS:]}


def _leave_sigterm_to_the_participant() -> None:
    own = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != own:  # a process that the app has forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, handle)


def main(argv: list[str]) -> None:
    """Answer requests until the socket ends."""
    app, participant_id, descriptor, level = argv
    prepare_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the process may be killed
    log_to(logging.StreamHandler(sys.stderr), debug=level == "debug")
    redact_uncaught()
    _leave_sigterm_to_the_participant()
    keep_freed_memory()
    end = socket.socket(fileno=int(descriptor))
    end.set_inheritable(False)
    Worker(Channel(end), Path(app), participant_id).run()


if __name__ == "__main__":
    main(sys.argv[1:])
    leave(0)
    sys.exit(0)
