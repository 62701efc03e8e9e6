"""The watch over one side while it works on a message: time, memory, log lines, and errors that nobody expected."""

from __future__ import annotations

import logging
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field

MOST_BODY_BYTES = 1024 * 1024
"""A body below this size must be judged within the time limit."""
TRIES = 4
"""Measurements of a message that seems slow. The least of them counts: on a busy machine the others are too long."""
WORTH_MEASURING_S = 0.005
"""Wall time above which a message's CPU time is looked at. CPU time is never more than wall time, and costs a system
call to measure."""
LARGE_BYTES = 8192
"""Size from which the CPU time of the first delivery is measured: a second one may be cheaper."""
EACH_TRACED = 101
"""One message in so many is watched for the memory that it takes: the watching makes it several times as slow."""
MOST_ALLOCATED_BYTES = 8 * 1024**2


class Failed(Exception):
    """Something happened that must not, with the message that did it."""

    def __init__(self, what: str, queue: str = "", properties: bytes = b"", body: bytes = b"") -> None:
        super().__init__(what)
        self.what, self.queue, self.properties, self.body = what, queue, properties, body


@dataclass(slots=True)
class Figures:
    """Figures of an episode, or of many."""

    messages: int = 0
    coded: int = 0
    """Messages among them whose tensors are in a codec, or are said to be."""
    slowest_s: float = 0.0
    slowest_bytes: int = 0
    slowest_names: str = ""
    peak_bytes: int = 0
    honest: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    """Messages by what became of them: the reason of a dead letter, or "settled"."""

    def add(self, other: Figures) -> None:
        self.messages += other.messages
        self.coded += other.coded
        self.honest += other.honest
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        if other.slowest_s > self.slowest_s:
            self.slowest_s, self.slowest_bytes = other.slowest_s, other.slowest_bytes
            self.slowest_names = other.slowest_names
        for name, count in other.outcomes.items():
            self.outcomes[name] = self.outcomes.get(name, 0) + count


class LogCheck(logging.Handler):
    """Reads every record as a person's terminal would get it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.wrong: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if not message.isprintable():
            self.wrong.append(f"a log line with a control character: {message!r}")
        if record.exc_info and record.exc_info[1] is not None:
            self.wrong.append(f"{message[:200]}: {type(record.exc_info[1]).__name__}: {record.exc_info[1]}")


@dataclass(slots=True)
class _Message:
    queue: str
    properties: bytes
    body: bytes
    names: str
    tries: int = 0
    best_s: float = float("inf")
    traced: bool = False
    measured: bool = False
    """True if CPU time is measured, and not wall time, which is an upper bound of it."""


class Watch:
    """Times each message from its delivery until its side has nothing more to do."""

    def __init__(
        self, put: Callable[[str, bytes, bytes], None], limit_s: float, log: LogCheck, large_bytes: int = LARGE_BYTES
    ) -> None:
        self.figures = Figures()
        self._put = put
        self._limit_s = limit_s
        self._log = log
        self._large_bytes = large_bytes
        self._message: _Message | None = None
        self._began_s = 0.0

    def send(self, queue: str, properties: bytes, body: bytes, names: str) -> None:
        """Deliver a message and begin to watch."""
        self.figures.messages += 1
        self._message = _Message(queue, properties, body, names)
        self._message.traced = self.figures.messages % EACH_TRACED == 0
        self._message.measured = len(body) > self._large_bytes
        self._deliver(self._message)

    def busy(self) -> bool:
        """Note that the side has nothing to do. True if the message is delivered once more, to measure it again.

        Raises Failed if the message took too much, or left an error in the log."""
        message = self._message
        if message is None:
            return False
        took_s = (time.thread_time() if message.measured else time.perf_counter()) - self._began_s
        if message.traced:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            self.figures.peak_bytes = max(self.figures.peak_bytes, peak)
            if peak > MOST_ALLOCATED_BYTES + 8 * len(message.body):
                raise self.failure(f"it took {peak / 1e6:.1f} MB")
        elif len(message.body) < MOST_BODY_BYTES:
            if not message.measured and took_s > max(WORTH_MEASURING_S, self.figures.slowest_s):
                message.measured = True
                self._deliver(message)
                return True
            message.best_s = min(message.best_s, took_s)
            if message.best_s > self._limit_s and message.tries < TRIES:
                message.tries += 1
                self._deliver(message)
                return True
            if message.best_s > self._limit_s:
                raise self.failure(f"it took {message.best_s * 1e3:.1f} ms of CPU time, the least of {TRIES + 1} tries")
            if message.measured and message.best_s > self.figures.slowest_s:
                self.figures.slowest_s, self.figures.slowest_bytes = message.best_s, len(message.body)
                self.figures.slowest_names = message.names
        if self._log.wrong:
            raise self.failure(self._log.wrong[0])
        self._message = None
        return False

    def failure(self, what: str) -> Failed:
        """Return the failure of the message that is watched now."""
        if tracemalloc.is_tracing():
            tracemalloc.stop()
        if self._message is None:
            return Failed(what)
        message = self._message
        return Failed(f"{what} ({message.names})", message.queue, message.properties, message.body)

    def _deliver(self, message: _Message) -> None:
        if message.traced:
            tracemalloc.start()
        self._began_s = time.thread_time() if message.measured else time.perf_counter()
        self._put(message.queue, message.properties, message.body)
