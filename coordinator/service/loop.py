"""The coordinator's one loop: deliveries become events, commands become commits, acks and publishes.

Everything arrives through one inbox, from any thread, and is worked on here alone. An update's body is let go right
after its step; until the commit only its handle stays, so that memory holds the bodies that wait and no more. Updates
in chunks come to their step by way of `coordinator.service.chunked_updates`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

from fedmq.broker_config.faults import fault
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, Transport, TransportState
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.evaluation import Evaluator
from fedmq.coordinator.decisions.events import (
    ClosedTask,
    EvaluationArrived,
    Event,
    PoisonArrived,
    Started,
    TaskUndeliverable,
    Tick,
    UpdateArrived,
)
from fedmq.coordinator.service import receipts as answers
from fedmq.coordinator.service.chunked_updates import ChunkedUpdates, ChunkNews
from fedmq.coordinator.service.commit import CONTROL_WINDOW, Committer, Pace, Pending, closed_task
from fedmq.coordinator.service.control import Control
from fedmq.coordinator.service.effects import Commands
from fedmq.coordinator.service.inbox import Deliveries
from fedmq.coordinator.service.intake import Intake, Manifest
from fedmq.coordinator.service.leadership import Leadership
from fedmq.coordinator.service.publishing import Publisher, TaskPublished
from fedmq.coordinator.service.standby import Stop
from fedmq.coordinator.service.update_reader import UpdateReader
from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.schemas.codec import Limits
from fedmq.schemas.errors import BrokerError, BrokerRefused

log = logging.getLogger("fedmq.coordinator")

FAREWELL_S = 5.0
"""How long the broker may take for one of the last notices."""
STRAGGLERS_S = 1.0
"""How long updates are waited for that may have been on their way when their tasks were withdrawn with the run."""
DEPTH_POLL_S = 0.05
QUIET_POLLS = 3
STOOD_STILL_S = 2.0
"""A loop that did nothing for so long may have been paused: it looks who is active before it goes on."""
MOST_VERSIONS_WAITING = 1
"""Model versions kept for tasks that wait to be sent, before updates wait as well: each is a model in memory."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """`run_s` is run time (coordinator.decisions.events), `wall_s` Unix time for people."""

    run_s: Callable[[], float]
    wall_s: Callable[[], float]


class Loop:
    """One coordinator's work from its start to its end. `run` is called once."""

    def __init__(
        self,
        *,
        run_id: str,
        core: Core,
        ledger: Ledger,
        committer: Committer,
        pace: Pace,
        transport: Transport,
        topology: Topology,
        publisher: Publisher,
        intake: Intake,
        leadership: Leadership,
        evaluator: Evaluator | None,
        inbox: SimpleQueue[Any],
        limits: Limits,
        payload_limits: Limits,
        clocks: Clocks,
    ) -> None:
        self._run_id = run_id
        self._core = core
        self._ledger = ledger
        self._committer = committer
        self._pace = pace
        self._transport = transport
        self._topology = topology
        self._publisher = publisher
        self._leadership = leadership
        self._inbox = inbox
        self._clocks = clocks
        self._last_handle = 0
        self._wakeup_s = float("inf")
        self._stopping = False
        self._commands = Commands(
            run_id=run_id,
            core=core,
            intake=intake,
            evaluator=evaluator,
            in_chunks=core.payload_bytes > limits.max_body_bytes,
            put=inbox.put,
            wall_s=clocks.wall_s,
        )

        def ended(task_id: str) -> ClosedTask | None:
            return closed_task(self._commands.pending, ledger, task_id)

        self._chunked = ChunkedUpdates(
            intake,
            core,
            transport,
            payload_limits,
            put=inbox.put,
            step=self._step_update,
            ask_again=self._ask_again,
            let_go=self._let_go,
            over=self._commands.over_in_chunks,
            may_begin=self._has_room_for_a_payload,
            closed_task=ended,
            owned=not committer.keeps_payloads,
        )
        self._reader = UpdateReader(core, self._chunked, limits, ended)
        self._deliveries = Deliveries(transport, topology, inbox.put)
        self._control = Control(
            core,
            self._commands,
            transport,
            dead_exchange=topology.dead_exchange.name,
            limits=limits,
            step=self._step,
        )
        self._blocked = False
        """Whether the broker takes no messages now (memory or disk alarm)."""
        self._awake_s = float("-inf")

    # The loop

    def run(self) -> None:
        """Work until the run finishes or Stop arrives; one that has finished already still gets its goodbye. Raises
        BrokerRefused where the broker is lost for good, and Deposed where another coordinator has taken over."""
        self._step(Started())
        self._keep_lead()
        while not self._over():
            self._collect()
            self._keep_lead()
            worked = self._work()
            now = self._clocks.run_s()
            if now >= self._wakeup_s:
                self._step(Tick())
                self._wakeup_s = max(self._next_wakeup_s(), now + 0.001)
            if self._pace.due_s(self._commands.pending, idle=not worked) <= now:
                self._commit()
            elif not worked and not self._over():
                self._wait(now)
        self._leave()

    def _over(self) -> bool:
        return self._stopping or self._core.finished is not None

    def _collect(self) -> None:
        while not self._inbox.empty():
            self._take(self._inbox.get())

    def _wait(self, now: float) -> None:
        self._wakeup_s = self._next_wakeup_s()
        until_s = min(self._pace.due_s(self._commands.pending, idle=True), self._wakeup_s, self._chunked.due_s())
        try:
            self._take(self._inbox.get(timeout=min(max(0.0, until_s - now), self._leadership.wait_s(), 3600.0)))
        except Empty:
            return

    def _next_wakeup_s(self) -> float:
        due_s = self._core.next_wakeup()
        return float("inf") if due_s is None else due_s

    def _take(self, item: Any) -> None:
        """Sort one thing from the inbox; only deliveries wait."""
        if isinstance(item, Delivery) and self._leadership.owns(item):
            self._leadership.take(item)
        elif isinstance(item, Delivery):
            self._deliveries.add(item)
        elif isinstance(item, TaskPublished):
            self._publisher.task_done(item)
            if item.error is not None:
                log.warning("task undeliverable task=%s error=%s", item.task_id, item.error)
                self._step(TaskUndeliverable(item.task_id, str(item.error)))
        elif isinstance(item, ChunkNews):
            self._chunked.take(item, self._clocks.run_s())
        elif isinstance(item, EvaluationArrived):
            self._evaluated(item)
        elif isinstance(item, TransportState):
            self._transport_changed(item)
        elif isinstance(item, Stop):
            self._stopping = True

    def _work(self) -> bool:
        """Take one delivery to its step; False where there is none, or memory forbids another version."""
        if self._deliveries.control:
            self._control.take(self._deliveries.control.popleft())
            return True
        if self._deliveries.updates and self._publisher.versions_waiting <= MOST_VERSIONS_WAITING + self._blocked:
            self._on_update(self._deliveries.updates.popleft())
            return True
        return self._chunked.work(self._clocks.run_s())

    def _has_room_for_a_payload(self) -> bool:
        """Whether no task that is to be committed or sent keeps older parameters in memory. While the broker takes
        nothing, for a full disk say, one older version may: it is our payloads that have to leave that disk."""
        held = {command.base_version for command, _ in self._commands.pending.tasks} | self._publisher.versions
        return len(held | {self._core.version}) <= 1 + self._blocked

    def _transport_changed(self, state: TransportState) -> None:
        if state.name == "failed":
            raise state.error or BrokerRefused(f"the broker is lost for good: {state.detail}")
        log.log(
            logging.INFO if state.name in ("connected", "unblocked") else logging.WARNING,
            "broker %s %s", state.name, state.detail,
        )  # fmt: skip
        if state.name in ("blocked", "unblocked", "disconnected"):
            self._blocked = state.name == "blocked"
        if state.name == "disconnected":
            self._leadership.doubt()
            self._stop_consuming()
        elif state.name == "consumer_lost":
            self._leadership.renew()

    def _keep_lead(self) -> None:
        """Consume while this coordinator is the active one. While that is open, what it has is still committed, in its
        epoch: the ledger says no where another one has taken over."""
        self._leadership.pass_time()
        active, now = self._leadership.active, self._clocks.run_s()
        if not (active and self._deliveries.consuming) or now - self._awake_s > STOOD_STILL_S:
            self._ledger.check_epoch()
        self._awake_s = now
        if active and not self._deliveries.consuming:
            self._deliveries.start(self._pace.window, 2 * CONTROL_WINDOW)
        elif self._deliveries.consuming and not active:
            self._stop_consuming()

    def _stop_consuming(self) -> None:
        self._deliveries.stop()
        for handle in self._chunked.clear():
            del self._commands.in_hand[handle]

    # Deliveries

    def _on_update(self, delivery: Delivery) -> None:
        self._last_handle += 1
        handle = self._last_handle
        self._commands.in_hand[handle] = delivery
        self._commands.stragglers.discard(delivery.correlation_id or "")
        event = self._reader.read(handle, delivery)
        if event is not None:
            self._step_update(event)

    def _step_update(self, event: UpdateArrived | PoisonArrived) -> None:
        accepted = self._core.accepted
        self._step(event)
        if self._core.accepted > accepted and isinstance(event, UpdateArrived):
            self._committer.keep_payload(self._core.accepted, event.payload)
        self._commands.pending.num_updates += 1

    def _ask_again(self, manifest: Manifest, detail: str) -> None:
        """The payload is not to be had: its participant, which still has it, is to send it once more."""
        update = manifest.update
        self._commands.pending.settle.append(replace(self._commands.in_hand.pop(manifest.handle), body=b""))
        self._commands.pending.num_updates += 1
        self._commands.pending.notices.append(
            answers.notice(self._run_id, update.participant_id, "send_again", detail, update.task_id)
        )
        self._commands.pending.touch(self._clocks.run_s(), ())
        self._commands.pending.urgent = True

    def _let_go(self, handle: int) -> None:
        """The broker keeps a later copy, which is not acked before its commit."""
        self._transport.ack(self._commands.in_hand.pop(handle))

    def _evaluated(self, event: EvaluationArrived) -> None:
        shown = " ".join(f"{name}={value:.6g}" for name, value in event.metrics.items())
        log.info("evaluated version=%d %s", event.version, shown or event.detail)
        self._step(event)
        self._commands.pending.group.evaluations.append((event, self._commands.stamp()))

    # Steps

    def _step(self, event: Event) -> None:
        now = self._clocks.run_s()
        commands = self._core.step(event, now)
        self._commands.carry_out(commands, now)
        if commands or not isinstance(event, Tick):
            self._commands.pending.touch(now, commands)

    # Commits

    def _commit(self) -> bool:
        """Make everything durable, then tell everybody. False where the disk refused: nothing was acked."""
        began_s = self._clocks.run_s()
        try:
            self._committer.commit(self._core, self._commands.pending, self._clocks.run_s)
        except OSError as error:
            self._pace.failed(self._clocks.run_s())
            log.error(
                "commit failed, nothing was acked: %s. Make room on the disk; trying again in %.1f s",
                error, self._pace.retry_s,
            )  # fmt: skip
            return False
        done = self._commands.taken()
        self._settle(done)
        answers.tell(self._run_id, done, self._publisher, self._ledger)
        ended_s = self._clocks.run_s()
        self._pace.succeeded(began_s, ended_s)
        log.debug("commit updates=%d version=%d took_s=%.4f", done.num_updates, self._core.version, ended_s - began_s)
        return True

    def _settle(self, done: Pending) -> None:
        for queue in done.payload_queues:
            fault("before-payload-deleted")
            self._transport.delete_queue(queue)
        fault("before-acks")
        for delivery in done.settle:
            self._transport.ack(delivery)  # False: it comes again and is recognised
            fault("between-acks")
        for delivery, discard in done.poison:
            self._transport.dead_letter(delivery, self._topology.dead_exchange.name, discard.reason, discard.detail)
        fault("after-acks")

    # The end

    def _leave(self) -> None:
        """Commit once more; where the run is over, and the ledger says so, answer what has reached the queue and say
        goodbye."""
        finished = self._core.finished
        while not self._commit():
            if finished is None or self._stopping:
                return
            self._wait_for_room()
        if finished is None:
            self._publisher.withdraw_all()
            return
        self._answer_the_rest()
        fault("before-farewell")
        answers.goodbye(self._run_id, finished, self._publisher, self._ledger)
        if left := self._publisher.flush(FAREWELL_S):
            log.warning(
                "the broker took nothing for %g s: %d receipts and notices were not delivered", FAREWELL_S, left
            )

    def _answer_the_rest(self) -> None:
        """Discard the updates that come too late, with a reason, instead of leaving them to the next run."""
        began_s = heard_s = self._clocks.run_s()
        quiet = 0
        updates = self._deliveries.updates
        updates.extendleft(self._commands.in_hand.pop(handle) for handle in reversed(self._chunked.clear()))
        while not self._stopping and quiet < QUIET_POLLS:
            self._collect()
            now = self._clocks.run_s()
            if updates or self._commands.pending.num_updates:
                heard_s, quiet = now, 0
                while updates:
                    self._on_update(updates.popleft())
                if not self._commit():
                    return
                continue
            if now > min(heard_s + STRAGGLERS_S, began_s + FAREWELL_S):
                return
            # What is neither ready in the queue nor here may be on its way between the two: look more than once.
            quiet = quiet + 1 if not self._commands.stragglers and self._nothing_ready() else 0
            with contextlib.suppress(Empty):
                self._take(self._inbox.get(timeout=DEPTH_POLL_S))

    def _nothing_ready(self) -> bool:
        """Whether the updates queue is empty, or nobody can tell."""
        try:
            return self._deliveries.updates_ready() == 0 and self._inbox.empty()
        except BrokerError:
            return True

    def _wait_for_room(self) -> None:
        """Until the next try to commit, or Stop. What arrives meanwhile is answered after it."""
        until_s = self._pace.due_s(self._commands.pending, idle=True)
        while not self._stopping and (left_s := until_s - self._clocks.run_s()) > 0:
            with contextlib.suppress(Empty):
                self._take(self._inbox.get(timeout=left_s))
