"""Receipts and notices: what a participant hears about its updates and tasks, and when."""

from __future__ import annotations

from typing import Literal

from fedmq.coordinator.service.commit import Pending
from fedmq.coordinator.service.publishing import Publisher
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import Verdict
from fedmq.schemas.messages import Notice, Receipt, Update, update_id

_MOST_TEXT = 4000


def receipt(update: Update, verdict: Literal["accepted", "discarded"], reason: str = "") -> Receipt:
    """The verdict on an update, for its sender."""
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
    """News for one participant."""
    return Notice(
        run_id=run_id, participant_id=participant_id, event=event, detail=detail[:_MOST_TEXT], task_id=task_id
    )


def repeated(run_id: str, participant_id: str, task_id: str, verdict: Verdict | None) -> Receipt | Notice | None:
    """The ledger's word on a task: its receipt, or that there is nothing to wait for.

    `participant_id` is who asked, "" where nobody did. None where there is nothing to say.
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


def tell(run_id: str, done: Pending, publisher: Publisher, ledger: LedgerReader) -> None:
    """Everything that a commit gives cause to say, in its order; the tasks last."""
    versions = {id_: new.version for new, _ in done.group.versions for id_ in new.update_ids}
    for told in done.receipts:
        version = versions.get(told.update_id) if told.verdict == "accepted" else None
        publisher.receipt(told.model_copy(update={"version": version}) if version else told)
    for participant_id, task_id in done.verdicts:
        answer = repeated(run_id, participant_id, task_id, ledger.verdict(task_id))
        if isinstance(answer, Receipt):
            publisher.receipt(answer)
        elif answer is not None:
            publisher.notice(answer)
    withdrawn = {news.task_id for news in done.notices if news.event == "task_withdrawn" and news.task_id}
    publisher.withdraw(withdrawn)
    for news in done.notices:
        publisher.notice(news)
    for command, parameters in done.tasks:
        if command.task_id not in withdrawn:
            publisher.task(command, parameters)
    publisher.pump()


def goodbye(run_id: str, reason: str, publisher: Publisher, ledger: LedgerReader) -> None:
    """Tell every known participant that the run is over."""
    for row in ledger.participants():
        publisher.notice(notice(run_id, row.record.participant_id, "run_finished", reason))
