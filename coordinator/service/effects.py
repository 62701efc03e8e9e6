"""What the core's commands come to: entries of what the next commit holds, and a line of the log each.

Only an evaluation begins at once. Everything that anybody hears of waits for the commit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.decisions.commands import (
    POISON,
    Accept,
    CloseTask,
    Command,
    Discard,
    Evaluate,
    Finish,
    IssueTask,
    NewVersion,
    RepeatReceipts,
    SayHello,
    Withdraw,
)
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.evaluation import Evaluator
from fedmq.coordinator.decisions.events import EvaluationArrived
from fedmq.coordinator.service import receipts as answers
from fedmq.coordinator.service.commit import Pending
from fedmq.coordinator.service.intake import Intake
from fedmq.coordinator.state.ledger.rows import Stamp
from fedmq.schemas.messages import Update

log = logging.getLogger("fedmq.coordinator")


class Commands:
    """Used from the loop's thread."""

    def __init__(
        self,
        *,
        run_id: str,
        core: Core,
        intake: Intake,
        evaluator: Evaluator | None,
        in_chunks: bool,
        put: Callable[[EvaluationArrived], None],
        wall_s: Callable[[], float],
    ) -> None:
        """`in_chunks`: the run's updates travel in chunks. `put` takes the results of evaluations, from any thread."""
        self.pending = Pending()
        """Of the next commit."""
        self.in_hand: dict[int, Delivery] = {}
        """Updates that the core has not decided on, by their handles."""
        self.stragglers: set[str] = set()
        """Tasks that were withdrawn with the run: their updates may be on their way."""
        self._run_id = run_id
        self._core = core
        self._intake = intake
        self._evaluator = evaluator
        self._in_chunks = in_chunks
        self._put = put
        self._wall_s = wall_s
        self._now_s = 0.0
        self._handlers: dict[type, Callable[[Any], None]] = {
            Accept: self._accept,
            Discard: self._discard,
            NewVersion: self._new_version,
            IssueTask: self._issue,
            CloseTask: self._close_task,
            Withdraw: self._withdraw,
            RepeatReceipts: self._repeat_receipts,
            SayHello: self._say_hello,
            Evaluate: self._evaluate,
            Finish: self._finish,
        }

    def carry_out(self, commands: Sequence[Command], now: float) -> None:
        """Those of one step, at run time `now`."""
        self._now_s = now
        for command in commands:
            self._handlers[type(command)](command)

    def taken(self) -> Pending:
        """What was pending: it is committed, and something else begins."""
        done, self.pending = self.pending, Pending()
        return done

    def over_in_chunks(self, update: Update) -> None:
        """Its queue is deleted after the commit."""
        if update.chunks is not None:
            queue = self._intake.queue_of(update.run_id, update.task_id, update.participant_id)
            self.pending.payload_queues.append(queue)

    def stamp(self) -> Stamp:
        """Of the step: what the core took for now, so that tasks and updates of one step have the same time."""
        return Stamp(self._now_s, self._wall_s())

    def _accept(self, command: Accept) -> None:
        pending, update = self.pending, command.update
        pending.arrays_changed = True
        pending.group.accepted.append((command, self.stamp()))
        pending.settle.append(replace(self.in_hand.pop(command.delivery), body=b""))
        pending.receipts.append(answers.receipt(update, "accepted"))
        self.over_in_chunks(update)
        log.info(
            "update accepted participant=%s task=%s base_version=%d staleness=%d client_weight=%.6g order=%d",
            update.participant_id, update.task_id, update.base_version, command.staleness, command.client_weight,
            command.order,
        )  # fmt: skip

    def _discard(self, command: Discard) -> None:
        pending, update = self.pending, command.update
        delivery = self.in_hand.pop(command.delivery)
        pending.group.discards.append((command, self.stamp()))
        if command.reason in POISON:
            pending.poison.append((delivery, command))
            pending.poison_bytes += len(delivery.body)
        else:
            pending.settle.append(replace(delivery, body=b""))
        if update is not None and command.reason == "duplicate":
            pending.verdicts.append((update.participant_id, update.task_id))  # the first one's verdict stands
        elif update is not None:
            pending.receipts.append(answers.receipt(update, "discarded", command.reason))
        if update is not None:
            self.over_in_chunks(update)
        log.log(
            logging.INFO if command.reason in ("duplicate", "run_finished") else logging.WARNING,
            "update discarded participant=%s task=%s reason=%s detail=%s", update and update.participant_id,
            update.task_id if update else delivery.correlation_id, command.reason, command.detail,
        )  # fmt: skip

    def _new_version(self, command: NewVersion) -> None:
        self.pending.arrays_changed = True
        self.pending.group.versions.append((command, self.stamp()))
        log.info(
            "version made version=%d updates=%d weights=%s",
            command.version, len(command.update_ids), ",".join(f"{weight:.6g}" for weight in command.weights),
        )  # fmt: skip

    def _issue(self, command: IssueTask) -> None:
        self.pending.tasks.append((command, self._core.task_tensors))
        log.debug(
            "task issued participant=%s task=%s base_version=%d again=%s",
            command.participant_id, command.task_id, command.base_version, command.again,
        )  # fmt: skip

    def _close_task(self, command: CloseTask) -> None:
        log.info("task closed task=%s state=%s detail=%s", command.task_id, command.state, command.detail)
        receipts = self.pending.receipts
        if command.state == "discarded" and not (receipts and receipts[-1].task_id == command.task_id):
            self.pending.verdicts.append(("", command.task_id))  # its update could not be decoded

    def _withdraw(self, command: Withdraw) -> None:
        if self._core.stopping:
            self.stragglers.add(command.task_id)
        if self._in_chunks:  # of an upload that may be under way
            queue = self._intake.queue_of(self._run_id, command.task_id, command.participant_id)
            self.pending.payload_queues.append(queue)
        self.pending.notices.append(
            answers.notice(self._run_id, command.participant_id, "task_withdrawn", command.detail, command.task_id)
        )

    def _repeat_receipts(self, command: RepeatReceipts) -> None:
        self.pending.verdicts.extend((command.participant_id, task_id) for task_id in command.task_ids)

    def _say_hello(self, command: SayHello) -> None:
        self.pending.notices.extend(answers.notice(self._run_id, p, "say_hello") for p in command.participant_ids)

    def _evaluate(self, command: Evaluate) -> None:
        if self._evaluator is not None:
            self._evaluator.submit(command.version, self._core.parameters, self._put)

    def _finish(self, command: Finish) -> None:
        log.info("run finished reason=%s version=%d", command.reason, self._core.version)
