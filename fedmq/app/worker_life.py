"""One life of the participant's worker process (fedmq.app.trainer_worker), from its start to its end."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fedmq.app.channel import BrokenChannel, Channel, Groups
from fedmq.app.children import Watchdog, importable, python, without_settings
from fedmq.app.threads import tensorflow_environment
from fedmq.schemas.errors import AppError, MissingExtra, TrainerError
from fedmq.schemas.local.console_log import debugging
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.parameters import Parameters

log = EventLog(__name__)

LEAVE_S = 5.0
"""Time to leave for a process that was told to."""

Answer = tuple[dict[str, Any], dict[str, Parameters]]
Waiting = Future[Answer | None]
"""An answer to come; None if there will be none."""


class WorkerEnded(Exception):
    """The process is gone, by itself or because somebody ended it."""


class RemoteTraceback(Exception):
    """Traceback of the worker. As the cause of an error it is printed before our own, as concurrent.futures does it."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}\n"""'


class WorkerLife:
    """A process that has been started. `ask` waits for its answer; several threads may ask at the same time."""

    def __init__(self, app: Path, participant_id: str, *, faults: bool) -> None:
        """Start it. `faults` says if it may die at an armed point (fedmq.broker_config.faults)."""
        self._participant_id = participant_id
        environ = importable(without_settings(tensorflow_environment()))
        if not faults:
            environ.pop("FEDMQ_FAULT", None)
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        with theirs:
            level = "debug" if debugging() else "info"
            self._process = subprocess.Popen(  # noqa: S603 (this interpreter, our own module)
                python("fedmq.app.trainer_worker", str(app), participant_id, str(theirs.fileno()), level),
                stdin=subprocess.DEVNULL,
                env=environ,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._watchdog = Watchdog(self._process.pid)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._loading: Waiting = Future()
        self._waiting = {0: self._loading}
        self._told_to_end = False
        self._gone = threading.Event()
        self._reader = threading.Thread(target=self._read, name=f"answers-{participant_id}", daemon=True)
        self._reader.start()
        threading.Thread(target=self._see_off, name=f"trainer-{participant_id}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        """True if no question can be asked any more."""
        return self._told_to_end or self._gone.is_set()

    def loaded(self, timeout_s: float | None = None) -> None:
        """Wait until the app is loaded. Raises as `ask` does."""
        self._result(self._loading, timeout_s)

    def ask(self, values: Mapping[str, Any], groups: Groups | None = None, *, timeout_s: float | None = None) -> Answer:
        """Send a request, and wait for the answer.

        Raises what the app or the trainer raised: AppError, MissingExtra, NotImplementedError, TrainerError for all
        else. Raises WorkerEnded if the process ends, and TimeoutError.
        """
        with self._lock:
            number = next(self._numbers)
            if self._gone.is_set():
                raise WorkerEnded(self.how_it_ended())
            waiting: Waiting = Future()
            self._waiting[number] = waiting
        request = {**values, "ask": number}
        if timeout_s is None:
            self._send(request, groups)
        else:  # a process that is stopped reads nothing, and another thread may wait for it with a model
            threading.Thread(target=self._send, args=(request, groups), daemon=True).start()
        return self._result(waiting, timeout_s)

    def _send(self, request: Mapping[str, Any], groups: Groups | None) -> None:
        try:
            self._channel.send(request, groups)
        except BrokenChannel:
            log.debug("trainer_not_reached", pid=self.pid)  # it ends, or has ended

    def tell(self, what: str) -> None:
        """Send a request that has no answer. It waits for a process that does not read."""
        self._send({"do": what, "ask": 0}, None)

    def kill(self) -> None:
        """Kill the process at once, with all that it has started."""
        self._end(0.0)

    def leave(self) -> None:
        """Let the process leave, and wait until it is gone."""
        self._end(LEAVE_S)

    def how_it_ended(self) -> str:
        """Say how the process ended, for a decline."""
        status = self._process.returncode
        if status is None or self._told_to_end:
            return "its process was ended"
        if status >= 0:
            return f"its process ended with exit status {status}"
        name = signal.Signals(-status).name if -status in list(signal.Signals) else f"signal {-status}"
        why = ": was there not enough memory?" if -status == signal.SIGKILL else ""
        return f"its process was killed by {name}{why}"

    def _end(self, grace_s: float) -> None:
        self._told_to_end = True
        self._channel.close()
        if not (grace_s and self._gone.wait(grace_s)):
            self._kill_session()
        self._gone.wait()

    def _kill_session(self) -> None:
        with self._lock:  # nobody reaps the leader meanwhile, so its number stays its own
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self) -> None:
        """Hand out the answers."""
        try:
            while (answer := self._channel.receive()) is not None:
                with self._lock:
                    waiting = self._waiting.pop(answer[0].pop("answer"), None)
                if waiting is not None:
                    waiting.set_result(answer)
                del answer, waiting  # a model may be in both
        except (BrokenChannel, KeyError, TypeError) as error:
            log.debug("trainer_channel_broken", pid=self.pid, detail=error)
        if not self._told_to_end:
            self._kill_session()

    def _see_off(self) -> None:
        """Wait for the process's end, and end what it has left behind.

        Its end of the socket does not tell: processes that the app has forked may hold it too.
        """
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._kill_session()
        self._channel.close()
        self._reader.join()
        self._watchdog.close()
        with self._lock:
            self._process.wait()
            self._gone.set()
            left = list(self._waiting.values())
            self._waiting.clear()
        if not self._told_to_end:
            log.warning(
                "trainer_process_ended", participant=self._participant_id, pid=self.pid, detail=self.how_it_ended()
            )
        self._channel.release()
        for waiting in left:
            waiting.set_result(None)

    def _result(self, waiting: Waiting, timeout_s: float | None) -> Answer:
        answer = waiting.result(timeout_s)
        if answer is None:
            raise WorkerEnded(self.how_it_ended())
        values = answer[0]
        if "error" not in values:
            return answer
        kinds: Mapping[str, type[Exception]] = {
            "app": AppError, "extra": MissingExtra, "not_implemented": NotImplementedError,
        }  # fmt: skip
        raise kinds.get(values["kind"], TrainerError)(values["error"]) from RemoteTraceback(values["traceback"])
