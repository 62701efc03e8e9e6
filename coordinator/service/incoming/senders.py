"""Asks about each message whether its sender may send it, before anything else is made of it.

The rules are in coordinator.decisions.participants.identity. Here they meet the delivery's user, the
fleet's members and the core's participants.
"""

from __future__ import annotations

from fedmq.broker_config.security import IdentityKind
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.participants import identity
from fedmq.coordinator.decisions.participants.identity import SenderFault
from fedmq.coordinator.members import Everybody, Members

LOOK_S = 1.0
"""Seconds between two looks for participants that were revoked without a message from them."""
MOST_LOOKS = 1000
"""Most participants that one look asks about. In a larger federation a look goes on where the last one ended."""


class Senders:
    """The senders of one run. The loop's thread calls everything."""

    def __init__(self, core: Core, kind: IdentityKind, members: Members) -> None:
        self._core = core
        self._by_user = kind == "user"
        self._members = members
        self._due_s = float("inf") if isinstance(members, Everybody) else 0.0
        self._next = 0
        self._news: list[str] = []

    def unnamed(self, user: str | None) -> SenderFault | None:
        """Refuse a message without a user, where each must have one. This needs nothing of the message's body."""
        return identity.unnamed(user) if self._by_user else None

    def fault(self, participant_id: str, user: str | None) -> SenderFault | None:
        """Return why a message in this participant's name is refused from this user; None if it is not."""
        if self._by_user:
            found = identity.impostor(participant_id, user)
        else:
            stranger = self._core.stranger(participant_id, user)
            found = None if stranger is None else SenderFault("unknown_participant", stranger)
        return found or self._outsider(participant_id)

    def fault_of_unreadable(self, user: str | None) -> SenderFault | None:
        """Return why a message that names no participant is refused from this user; None if that is not known."""
        return self._outsider(user) if self._by_user and user is not None else self.unnamed(user)

    def chunk_sender(self, participant_id: str) -> str | None:
        """Return the only user whose chunks are taken for this participant's; None if anybody's are."""
        return participant_id if self._by_user else None

    def _outsider(self, participant_id: str) -> SenderFault | None:
        found = identity.outsider(participant_id, self._members.standing(participant_id))
        if found is not None and found.reason == "revoked":
            self._note(participant_id)
        return found

    # Revoked participants

    @property
    def due_s(self) -> float:
        """Run time at which `look` has something to do."""
        return self._due_s

    def look(self, now: float) -> None:
        """Ask about the next participants."""
        self._due_s = now + LOOK_S
        ids = self._core.participant_ids()
        if self._next >= len(ids):
            self._next = 0
        for participant_id in ids[self._next : self._next + MOST_LOOKS]:
            if self._members.standing(participant_id) == "revoked":
                self._note(participant_id)
        self._next += MOST_LOOKS

    def ask_again(self, participant_id: str) -> None:
        """Ask about a participant whose message was judged a while ago: `news` tells if it was revoked since."""
        self._outsider(participant_id)

    def news(self) -> list[str]:
        """Return the participants that the core does not know to be revoked, once."""
        news, self._news = self._news, []
        return news

    def revoked_before(self) -> tuple[str, ...]:
        """Return all known participants that are revoked, at the start."""
        if isinstance(self._members, Everybody):
            return ()
        return tuple(one for one in self._core.participant_ids() if self._members.standing(one) == "revoked")

    def _note(self, participant_id: str) -> None:
        known = self._core.knows(participant_id) and not self._core.is_revoked(participant_id)
        if known and participant_id not in self._news:
            self._news.append(participant_id)
