"""Identity: whose a message is, as far as that can be known.

Rules
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

from fedmq.coordinator.decisions.participants import Participant


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
