"""Requests for certificates, from the control queue to the fleet's registrar and back.

The registrar signs, writes its inventory and asks the broker's administration, which may take seconds. So a thread of
its own asks it, and the loop never waits. A request that is lost on the way, by a crash or because too many wait, costs
nothing: the device asks again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import Empty, Full, Queue
from typing import NamedTuple, Protocol

from fedmq.schemas.errors import FedmqError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import Certificate, CertificateInstalled, CertificateRequest

log = EventLog(__name__)

MOST_WAITING = 64
"""Requests that wait for the registrar. Those beyond are dropped."""
TIDY_S = 60.0
"""Time between two looks for tokens that are over."""
CLOSE_S = 2.0


class Registrar(Protocol):
    """The fleet's side: it decides who gets a certificate. One thread calls it. All methods may raise FedmqError."""

    def on_request(self, message: CertificateRequest, user: str | None) -> Certificate | None:
        """Return the answer to a request of this broker's user; None if nobody is to be answered."""

    def on_installed(self, message: CertificateInstalled, user: str | None) -> None:
        """Note that a device has its certificate."""

    def tidy(self) -> None:
        """Do what has become due."""


class CertificateAnswered(NamedTuple):
    """An answer for a user's queue."""

    user: str
    answer: Certificate


class CertificateDesk:
    """The thread that asks the registrar. `put` gets its answers, and may be called from that thread."""

    def __init__(self, registrar: Registrar, put: Callable[[CertificateAnswered], None]) -> None:
        self._registrar = registrar
        self._put = put
        self._waiting: Queue[tuple[CertificateRequest | CertificateInstalled, str | None] | None] = Queue(MOST_WAITING)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="certificates", daemon=True)
        self._thread.start()

    def hand_over(self, message: CertificateRequest | CertificateInstalled, user: str | None) -> None:
        """Let a message wait for the registrar. Never blocks."""
        try:
            self._waiting.put_nowait((message, user))
        except Full:
            log.warning("certificate_message_dropped", participant=message.participant_id, detail="too many wait")

    def close(self) -> None:
        """End the thread. The message that it works on is answered to nobody."""
        self._closed.set()
        with contextlib.suppress(Full):  # the thread looks at `_closed` after each message
            self._waiting.put_nowait(None)
        self._thread.join(CLOSE_S)

    def _work(self) -> None:
        while not self._closed.is_set():
            try:
                item = self._waiting.get(timeout=TIDY_S)
            except Empty:
                item = None
            if not self._closed.is_set():
                self._serve(item)

    def _serve(self, item: tuple[CertificateRequest | CertificateInstalled, str | None] | None) -> None:
        try:
            if item is None:
                self._registrar.tidy()
                return
            message, user = item
            if isinstance(message, CertificateInstalled):
                self._registrar.on_installed(message, user)
            else:
                answer = self._registrar.on_request(message, user)
                if answer is not None and user is not None and not self._closed.is_set():
                    self._put(CertificateAnswered(user, answer))
        except FedmqError as error:
            log.warning("certificate_not_decided", error=error, detail="the device asks again")
        except Exception:  # a request of somebody ends no thread
            log.exception("certificate_not_decided", detail="the device asks again")
