"""The coordinator's one question about its fleet: who is in it.

`fedmq.fleet` answers it from its inventory, and `Everybody` where there is no fleet. fedmq/run/coordinator.py hands the
one or the other to the service.
"""

from __future__ import annotations

from typing import Literal, Protocol

Standing = Literal["enrolled", "revoked", "unknown"]


class Members(Protocol):
    """The members of a fleet. The loop asks at every message, from its one thread, so an answer must take microseconds.

    An answer may change at any time, but a member that is revoked stays revoked. Both methods raise StateError if the
    members cannot be read. The coordinator then stops, and everything that is not acked stays with the broker.
    """

    def standing(self, participant_id: str) -> Standing:
        """Return whether this id is a member, was one, or was never one."""

    def max_examples(self, participant_id: str) -> int | None:
        """Return the most examples that this member can have; None if nobody has said so."""


class Everybody:
    """The members where there is no fleet: everybody is one, and nobody can be revoked."""

    def standing(self, participant_id: str) -> Standing:  # noqa: ARG002
        return "enrolled"

    def max_examples(self, participant_id: str) -> int | None:  # noqa: ARG002
        return None
