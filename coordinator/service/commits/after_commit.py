"""The work that follows a commit: payload queues, acks, dead letters, receipts, notices and tasks, in this order."""

from __future__ import annotations

from fedmq.broker_config.faults import fault
from fedmq.broker_config.transport import Transport
from fedmq.coordinator.service.commits.effects import Pending
from fedmq.coordinator.service.outgoing.publishing import CoordinatorPublisher
from fedmq.coordinator.service.outgoing.receipts import notice, repeated
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.schemas.messages import Receipt


def settle(done: Pending, transport: Transport, dead_exchange: str) -> None:
    """Delete the payload queues that are over, ack, and dead-letter the poison."""
    for queue in done.payload_queues:
        fault("before-payload-deleted")
        transport.delete_queue(queue)
    fault("before-acks")
    for delivery in done.settle:
        transport.ack(delivery)  # False: it comes again and is recognised
        fault("between-acks")
    for delivery, discard in done.poison:
        transport.dead_letter(delivery, dead_exchange, discard.reason, discard.detail)
    fault("after-acks")


def tell(run_id: str, done: Pending, publisher: CoordinatorPublisher, ledger: LedgerReader) -> None:
    """Send receipts, notices and tasks, in this order."""
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


def say_goodbye(run_id: str, reason: str, publisher: CoordinatorPublisher, ledger: LedgerReader) -> None:
    """Tell every known participant that the run is over."""
    for row in ledger.participants():
        publisher.notice(notice(run_id, row.record.participant_id, "run_finished", reason))
