"""Messages in the participant's own queue that somebody else than the coordinator put there."""

from __future__ import annotations

from fedmq.schemas.local.event_log import EventLog

log = EventLog(__name__)

MOST_LOGGED = 16
"""Most users that get a line in the log each: a stranger may have many."""


class Strangers:
    """Knows the one user who is believed, and counts the others' messages."""

    def __init__(self, participant_id: str, coordinator_user: str | None) -> None:
        """`coordinator_user`: None believes everybody, as identity "open" does."""
        self._participant_id = participant_id
        self._coordinator_user = coordinator_user
        self._logged: set[str | None] = set()
        self.count = 0
        """Number of messages that were dropped."""

    def sent(self, user: str | None) -> bool:
        """Return True if a message of this user is to be dropped, and count it. The first of each user is logged."""
        if self._coordinator_user is None or user == self._coordinator_user:
            return False
        self.count += 1
        if user not in self._logged and len(self._logged) < MOST_LOGGED:
            self._logged.add(user)
            sender = "names no user" if user is None else f"is of user {user!r}"
            log.warning(
                "stranger_ignored", participant=self._participant_id,
                detail=f"a message in our queue {sender}, expected {self._coordinator_user!r}; it is dropped",
            )  # fmt: skip
        return True
