"""The effects of the core's commands: entries of the next commit, and one log line each.

Only an evaluation begins at once. Everything that a participant or the broker notices waits for the commit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedmq.broker_config.faults import fault
from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.decisions.commands import (
    POISON,
    Accept,
    CloseTask,
    Command,
    Discard,
    Distil,
    DropBuffer,
    Evaluate,
    Finish,
    IssueTask,
    NewVersion,
    RepeatReceipts,
    SayHello,
    TellSetBack,
    TellUnfrozen,
    Withdraw,
)
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.evaluation import Evaluator
from fedmq.coordinator.decisions.events import (
    ClosedTask,
    DeliveryHandle,
    DistilFailed,
    Distilled,
    EvaluationArrived,
    Event,
    PoisonArrived,
    Tick,
    UpdateArrived,
)
from fedmq.coordinator.decisions.records import OPEN_STATES
from fedmq.coordinator.decisions.versions.distilling import Distiller
from fedmq.coordinator.service.incoming.intake import Intake
from fedmq.coordinator.service.outgoing.discards import FIRST_LINES, Traces
from fedmq.coordinator.service.outgoing.receipts import notice, receipt
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import CommitGroup, Stamp
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import Notice, Receipt, Update
from fedmq.schemas.parameters import Parameters

log = EventLog(__name__)

SOMEBODY_WAITS = (IssueTask, Withdraw, RepeatReceipts, SayHello, Finish)
"""Commands that leave only after their commit. Updates that only have to be acked can wait for `commit_interval_s`:
each commit writes the model, on a disk that the broker may need too."""
MOST_WARNED = 10_000
"""Most participants that are remembered as logged."""


@dataclass(slots=True)
class Pending:
    """Everything since the last commit: rows to write, and acks and messages that follow once they are written."""

    since_s: float = float("inf")
    """Run time of the first entry."""
    group: CommitGroup = field(default_factory=CommitGroup)
    num_updates: int = 0
    """Number of deliveries from the updates queue that the commit settles."""
    num_control: int = 0
    """Number of hellos and declines that the commit settles."""
    poison_bytes: int = 0
    urgent: bool = False
    """True if somebody waits for the commit: a participant for its task, for example."""
    arrays_changed: bool = False
    settle: list[Delivery] = field(default_factory=list)
    """Deliveries to ack, without their bodies."""
    poison: list[tuple[Delivery, Discard]] = field(default_factory=list)
    """Deliveries to dead-letter, with their bodies."""
    tasks: list[tuple[IssueTask, Parameters]] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    verdicts: list[tuple[str, str]] = field(default_factory=list)
    """(participant_id, task_id) of receipts to repeat from the ledger."""
    payload_queues: list[str] = field(default_factory=list)
    """Queues to delete: their updates in chunks are over."""

    def touch(self, now: float, commands: Sequence[Command]) -> None:
        """Note that there is something to commit since `now`, and that these commands are part of it."""
        self.since_s = min(self.since_s, now)
        self.urgent = self.urgent or any(isinstance(command, SOMEBODY_WAITS) for command in commands)


class Effects:
    """Collects the entries of the next commit. The loop's thread calls everything."""

    def __init__(
        self,
        *,
        run_id: str,
        core: Core,
        intake: Intake,
        evaluator: Evaluator | None,
        in_chunks: bool,
        control_queue: str,
        put: Callable[[EvaluationArrived | Distilled | DistilFailed], None],
        wall_s: Callable[[], float],
        distiller: Distiller | None = None,
    ) -> None:
        """`in_chunks`: the run's updates travel in chunks. `control_queue`: name of the queue of hellos and declines.
        `put` takes the results of evaluations and distillations, from any thread."""
        self._distiller = distiller
        self.pending = Pending()
        """Entries of the next commit."""
        self._run_id = run_id
        self._core = core
        self._intake = intake
        self._evaluator = evaluator
        self._in_chunks = in_chunks
        self._control_queue = control_queue
        self._put = put
        self._wall_s = wall_s
        self._now_s = 0.0
        self._last_handle = 0
        self._in_hand: dict[DeliveryHandle, Delivery] = {}
        """Deliveries that the core has not decided on."""
        self._warned: set[str] = set()
        """Participants whose clamped claims were logged: once for each is enough."""
        self._traces = Traces()
        self._closed: set[str] = set()
        """Tasks that this step closes."""
        self._stragglers: set[str] = set()
        """Tasks that were withdrawn with the run: their updates may be on their way."""
        self._handlers: dict[type, Callable[[Any], None]] = {
            Accept: self._accept,
            Discard: self._discard,
            NewVersion: self._new_version,
            TellUnfrozen: self._tell_unfrozen,
            DropBuffer: self._drop_buffer,
            TellSetBack: self._tell_set_back,
            IssueTask: self._issue,
            CloseTask: self._close_task,
            Withdraw: self._withdraw,
            RepeatReceipts: self._repeat_receipts,
            SayHello: self._say_hello,
            Distil: self._distil,
            Evaluate: self._evaluate,
            Finish: self._finish,
        }

    # Deliveries

    def hold(self, delivery: Delivery) -> DeliveryHandle:
        """Keep a delivery until the core has decided on it. Return its handle."""
        self._last_handle += 1
        self._in_hand[self._last_handle] = delivery
        return self._last_handle

    def let_go(self, handle: DeliveryHandle) -> Delivery:
        """Return a delivery that the core will not decide on, and keep it no more."""
        return self._in_hand.pop(handle)

    def send_again(self, handle: DeliveryHandle, update: Update, detail: str, now: float) -> None:
        """Settle the manifest of a broken payload, and ask its participant, which still has it, to send it again."""
        pending = self.pending
        pending.settle.append(replace(self._in_hand.pop(handle), body=b""))
        pending.num_updates += 1
        pending.notices.append(notice(self._run_id, update.participant_id, "send_again", detail, update.task_id))
        pending.touch(now, ())
        pending.urgent = True

    def settle_control(self, delivery: Delivery) -> None:
        """Ack a hello or a decline with the next commit."""
        self.pending.settle.append(replace(delivery, body=b""))
        self.pending.num_control += 1

    def delete_payload(self, update: Update) -> None:
        """Delete the queue of an update's chunks after the next commit, if it has one."""
        if update.chunks is not None:
            self._delete_payload(update.run_id, update.task_id, update.participant_id)

    # Steps

    def on_step(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Collect the effects of the core's step with this event at run time `now`."""
        self._now_s = now
        self._closed = {command.task_id for command in commands if isinstance(command, CloseTask)}
        for command in commands:
            self._handlers[type(command)](command)
        if commands or not isinstance(event, Tick):
            self.pending.touch(now, commands)
        if isinstance(event, UpdateArrived):
            self._stragglers.discard(event.update.task_id)
        elif isinstance(event, PoisonArrived):
            self._stragglers.discard(event.task_id or "")
        elif isinstance(event, EvaluationArrived):
            self.pending.group.evaluations.append((event, self._stamp()))

    def taken(self) -> Pending:
        """Return the entries that are committed now, and begin anew."""
        done, self.pending = self.pending, Pending()
        return done

    # Questions

    @property
    def versions(self) -> set[int]:
        """Base versions of the tasks to be committed: these tasks keep the versions' parameters in RAM."""
        return {command.base_version for command, _ in self.pending.tasks}

    @property
    def expects_stragglers(self) -> bool:
        """True if updates of tasks that were withdrawn with the run may be on their way."""
        return bool(self._stragglers)

    def closed_task(self, task_id: str, ledger: LedgerReader) -> ClosedTask | None:
        """Return the end of a task that the core no longer holds, committed or about to be; None if it has none."""
        task = self.pending.group.tasks.get(task_id)
        if task is None:
            return ledger.closed_task(task_id)
        if task.state in OPEN_STATES:
            return None
        return ClosedTask(task.task_id, task.participant_id, task.state)  # type: ignore[arg-type]

    # Commands

    def _stamp(self) -> Stamp:
        """Return the time of the step: tasks and updates of one step have the same."""
        return Stamp(self._now_s, self._wall_s())

    def _delete_payload(self, run_id: str, task_id: str, participant_id: str) -> None:
        self.pending.payload_queues.append(self._intake.queue_of(run_id, task_id, participant_id))

    def _accept(self, command: Accept) -> None:
        pending, update = self.pending, command.update
        pending.num_updates += 1
        pending.arrays_changed = True
        pending.group.accepted.append((command, self._stamp()))
        pending.settle.append(replace(self._in_hand.pop(command.delivery), body=b""))
        pending.receipts.append(receipt(update, "accepted"))
        self.delete_payload(update)
        log.info(
            "update_accepted", participant=update.participant_id, task=update.task_id, base_version=update.base_version,
            staleness=command.staleness, client_weight=f"{command.client_weight:.6g}", order=command.order,
        )  # fmt: skip
        if command.clamped and update.participant_id not in self._warned:
            if len(self._warned) < MOST_WARNED:
                self._warned.add(update.participant_id)
            log.warning(
                "claims_clamped", participant=update.participant_id, task=update.task_id, numbers=command.clamped,
                detail="what it says about its own work is beyond what it was asked for; the numbers are counted",
            )  # fmt: skip

    def _discard(self, command: Discard) -> None:
        pending, update = self.pending, command.update
        delivery = self._in_hand.pop(command.delivery)
        control = delivery.queue == self._control_queue
        if control:
            pending.num_control += 1
        else:
            pending.num_updates += 1
        closes_task = update is not None and update.task_id in self._closed
        if self._traces.has_row(self._core.discarded.get(command.reason, 0), closes_task):
            pending.group.discards.append((command, self._stamp()))
        if command.reason in POISON and self._traces.has_letter(delivery.user_id, self._now_s):
            pending.poison.append((delivery, command))
            pending.poison_bytes += len(delivery.body)
        else:
            pending.settle.append(replace(delivery, body=b""))
        if update is not None and command.reason == "duplicate":
            pending.verdicts.append((update.participant_id, update.task_id))  # the first one's verdict stands
        elif update is not None:
            pending.receipts.append(receipt(update, "discarded", command.reason))
        if update is not None:
            self.delete_payload(update)
        number = self._traces.line(delivery.user_id, command.reason, self._now_s)
        if number is not None:
            log.log(
                logging.INFO if command.reason in ("duplicate", "run_finished") else logging.WARNING,
                "control_message_discarded" if control else "update_discarded",
                participant=update and update.participant_id,
                task=update.task_id if update else delivery.correlation_id,
                reason=command.reason, detail=command.detail, **({"number": number} if number > FIRST_LINES else {}),
            )  # fmt: skip

    def _new_version(self, command: NewVersion) -> None:
        self.pending.arrays_changed = True
        self.pending.group.versions.append((command, self._stamp()))
        log.info(
            "version_made",
            version=command.version,
            updates=len(command.update_ids),
            weights=lambda: ",".join(f"{weight:.6g}" for weight in command.weights),
            **({"by": "timeout"} if command.by_timeout else {}),
        )
        if command.plain:
            self.give_up_distilling()
            detail = f"the version is the plain mean: {command.plain}"
            log.warning("version_not_distilled", version=command.version, detail=detail)

    def _tell_unfrozen(self, command: TellUnfrozen) -> None:
        log.info("tensors_unfrozen", version=command.version, tensors=len(command.tensors), first=command.tensors[0])

    def _drop_buffer(self, command: DropBuffer) -> None:
        self.pending.arrays_changed = True
        self.pending.group.drops.append((command, self._stamp()))
        log.warning(
            "buffer_discarded", updates=len(command.update_ids), reason=command.reason, detail=command.detail,
            version=self._core.version,
        )  # fmt: skip

    def _tell_set_back(self, command: TellSetBack) -> None:
        self.pending.arrays_changed |= command.first and command.set_back.anew
        log.error("ledger_set_back", run=self._run_id, detail=command.set_back.told())

    def _issue(self, command: IssueTask) -> None:
        self.pending.tasks.append((command, self._core.tensors_of(command)))
        log.debug(
            "task_issued", participant=command.participant_id, task=command.task_id, base_version=command.base_version,
            again=command.again,
        )  # fmt: skip

    def _close_task(self, command: CloseTask) -> None:
        log.info("task_closed", task=command.task_id, state=command.state, detail=command.detail)
        receipts = self.pending.receipts
        if command.state == "discarded" and not (receipts and receipts[-1].task_id == command.task_id):
            self.pending.verdicts.append(("", command.task_id))  # its update could not be decoded

    def _withdraw(self, command: Withdraw) -> None:
        if self._core.stopping:
            self._stragglers.add(command.task_id)
        if self._in_chunks:  # an upload may be under way
            self._delete_payload(self._run_id, command.task_id, command.participant_id)
        self.pending.notices.append(
            notice(self._run_id, command.participant_id, "task_withdrawn", command.detail, command.task_id)
        )

    def _repeat_receipts(self, command: RepeatReceipts) -> None:
        self.pending.verdicts.extend((command.participant_id, task_id) for task_id in command.task_ids)

    def _say_hello(self, command: SayHello) -> None:
        self.pending.notices.extend(notice(self._run_id, p, "say_hello") for p in command.participant_ids)

    def _distil(self, command: Distil) -> None:
        log.info("distilling", version=command.version, models=len(command.ensemble.models))
        if self._distiller is None:
            why = "the app has no distil(ensemble, start, seed), which the strategy asks for"
            self._put(DistilFailed(command.version, why))
        else:
            parts = self._core.frozen
            self._distiller.submit(command, self._put, None if parts is None else parts.at(command.version - 1))
            fault("distil-asked")

    def give_up_distilling(self) -> None:
        """End a distillation whose answer nobody waits for."""
        if self._distiller is not None:
            self._distiller.give_up()

    def _evaluate(self, command: Evaluate) -> None:
        if self._evaluator is not None:
            self._evaluator.submit(command.version, self._core.parameters, self._put)

    def _finish(self, command: Finish) -> None:
        log.info("run_finished", reason=command.reason, version=self._core.version)
