"""Two ways to run the demo's federation: processes over RabbitMQ, or threads over the embedded transport."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, Self

from fedmq.app.threads import prepare_tensorflow
from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.config.file import FederationConfig, load_config
from fedmq.config.overrides import COMPOSE, PREFIX, PROCESS_LEVEL
from fedmq.run.processes import Children
from fedmq.schemas.errors import FedmqError
from fedmq.schemas.local.event_log import EventLog

log = EventLog(__name__)

JOIN_S = 15.0
THREADS_EACH = "1"
"""Number of TensorFlow threads of each participant: five participants share the machine."""
COORDINATOR = "coordinator"


class Backend(Protocol):
    """The demo's questions while it waits."""

    def coordinator_ended(self, timeout_s: float) -> str | None:
        """Wait up to `timeout_s`. Returns how the coordinator ended, or None while it runs."""

    def participants_ended(self) -> dict[str, str]:
        """Return how each participant ended that has ended, by name."""


class ProcessBackend:
    """Processes: `python -m fedmq coordinator`, and `python -m fedmq participant` for each participant."""

    def __init__(self, folder: Path, names: Sequence[str], broker_url: str) -> None:
        # The demo has its own settings. Variables that are set for another federation do not reach it.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) or k in PROCESS_LEVEL - COMPOSE}
        environ = {"FEDMQ_TF_THREADS": THREADS_EACH, **kept, "FEDMQ_BROKER_URL": broker_url}
        self._children = Children(folder / "logs", environ)
        self._config = str(folder / "federation.toml")
        self._names = names

    def __enter__(self) -> Self:
        try:
            self._children.start(COORDINATOR, ["coordinator", "--config", self._config])
            for name in self._names:
                self._children.start(name, ["participant", "--config", self._config, "--id", name])
        except BaseException:
            self._children.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._children.stop()

    def coordinator_ended(self, timeout_s: float) -> str | None:
        """See Backend."""
        status = self._children.wait(COORDINATOR, timeout_s)
        if status is None:
            return None
        return f"the coordinator ended with status {status}" + self._said(COORDINATOR, status)

    def participants_ended(self) -> dict[str, str]:
        """See Backend."""
        found = {}
        for name in self._names:
            status = self._children.status(name)
            if status is not None:
                found[name] = f"ended with status {status}" + self._said(name, status)
        return found

    def _said(self, name: str, status: int) -> str:
        """Return the last line that it wrote, if it ended by an error of its own."""
        return f" ({self._children.tail(name, 1)})" if status > 0 else ""


class EmbeddedBackend:
    """Threads of this process. Their messages are the same, and are encoded too."""

    def __init__(self, config: Path, names: Sequence[str]) -> None:
        self._config_path = config
        self._names = names
        self._broker = EmbeddedBroker()
        self._threads: dict[str, threading.Thread] = {}
        self._errors: dict[str, str] = {}
        self._lock = threading.Lock()
        self._stops: list[Callable[[], None]] = []
        self._stopping = False
        self._stderr = -1

    def __enter__(self) -> Self:
        self._stderr = self._divert_stderr(self._config_path.parent / "logs" / "tensorflow.log")
        os.environ.setdefault("FEDMQ_TF_THREADS", THREADS_EACH)
        prepare_tensorflow()
        config = load_config(self._config_path, environ={})
        self._start(COORDINATOR, lambda: self._coordinate(config))
        for name in self._names:
            self._start(name, lambda name=name: self._participate(config, name))  # type: ignore[misc]
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopping = True
            stops = list(self._stops)
        for stop in stops:
            stop()
        for thread in self._threads.values():
            thread.join(JOIN_S)
        os.dup2(self._stderr, 2)
        os.close(self._stderr)

    @staticmethod
    def _divert_stderr(path: Path) -> int:
        """Send TensorFlow's own remarks to a file: they would tear the live view. Returns the old descriptor 2."""
        path.parent.mkdir(parents=True, exist_ok=True)
        before = os.dup(2)
        with path.open("ab") as log_file:
            os.dup2(log_file.fileno(), 2)
        return before

    def coordinator_ended(self, timeout_s: float) -> str | None:
        """See Backend."""
        thread = self._threads[COORDINATOR]
        thread.join(timeout_s)
        return None if thread.is_alive() else self._errors.get(COORDINATOR, "the coordinator ended")

    def participants_ended(self) -> dict[str, str]:
        """See Backend."""
        return {name: self._errors.get(name, "ended") for name in self._names if not self._threads[name].is_alive()}

    def _start(self, name: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except FedmqError as e:
                self._errors[name] = f"ended: {e}"
            except Exception as e:
                log.exception("participant_failed" if name != COORDINATOR else "coordinator_failed", name=name)
                self._errors[name] = f"ended: {type(e).__name__}: {e}"

        self._threads[name] = threading.Thread(target=run, name=name, daemon=True)
        self._threads[name].start()

    def _coordinate(self, config: FederationConfig) -> None:
        from fedmq.run.coordinator import coordinator_for

        with coordinator_for(config, lambda: EmbeddedTransport(self._broker, COORDINATOR)) as service:
            if self._may_run(service.stop):
                service.run()

    def _participate(self, config: FederationConfig, name: str) -> None:
        from fedmq.run.participant import participant_for

        service = participant_for(config, name, EmbeddedTransport(self._broker, name), in_process=True)
        if self._may_run(service.stop):
            service.run()

    def _may_run(self, stop: Callable[[], None]) -> bool:
        with self._lock:
            self._stops.append(stop)
            return not self._stopping
