"""Whose a message is, as far as that can be known.

Rules
1. Of all that a message says of its sender the broker checks one thing: the user_id, where there is one, is the user
   that published it (None: the message names no user). A participant_id in a message is a claim.
2. A participant's user is the one who last said hello in its name. With one user for all, that tells nobody apart, and
   whoever may publish is believed.
3. A user that bears a participant's own name is that participant: from its first hello on, nobody else's hellos,
   declines and updates in that name are taken. Only the broker's administrator can give somebody a name.
4. A message that cannot be read says by its correlation_id alone which task it is for. It closes the task of a
   participant whose user has sent it, and no other: a task that stays open by mistake lapses with its lease.
"""

from __future__ import annotations

from fedmq.coordinator.decisions.participants import Participant


def refusal(participant: Participant | None, user: str | None) -> str | None:
    """Why a message in a known participant's name is not taken from this user; None where it is (rules 2 and 3)."""
    if participant is None or participant.user != participant.participant_id or user == participant.user:
        return None
    sender = "a message without a user" if user is None else f"user {user!r}"
    name = participant.participant_id
    return f"{sender} speaks for participant {name!r}, which is the broker's user of that name: give it another --id"


def is_from(participant: Participant, user: str | None) -> bool:
    """Whether what this user sent is shown to be the participant's (rule 4)."""
    return user is not None and user == participant.user
