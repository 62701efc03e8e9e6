"""Steps that the service takes once: restore the agent's state, ask for the data's size, handle signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fedmq.participant.decisions.events import Restored
from fedmq.participant.spool.spool import Spool
from fedmq.schemas.codec import Limits, decode
from fedmq.schemas.errors import PeerError
from fedmq.schemas.local.clocks import age_s, moment_now
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.local.signals import handled_by
from fedmq.schemas.messages import Task

log = EventLog(__name__)


def restore(spool: Spool, limits: Limits) -> Restored:
    """Read the state that the last process left on disk.

    A task is set aside if this build cannot decode it, or if its parameters are not whole.
    """
    record = spool.read_sent()
    task, age = None, None
    found = spool.read_task()
    if found is not None:
        try:
            message = decode(found[0], limits).message
        except PeerError as error:
            message = None
            spool.set_aside_task(str(error))
        if isinstance(message, Task) and message.chunks is not None and not spool.payload.holds(message.chunks):
            message = None
            spool.set_aside_task("its parameters are missing, or not whole")
        if isinstance(message, Task):
            task, age = message, age_s(found[1], moment_now())
    outbox = spool.outbox()
    if task is not None or outbox:
        task_id = task.task_id if task is not None else None
        log.info("restored", folder=spool.folder, task=task_id, age_s=age, outbox=len(outbox))
    model = spool.read_model()
    held = None if model is None else model.held
    return Restored(task, age, outbox, record.sent, record.done, spool.unsettled(), held)


def num_examples_of(trainer: Any) -> int | None:
    """Return the number of the trainer's examples; None if it does not say before its first result."""
    found = getattr(trainer, "num_examples", None)
    return None if found is None else int(found)


@contextmanager
def signals(stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM and SIGINT ask for a stop if this is the main thread. A second signal has its default effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, _frame: object) -> None:
        signal.signal(number, before[number])
        stop()

    with handled_by(on_signal) as before:
        yield
