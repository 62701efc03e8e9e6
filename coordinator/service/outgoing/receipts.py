"""Receipts and notices: the verdicts on updates, and news of tasks, as messages."""

from __future__ import annotations

from typing import Literal

from fedmq.coordinator.state.ledger.rows import Verdict
from fedmq.schemas.messages import Notice, Receipt, Update, update_id

_MOST_TEXT = 4000


def receipt(update: Update, verdict: Literal["accepted", "discarded"], reason: str = "") -> Receipt:
    """Return the verdict on an update, for its sender."""
    return Receipt(
        update_id=update.update_id,
        task_id=update.task_id,
        run_id=update.run_id,
        participant_id=update.participant_id,
        verdict=verdict,
        reason=reason,
    )


def notice(
    run_id: str,
    participant_id: str,
    event: Literal["run_finished", "task_withdrawn", "say_hello", "send_again"],
    detail: str = "",
    task_id: str | None = None,
) -> Notice:
    """Return news for one participant; a detail that is too long is cut."""
    return Notice(
        run_id=run_id, participant_id=participant_id, event=event, detail=detail[:_MOST_TEXT], task_id=task_id
    )


def repeated(run_id: str, participant_id: str, task_id: str, verdict: Verdict | None) -> Receipt | Notice | None:
    """Return the ledger's word on a task: its receipt, or the notice that there is nothing to wait for.

    `participant_id` is the participant that asked, "" if nobody did. The answer is None if there is nothing to say.
    """
    if verdict is None:
        return notice(run_id, participant_id, "task_withdrawn", "no such task", task_id) if participant_id else None
    if verdict.state in ("accepted", "discarded"):
        return Receipt(
            update_id=verdict.update_id or update_id(run_id, task_id, verdict.participant_id),
            task_id=task_id,
            run_id=run_id,
            participant_id=verdict.participant_id,
            verdict="accepted" if verdict.state == "accepted" else "discarded",
            version=verdict.version,
            reason=verdict.detail[:_MOST_TEXT],
        )
    return notice(run_id, verdict.participant_id, "task_withdrawn", verdict.detail or verdict.state, task_id)
