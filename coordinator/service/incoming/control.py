"""Reads the messages of the control queue, hellos and declines, into events of the core."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import ParticipantSeen, TaskDeclined
from fedmq.coordinator.decisions.participants.back_offs import FAILURES
from fedmq.coordinator.service.incoming.senders import Senders
from fedmq.schemas.codec import Limits, decode
from fedmq.schemas.errors import PeerError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import CertificateInstalled, CertificateRequest, Decline, Hello, Model
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
    if isinstance(message, Model):  # nobody's: it names no participant
        return ControlPoison("malformed", "a message of kind model on the control queue")
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


MOST_DECLINERS = 20_000
"""Number of participants that are remembered for one reason."""


class Refusals:
    """Tells of a reason for which every participant declines: while nobody trains, the run stands still.

    It tells again only when twice as many participants do, or after an accepted update.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._who: dict[str, set[str]] = {}
        """Participants that declined a task since the last accepted update, by the reason."""
        self._told: dict[str, int] = {}

    def on_decline(self, event: TaskDeclined) -> None:
        """Log if all participants that are here have declined for this reason since the last accepted update."""
        if event.reason not in FAILURES or not self._core.holds(event.task_id):
            return
        who = self._who.setdefault(event.reason, set())
        if len(who) >= MOST_DECLINERS:
            return
        who.add(event.participant_id)
        if len(who) < max(self._core.here, 2 * self._told.get(event.reason, 0)):
            return
        self._told[event.reason] = len(who)
        log.warning(
            "every_participant_declines",
            participants=len(who),
            reason=event.reason,
            detail=event.detail,
            why="no update was accepted since: put this right in the app, the data or the federation file",
        )

    def on_accepted(self) -> None:
        """Begin anew: somebody has trained."""
        if self._who:
            self._who, self._told = {}, {}


MOST_TOLD = 1000
"""Number of log lines that are remembered, so that they are not repeated."""


class LeftOut:
    """Tells, once a session, of each participant that gets no task because the strategy has no room for it.

    It also tells, once a user, of participants that are turned away because too many are known.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._told: OrderedDict[tuple[str | None, str], None] = OrderedDict()

    def on_hello(self, hello: Hello, user: str | None) -> None:
        """Log if the participant gets no tasks: nothing else would say why."""
        participant = hello.participant_id
        if not self._core.knows(participant):
            if self._is_new((user, "turned away")):
                detail = "too many participants are known: raise run.max_participants or run.max_per_user"
                log.warning("participant_turned_away", participant=participant, user=user, detail=detail)
        elif not self._core.has_room_for(participant) and self._is_new((participant, hello.session_id)):
            detail = "it gets no tasks: the strategy has room for num_participants, and others have these places"
            log.warning("participant_left_out", participant=participant, detail=detail)

    def _is_new(self, told: tuple[str | None, str]) -> bool:
        if told in self._told:
            return False
        self._told[told] = None
        if len(self._told) > MOST_TOLD:
            self._told.popitem(last=False)
        return True
