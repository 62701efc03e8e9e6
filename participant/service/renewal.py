"""The renewal of a device's certificate: asked for in time, kept on disk, and used from the next idle moment on.

1. `Credentials` says when a request is due. It is sent again until there is an answer.
2. Training and updates go on meanwhile. Both certificates work until the older one ends.
3. A connection outlives the end of its certificate. A new one is made when nothing is in hand, so that nothing has to
   be sent twice. If that never happens, the next connection takes the new certificate anyway.
"""

from __future__ import annotations

import uuid
from concurrent.futures import Future
from typing import Protocol

from fedmq.participant.service.context import ServiceContext
from fedmq.participant.service.sending import publish
from fedmq.schemas.codec import encode
from fedmq.schemas.errors import FedmqError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import Certificate, CertificateInstalled, CertificateRequest

log = EventLog(__name__)

LOOK_S = 30.0
"""Time between two looks at the certificate's age, and the first wait for an answer."""
MOST_WAIT_S = 3600.0
"""Longest wait for an answer, before the request is sent again."""


class Credentials(Protocol):
    """A device's certificate and its key on disk. Both methods may raise FedmqError, and are called again then."""

    def request(self) -> CertificateRequest | None:
        """Return the request to send if the certificate is to be renewed, with the same key each time."""

    def install(self, answer: Certificate) -> CertificateInstalled | None:
        """Put a new certificate in the place of the old one; None if it is not the one that was asked for."""


class Renewal:
    """The renewals of one participant. The service's thread calls everything; times are of its monotonic clock."""

    def __init__(self, context: ServiceContext, credentials: Credentials) -> None:
        self._context = context
        self._credentials = credentials
        self._look_at = float("-inf")
        self._wait_s = LOOK_S
        self._reconnect = False

    def tick(self, now: float, *, connected: bool) -> None:
        """Send a request if one is due and nobody has answered the last one for a while."""
        if not connected or now < self._look_at:
            return
        self._look_at = now + LOOK_S
        try:
            request = self._credentials.request()
        except FedmqError as error:
            log.error("certificate_not_renewed", participant=self._context.participant_id, error=error)
            return
        if request is None:
            return
        self._look_at = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, MOST_WAIT_S)
        log.info("certificate_requested", participant=self._context.participant_id)
        self._send(request)

    def on_answer(self, answer: Certificate) -> None:
        """Keep a certificate that was asked for. Any other answer changes nothing but the log."""
        participant = self._context.participant_id
        if answer.verdict != "issued":
            level = log.info if answer.verdict == "waiting" else log.error
            level(f"certificate_{answer.verdict}", participant=participant, detail=answer.detail)
            return
        try:
            installed = self._credentials.install(answer)
        except FedmqError as error:
            log.error("certificate_not_renewed", participant=participant, error=error)
            return
        if installed is None:
            log.warning("certificate_ignored", participant=participant, detail="it is not the one that was asked for")
            return
        log.info("certificate_renewed", participant=participant, detail="the next connection takes it")
        self._wait_s = LOOK_S
        self._reconnect = True
        self._send(installed)

    def when_idle(self) -> None:
        """Make a new connection if there is a new certificate. Call this only if nothing is in hand."""
        if self._reconnect:
            self._reconnect = False
            self._context.transport.reconnect("the certificate is new")

    def _send(self, message: CertificateRequest | CertificateInstalled) -> None:
        sent = publish(
            self._context,
            self._context.topology.control,
            encode(message),
            kind=message.kind,
            message_id=uuid.uuid4().hex,
            task_id=None,
        )
        sent.add_done_callback(_warn_of_loss)


def _warn_of_loss(done: Future[None]) -> None:
    error = done.exception()
    if error is not None:
        log.warning("certificate_message_lost", detail=f"{type(error).__name__}: {error}")
