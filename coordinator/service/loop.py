"""The coordinator's one loop: deliveries become events, commands become commits, acks and publishes.

Everything arrives through one inbox, from any thread, and is worked on here alone: only the loop steps the core. An
update's body is let go right after its step. Until the commit only its handle stays, so RAM holds the bodies that wait
and no more. `ChunkedUpdates` returns the events of updates in chunks.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedmq.broker_config.chunks.sender import News
from fedmq.broker_config.faults import fault
from fedmq.broker_config.transport import Delivery, Transport, TransportState
from fedmq.coordinator.decisions.commands import Command, NewVersion
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import (
    SUPERSEDED,
    BufferFailed,
    DistilFailed,
    Distilled,
    EvaluationArrived,
    Event,
    ParticipantRevoked,
    ParticipantSeen,
    PoisonArrived,
    Started,
    TaskDeclined,
    TaskUndeliverable,
    Tick,
    TimeStoodStill,
    UpdateArrived,
)
from fedmq.coordinator.service.commits.after_commit import say_goodbye, settle, tell
from fedmq.coordinator.service.commits.commit import CONTROL_WINDOW, Committer, Pace
from fedmq.coordinator.service.commits.effects import Effects
from fedmq.coordinator.service.incoming.chunked_updates import (
    ChunkedUpdates,
    ChunkNews,
    DeletePayload,
    Outcome,
    SendAgain,
    Superseded,
)
from fedmq.coordinator.service.incoming.control import (
    COUNTED,
    CertificateNews,
    ControlPoison,
    LeftOut,
    Refusals,
    read_control,
)
from fedmq.coordinator.service.incoming.control_rate import ControlRate
from fedmq.coordinator.service.incoming.inbox import Inbox
from fedmq.coordinator.service.incoming.senders import Senders
from fedmq.coordinator.service.incoming.update_reader import Wires, read_update
from fedmq.coordinator.service.leading.downtime import Downtime
from fedmq.coordinator.service.leading.leadership import Leadership
from fedmq.coordinator.service.leading.standby import Stop
from fedmq.coordinator.service.outgoing.certificates import CertificateAnswered, CertificateDesk
from fedmq.coordinator.service.outgoing.frozen import FrozenTasks
from fedmq.coordinator.service.outgoing.model_stream import StreamNews
from fedmq.coordinator.service.outgoing.publishing import CoordinatorPublisher, TaskPublished, UploadsPrepared
from fedmq.coordinator.state.ledger.rows import BrokerRow, BrokerState, CheckpointRow
from fedmq.coordinator.state.ledger.traffic import ModelBytes
from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.schemas.codec import Limits
from fedmq.schemas.errors import BrokerError, ConfigError
from fedmq.schemas.limits import PLAIN
from fedmq.schemas.local.event_log import EventLog

log = EventLog(__name__)

FAREWELL_S = 5.0
"""Seconds that the broker may take for one of the last notices."""
STRAGGLERS_S = 1.0
"""Seconds to wait for updates that may have been on their way when their tasks were withdrawn with the run."""
DEPTH_POLL_S = 0.05
QUIET_POLLS = 3
"""Looks in a row at an empty queue, DEPTH_POLL_S apart, after which no more updates are expected."""
LOOK_S = 2.0
"""Seconds between looks at the run folder, which somebody may move or remove."""
STOOD_STILL_S = 2.0
"""A loop that did nothing for so many seconds may have been paused. It checks that it still leads before it goes on."""
MOST_VERSIONS_WAITING = 1
"""Model versions that are kept for tasks to be sent, before updates wait as well: each is a model in RAM."""

BROKER_STATES: Mapping[str, BrokerState] = {
    "connected": "connected", "unblocked": "connected", "disconnected": "disconnected", "blocked": "blocked",
}  # fmt: skip
"""News of the connection that the ledger keeps."""
MOST_DETAIL_CHARS = 500
"""Characters of such news that the ledger keeps."""
CONTROL_IN_A_ROW = 16
"""Hellos and declines that are worked on before an update that waits. They are quick, and tasks depend on them."""


class Loop:
    """The work of one active coordinator, from its start to its end. `run` is called once."""

    def __init__(
        self,
        *,
        run_id: str,
        core: Core,
        ledger: Ledger,
        committer: Committer,
        pace: Pace,
        transport: Transport,
        dead_exchange: str,
        publisher: CoordinatorPublisher,
        effects: Effects,
        chunked: ChunkedUpdates,
        leadership: Leadership,
        inbox: Inbox,
        senders: Senders,
        limits: Limits,
        hellos_per_s: float,
        run_s: Callable[[], float],
        wall_s: Callable[[], float],
        downtime: Downtime,
        certificates: CertificateDesk | None = None,
        wires: Wires | None = None,
        frozen: FrozenTasks | None = None,
        check_folder: Callable[[], None] = lambda: None,
    ) -> None:
        """`hellos_per_s` is one user's rate (coordinator.service.incoming.control_rate). `run_s` gives run time in
        seconds (coordinator.decisions.events), `wall_s` Unix time. `certificates` is None without a fleet.
        `check_folder` raises StateError if the run folder is not in its place any more."""
        self._check_folder = check_folder
        self._folder_checked_s = float("-inf")
        self._run_id = run_id
        self._core = core
        self._ledger = ledger
        self._committer = committer
        self._pace = pace
        self._transport = transport
        self._dead_exchange = dead_exchange
        self._publisher = publisher
        self._leadership = leadership
        self._inbox = inbox
        self._senders = senders
        self._limits = limits
        self._wires = wires
        self._frozen = frozen
        self._run_s = run_s
        self._wall_s = wall_s
        self._downtime = downtime
        self._effects = effects
        self._chunked = chunked
        self._certificates = certificates
        self._left_out = LeftOut(core)
        self._refusals = Refusals(core)
        self._control_rate = ControlRate(hellos_per_s, core.proven_of)
        self._control_in_a_row = 0
        self._wakeup_s = float("inf")
        self._stopping = False
        self._blocked = False
        """True if the broker takes no messages now (memory or disk alarm)."""
        self._awake_s = float("-inf")
        self._held: deque[UpdateArrived] = deque()
        """Updates whose last chunk came while a version is distilled: at most those of the payload in hand."""

    # The loop

    @property
    def committed(self) -> CheckpointRow:
        """The newest checkpoint that is committed."""
        return self._committer.state

    def run(self, lost_buffer: BufferFailed | None = None) -> None:
        """Work until the run finishes or Stop arrives. A run that has finished already still gets its goodbye.

        `lost_buffer` says that the buffer of the restored state makes no version.

        Raises Deposed if another coordinator has taken over, and StrategyFailed if the strategy fails: the core cannot
        go on then. Raises ConfigError, after a commit, if the run's goals are never measured.
        """
        if lost_buffer is not None:
            self._step(lost_buffer)
        self._step(Started(self._senders.revoked_before()))
        self._keep_lead()
        while not self._over():
            self._collect()
            self._keep_lead()
            worked = self._work()
            now = self._run_s()
            if now >= self._folder_checked_s + LOOK_S:
                self._folder_checked_s = now
                self._check_folder()
                self._publisher.look()
            if now >= self._senders.due_s:
                self._senders.look(now)
                self._revoke()
            if now >= self._wakeup_s:
                self._step(Tick())
                self._wakeup_s = max(self._next_wakeup_s(), now + 0.001)
            if self._pace.due_s(self._effects.pending, idle=not worked) <= now:
                self._commit()
            elif not worked and not self._over():
                self._wait(now)
        self._leave()
        if self._core.mistake is not None and not self._stopping:
            raise ConfigError(
                f"{self._core.mistake}. The run stands at version {self._core.version} with {self._core.accepted} "
                "updates, and the same command continues it"
            )

    def _over(self) -> bool:
        return self._stopping or self._core.finished is not None or self._core.mistake is not None

    def _collect(self) -> None:
        for item in self._inbox.arrived():
            self._on_item(item)

    def _wait(self, now: float) -> None:
        self._wakeup_s = self._next_wakeup_s()
        chunks_s = float("inf") if self._core.distilling else self._chunked.due_s()
        due_s = min(self._wakeup_s, chunks_s, self._senders.due_s)
        until_s = min(self._pace.due_s(self._effects.pending, idle=True), due_s)
        self._wait_for_item(min(max(0.0, until_s - now), self._leadership.wait_s(), LOOK_S))

    def _wait_for_item(self, timeout_s: float) -> None:
        item = self._inbox.wait(timeout_s)
        if item is not None:
            self._on_item(item)

    def _next_wakeup_s(self) -> float:
        due_s = self._core.next_wakeup()
        return float("inf") if due_s is None else due_s

    def _on_item(self, item: Any) -> None:
        """Work on one item from the inbox; only deliveries of the two queues wait."""
        if isinstance(item, Delivery):
            if self._leadership.owns(item):
                self._leadership.on_token(item)
            elif self._inbox.is_control(item) and not self._control_rate.allows(item.user_id, self._run_s()):
                self._transport.ack(item)
            else:
                self._inbox.add(item)
        elif isinstance(item, TaskPublished):
            self._on_published(item)
        elif isinstance(item, ModelBytes):
            self._effects.pending.group.models.append(item)
        elif isinstance(item, UploadsPrepared):
            self._publisher.uploads_prepared(item)
        elif isinstance(item, News):
            item.sender.on_news(item)
        elif isinstance(item, ChunkNews):
            self._carry_out(self._chunked.on_news(item, self._run_s()))
        elif isinstance(item, EvaluationArrived):
            self._on_evaluation(item)
        elif isinstance(item, Distilled | DistilFailed):
            self._on_distilled(item)
        elif isinstance(item, CertificateAnswered):
            self._publisher.certificate(item.user, item.answer)
        elif isinstance(item, TransportState):
            self._on_transport(item)
        elif isinstance(item, StreamNews):
            item.sender.on_news(item)
        elif isinstance(item, Stop):
            self._stopping = True

    def _work(self) -> bool:
        """Work on one delivery or payload; False if there is none, or RAM has no room for another version."""
        if self._inbox.control and self._control_in_a_row < CONTROL_IN_A_ROW:
            self._control_in_a_row += 1
            self._on_control(self._inbox.control.popleft())
            return True
        self._control_in_a_row = 0
        return self._work_on_update() or (bool(self._inbox.control) and self._work())

    def _work_on_update(self) -> bool:
        if self._core.distilling:
            return False
        if self._held:
            self._step_update(self._held.popleft())
            return True
        if self._inbox.updates and self._publisher.versions_waiting <= MOST_VERSIONS_WAITING + self._blocked:
            self._on_update(self._inbox.updates.popleft())
            return True
        if self._chunked.idle:
            return False
        outcomes = self._chunked.work(self._run_s(), self._has_room_for_a_payload())
        self._carry_out(outcomes or ())
        return outcomes is not None

    def _has_room_for_a_payload(self) -> bool:
        """False if a task that is to be committed or sent keeps older parameters in RAM. While the broker takes
        nothing, because of a full disk for example, one older version may stay: our payloads have to leave that
        disk."""
        held = self._effects.versions | self._publisher.versions
        return len(held | {self._core.version}) <= 1 + self._blocked

    # Leadership and the connection

    def _on_transport(self, state: TransportState) -> None:
        level = logging.INFO if state.name in ("connected", "unblocked") else logging.WARNING
        log.log(level, f"broker_{state.name}", detail=state.detail)
        if state.name in ("blocked", "unblocked", "disconnected"):
            self._blocked = state.name == "blocked"
        self._note_broker(state)
        if state.name == "disconnected":
            self._leadership.doubt()
            self._stop_consuming()
            self._publisher.doubt_exchanges()
        elif state.name == "consumer_lost":
            self._leadership.renew()

    def _note_broker(self, state: TransportState) -> None:
        """Note the news in the ledger, for people who look at the run."""
        found = BROKER_STATES.get(state.name)
        if found is not None:
            with contextlib.suppress(OSError):  # the next commit tells of the disk
                self._ledger.note_broker(BrokerRow(found, state.detail[:MOST_DETAIL_CHARS], self._wall_s()))

    def _keep_lead(self) -> None:
        """Consume while this coordinator is the active one. While it does not know, it still commits its updates in its
        epoch: the ledger refuses if another one has taken over."""
        self._leadership.pass_time()
        active, now = self._leadership.active, self._run_s()
        if not (active and self._inbox.consuming) or now - self._awake_s > STOOD_STILL_S:
            self._ledger.check_epoch()
        self._awake_s = now
        if active and not self._inbox.consuming:
            self._inbox.consume(self._pace.window, 2 * CONTROL_WINDOW)
        elif self._inbox.consuming and not active:
            self._stop_consuming()

    def _stop_consuming(self) -> None:
        self._inbox.stop_consuming()
        self._take_back_manifests()

    def _take_back_manifests(self) -> Sequence[Delivery]:
        """Return the manifests of all updates that are not at their end, and forget them."""
        return [self._effects.let_go(handle) for handle in self._chunked.clear()]

    # What happened

    def _on_published(self, published: TaskPublished) -> None:
        self._publisher.task_done(published)
        if published.error is not None:
            log.warning("task_undeliverable", task=published.task_id, error=published.error)
            self._step(TaskUndeliverable(published.task_id, str(published.error)))
        elif published.sent is not None:
            self._effects.pending.group.sent.append(published.sent)
            if published.read is not None:
                self._effects.pending.group.models.append(ModelBytes.read(*published.read))
            self._effects.pending.touch(self._run_s(), ())  # nothing else may happen for as long as a training takes

    def _on_evaluation(self, event: EvaluationArrived) -> None:
        shown = " ".join(f"{name}={value:.6g}" for name, value in event.metrics.items())
        failed = event.detail and not event.detail.startswith(SUPERSEDED)
        level = logging.WARNING if failed else logging.INFO
        said = {"detail": event.detail} if event.detail else {"metrics": shown}
        log.log(level, "evaluated", version=event.version, **said)
        self._step(event)

    def _on_distilled(self, event: Distilled | DistilFailed) -> None:
        fault("distil-answered")
        if any(isinstance(command, NewVersion) and command.plain == "" for command in self._step(event)):
            assert isinstance(event, Distilled)
            self._committer.keep_version(event.version, event.tensors)
            fault("distilled-kept")

    def _on_control(self, delivery: Delivery) -> None:
        event = read_control(self._senders, PLAIN, delivery)
        self._revoke()
        if isinstance(event, CertificateNews):
            if self._certificates is not None:
                self._certificates.hand_over(event.message, event.user)
                self._transport.ack(delivery)
                return
            event = ControlPoison("not_enrolled", "a message about certificates, and there is no fleet here")
        if isinstance(event, ControlPoison):
            if event.reason in COUNTED:
                handle = self._effects.hold(delivery)
                self._step(PoisonArrived(handle, event.reason, event.detail))  # type: ignore[arg-type]
                return
            log.warning("control_message_discarded", reason=event.reason, detail=event.detail)
            self._transport.dead_letter(delivery, self._dead_exchange, event.reason, event.detail)
            return
        if isinstance(event, ParticipantSeen):
            event = self._with_unissued(event)
        self._step(event)
        if isinstance(event, TaskDeclined):
            self._refusals.on_decline(event)
            if event.reason == "payload_lost":
                self._publisher.reference_lost(event.participant_id)
            if event.reason == "frozen_lost" and self._frozen is not None:
                self._frozen.on_lost(event.participant_id)
        if isinstance(event, ParticipantSeen):
            self._left_out.on_hello(event.hello, event.user)
            if self._frozen is not None:
                self._frozen.on_hello(event.hello)
            if self._core.awaits_from(event.hello.participant_id, event.hello.task_ids):
                self._publisher.prepare_uploads(event.hello.participant_id)
        self._effects.settle_control(delivery)

    def _with_unissued(self, seen: ParticipantSeen) -> ParticipantSeen:
        """Return the hello with those of its tasks that a newer ledger has, or another copy of this one."""
        hello = seen.hello
        doubtful = self._core.doubtful(hello.participant_id, (hello.last_task, *hello.task_ids))
        unissued = tuple(task_id for task_id in doubtful if not self._ledger.has_task(task_id))
        return replace(seen, unissued=unissued) if unissued else seen

    def _on_update(self, delivery: Delivery) -> None:
        event = read_update(
            self._core, self._senders, self._limits, self._effects.hold(delivery), delivery, self._wires, self._frozen
        )
        self._revoke()
        if isinstance(event, UpdateArrived) and event.update.chunks is not None:
            self._carry_out(self._chunked.on_manifest(event))
        else:
            self._step_update(event)

    def _revoke(self) -> None:
        """Tell the core of participants that were revoked, before it judges a message of theirs."""
        for participant_id in self._senders.news():
            log.warning("participant_revoked", participant=participant_id)
            self._step(ParticipantRevoked(participant_id))

    def _carry_out(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Superseded):
                self._transport.ack(self._effects.let_go(outcome.handle))
            elif isinstance(outcome, SendAgain):
                self._effects.send_again(outcome.handle, outcome.update, outcome.detail, self._run_s())
            elif isinstance(outcome, DeletePayload):
                self._effects.delete_payload(outcome.update)
            else:
                if isinstance(outcome, UpdateArrived):  # its chunks took a while
                    self._senders.ask_again(outcome.update.participant_id)
                    self._revoke()
                    if self._core.distilling:
                        self._held.append(outcome)
                        continue
                self._step_update(outcome)

    # Steps

    def _step_update(self, event: UpdateArrived | PoisonArrived) -> None:
        if isinstance(event, PoisonArrived):
            self._step(event)
            return
        accepted, task_id = self._core.accepted, event.update.task_id
        if not self._core.holds(task_id):
            event = event._replace(closed_task=self._effects.closed_task(task_id, self._ledger))
        self._step(event)
        if self._core.accepted > accepted:
            self._refusals.on_accepted()
            self._publisher.reference_found(event.update.participant_id)
            if self._frozen is not None:
                self._frozen.on_accepted(event.update.participant_id, event.update.base_version)
            self._committer.keep_payload(self._core.accepted, event.payload)

    def _step(self, event: Event) -> list[Command]:
        now = self._run_s()
        stood_still_s = self._downtime.since_last(now, self._wall_s())
        if stood_still_s:
            gap = TimeStoodStill(stood_still_s)
            self._effects.on_step(gap, self._core.step(gap, now), now)
        commands = self._core.step(event, now)
        self._effects.on_step(event, commands, now)
        return commands

    # Commits

    def _commit(self) -> bool:
        """Make everything durable, then ack and tell everybody; False if the disk refused and nothing was acked."""
        began_s = self._run_s()
        self._check_folder()
        try:
            self._committer.commit(self._core, self._effects.pending, self._run_s)
        except OSError as error:
            self._pace.failed(self._run_s())
            detail = f"nothing was acked: {error}. Make room on the disk"
            log.error("commit_failed", retry_s=self._pace.retry_s, detail=detail)
            return False
        self._check_folder()  # a file without a name takes a commit, and ends with this process
        done = self._effects.taken()
        settle(done, self._transport, self._dead_exchange)
        tell(self._run_id, done, self._publisher, self._ledger)
        ended_s = self._run_s()
        self._pace.succeeded(began_s, ended_s)
        log.debug("commit", updates=done.num_updates, version=self._core.version, took_s=f"{ended_s - began_s:.4f}")
        return True

    # The end

    def _leave(self) -> None:
        """Commit once more. If the run is over, and the ledger says so, answer the updates that have reached the queue
        and say goodbye."""
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
        say_goodbye(self._run_id, finished, self._publisher, self._ledger)
        self._publisher.delete_models()
        if left := self._publisher.flush(FAREWELL_S):
            detail = f"the broker took nothing for {FAREWELL_S:g} s"
            log.warning("receipts_and_notices_not_delivered", count=left, detail=detail)

    def _answer_the_rest(self) -> None:
        """Discard the updates that come too late, with a reason, instead of leaving them to the next run."""
        began_s = heard_s = self._run_s()
        quiet = 0
        while self._held:
            self._step_update(self._held.popleft())
        updates = self._inbox.updates
        updates.extendleft(reversed(self._take_back_manifests()))
        while not self._stopping and quiet < QUIET_POLLS:
            self._collect()
            now = self._run_s()
            if updates or self._effects.pending.num_updates:
                heard_s, quiet = now, 0
                while updates:
                    self._on_update(updates.popleft())
                if not self._commit():
                    return
                continue
            if now > min(heard_s + STRAGGLERS_S, began_s + FAREWELL_S):
                return
            # An update that is neither ready in the queue nor here may be on its way between the two: look again.
            quiet = quiet + 1 if not self._effects.expects_stragglers and self._nothing_to_come() else 0
            self._wait_for_item(DEPTH_POLL_S)

    def _nothing_to_come(self) -> bool:
        try:
            return self._inbox.nothing_to_come()
        except BrokerError:
            return True  # nobody can tell

    def _wait_for_room(self) -> None:
        """Wait until the next try to commit, or Stop. Whatever arrives meanwhile is answered after it."""
        until_s = self._pace.due_s(self._effects.pending, idle=True)
        while not self._stopping and (left_s := until_s - self._run_s()) > 0:
            self._wait_for_item(left_s)
