"""Identity: whose a message is, as far as that can be known.

Rules with identity "user" (decision 0031): the broker vouches for every sender.
a. A participant is the broker's user of its name. A message without a user is refused as `unknown_sender`, and one in
   the name of another participant as `wrong_sender`.
b. A participant that is not in the fleet is refused as `not_enrolled`, and one that was revoked as `revoked`.
c. A refused message never touches the task of the participant that it names.

Rules with identity "open" (decision 0026)
1. A message says several things about its sender, and the broker checks one of them: a user_id must be the user that
   published the message. None means that the message names no user. A participant_id in a message is only a claim.
2. A participant's user is the one that last said hello in its name. If all participants share one user, that tells
   nobody apart, and everybody who may publish is believed.
3. A user with a participant's own name is that participant. From its first hello on, hellos, declines and updates in
   that name are refused from everybody else. Only the broker's administrator can give a user its name.
4. A message that cannot be read still names its task, in its correlation_id. It closes that task only if the task's
   participant has the same user as the message. A task that stays open by mistake lapses with its lease.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.members import Standing

SenderFaultReason = Literal["unknown_participant", "unknown_sender", "wrong_sender", "not_enrolled", "revoked"]


class SenderFault(NamedTuple):
    """Reason to refuse a message because of its sender."""

    reason: SenderFaultReason
    detail: str


def unnamed(user: str | None) -> SenderFault | None:
    """Refuse a message that names no user (rule a); None for any other."""
    if user is not None:
        return None
    return SenderFault("unknown_sender", "the message names no user: expected user_id, as every fedmq process sets it")


def impostor(participant_id: str, user: str | None) -> SenderFault | None:
    """Refuse a message in this participant's name from another user (rule a); None if it is the participant's own."""
    if user is None or user == participant_id:
        return unnamed(user)
    return SenderFault("wrong_sender", f"user {user!r} speaks for participant {participant_id!r}")


def outsider(participant_id: str, standing: Standing) -> SenderFault | None:
    """Refuse a message of a participant that is not in the fleet now (rule b); None if it is."""
    if standing == "enrolled":
        return None
    if standing == "revoked":
        return SenderFault("revoked", f"participant {participant_id!r} was revoked")
    return SenderFault("not_enrolled", f"participant {participant_id!r} is not in the fleet: enrol it")


def refusal(participant: Participant | None, user: str | None) -> str | None:
    """Return why a message in this participant's name is refused from this user; None if it is not (rules 2 and 3)."""
    if participant is None or participant.user != participant.participant_id or user == participant.user:
        return None
    sender = "a message without a user" if user is None else f"user {user!r}"
    name = participant.participant_id
    return f"{sender} speaks for participant {name!r}, which is the broker's user of that name: give it another --id"


def is_from(participant: Participant, user: str | None) -> bool:
    """Return True if this user's message is shown to be the participant's (rule 4)."""
    return user is not None and user == participant.user
