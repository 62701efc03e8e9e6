"""Reads the messages of the control queue, hellos and declines, into events of the core."""

from __future__ import annotations

from dataclasses import dataclass

from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import ParticipantSeen, TaskDeclined
from fedmq.coordinator.service.senders import Senders
from fedmq.schemas.codec import Limits, decode
from fedmq.schemas.errors import PeerError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import CertificateInstalled, CertificateRequest, Decline, Hello
from fedmq.schemas.texts import escaped

log = EventLog(__name__)

MOST_DETAIL_CHARS = 2000
"""Characters of a decline's detail that the log and the ledger keep. Our own participants send no more."""


COUNTED = frozenset({"unknown_sender", "wrong_sender", "not_enrolled", "revoked"})
"""Reasons that the ledger counts: somebody tried to be somebody else, or to come back."""


@dataclass(frozen=True, slots=True)
class ControlPoison:
    """A message that is refused."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class CertificateNews:
    """A message for the fleet's registrar, which looks at its sender itself: a device that joins has a temporary
    user."""

    message: CertificateRequest | CertificateInstalled
    user: str | None


ControlEvent = ParticipantSeen | TaskDeclined


def read_control(
    senders: Senders, limits: Limits, delivery: Delivery
) -> ControlEvent | CertificateNews | ControlPoison:
    """Return the event of one message."""
    fault = senders.unnamed(delivery.user_id)
    if fault is not None:
        return ControlPoison(*fault)
    try:
        message = decode(delivery.body, limits).message
    except PeerError as error:
        return ControlPoison(*(senders.fault_of_unreadable(delivery.user_id) or (error.reason, str(error))))
    if isinstance(message, CertificateRequest | CertificateInstalled):
        return CertificateNews(message, delivery.user_id)
    fault = senders.fault(message.participant_id, delivery.user_id)
    if fault is not None:
        return ControlPoison(*fault)
    if not isinstance(message, Hello | Decline):
        return ControlPoison("malformed", f"a message of kind {message.kind} on the control queue")
    if isinstance(message, Hello):
        return ParticipantSeen(message, delivery.user_id)
    m, detail = message, escaped(message.detail)[:MOST_DETAIL_CHARS]
    log.info("task_declined", participant=m.participant_id, task=m.task_id, reason=m.reason, detail=detail)
    return TaskDeclined(m.participant_id, m.task_id, m.run_id, m.reason, detail, m.retry_after_s)


class LeftOut:
    """Tells, once a session, of each participant that gets no task because the strategy has no room for it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._told: set[tuple[str, str]] = set()

    def on_hello(self, hello: Hello) -> None:
        """Log if the core has no room for the participant: nothing else would say why it never gets a task."""
        session = (hello.participant_id, hello.session_id)
        if session not in self._told and not self._core.has_room_for(hello.participant_id):
            self._told.add(session)
            detail = "it gets no tasks: the strategy has room for num_participants, and these came before it"
            log.warning("participant_left_out", participant=hello.participant_id, detail=detail)
