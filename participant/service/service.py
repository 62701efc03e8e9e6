"""The participant's I/O around its agent: transport, spool, training thread and clock.

Threads
- The caller of `run()` owns the agent, the spool and every decision. It reads one inbox.
- The transport's own thread only puts deliveries and news into that inbox.
- One training thread calls the trainer, so neither heartbeats nor hellos wait for an hour-long `fit`.
- One short-lived thread opens the transport, so a spooled task is trained while the broker is away.

`participant.service.task_intake` carries out the agent's commands about a task until its training begins, and
`participant.service.publishing` those about messages to the broker.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from fedmq.broker_config.chunks.receiver import ChunkArrived
from fedmq.broker_config.chunks.sender import News
from fedmq.broker_config.faults import fault
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, Transport, TransportState
from fedmq.participant.decisions import events as ev
from fedmq.participant.decisions.agent import Agent
from fedmq.participant.service.context import ServiceContext
from fedmq.participant.service.publishing import ParticipantPublisher
from fedmq.participant.service.renewal import Credentials, Renewal
from fedmq.participant.service.startup import num_examples_of, restore, signals
from fedmq.participant.service.strangers import Strangers
from fedmq.participant.service.task_intake import TaskIntake
from fedmq.participant.settings import ParticipantSettings
from fedmq.participant.spool.spool import SentRecord, Spool
from fedmq.participant.trainer import TrainerElsewhere
from fedmq.participant.training.methods import replies_of
from fedmq.participant.training.thread import Trained, TrainingThread
from fedmq.schemas.codec import Limits, decode
from fedmq.schemas.codecs.codec import Codec
from fedmq.schemas.codecs.known import capabilities
from fedmq.schemas.errors import AppError, BadSignature, MalformedMessage, PeerError, SpoolError
from fedmq.schemas.limits import CHUNK_BYTES, MAX_PAYLOAD_BYTES, MAX_TENSORS, header_bytes
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import RUN_ID_HEADER, Certificate, Notice, Receipt, Task, is_identifier, run_uid
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import Verify

log = EventLog(__name__)

TICK_S = 0.5
CONDITIONS_INTERVAL_S = 5.0
"""Time between two looks at the conditions if nothing happens."""
FRESH_CONDITIONS_S = 1.0
"""Greatest age of the last look at the conditions when a task arrives."""
PREFETCH = 4
CLOSE_S = 2.0
"""Time that the transport has to send its last messages. Updates that it does not send are on disk."""


@dataclass(frozen=True, slots=True)
class _Delivered:
    delivery: Delivery


@dataclass(frozen=True, slots=True)
class _Broken:
    """A transport that cannot go on."""

    error: Exception


class ParticipantService:
    """One participant. `run()` blocks until the run finishes or `stop()` is called; a service runs once.

    `conditions()` returns None if a task may be taken, else a text that says which condition does not hold
    (`participant.conditions.checker`). `credentials` are those of a device that renews its certificate.
    """

    def __init__(
        self,
        *,
        participant_id: str,
        settings: ParticipantSettings,
        trainer: Any,
        transport: Transport,
        topology: Topology,
        spool_dir: Path,
        conditions: Callable[[], str | None] | None = None,
        max_message_bytes: int,
        chunk_bytes: int = CHUNK_BYTES,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        max_tensors: int = MAX_TENSORS,
        publish_timeout_s: float = 60.0,
        coordinator_user: str | None = None,
        credentials: Credentials | None = None,
        verify: Verify | None = None,
        own_codec: Codec | None = None,
    ) -> None:
        """`coordinator_user`: the only user whose messages and chunks are believed; None believes everybody's.
        `verify` checks the signatures of tasks; None takes tasks without one. `own_codec` is the codec of the
        federation's own file."""
        self.participant_id = participant_id
        self._settings = settings
        self._trainer = trainer
        self._transport = transport
        self._topology = topology
        self._spool_dir = spool_dir
        self._conditions = conditions
        self._unmet: str | None = None
        self._conditions_at = float("-inf")
        header = header_bytes(max_tensors)
        self._limits = Limits(max_message_bytes, header, max_tensors)
        self._payload_limits = Limits(max_payload_bytes, header, max_tensors)
        self._chunk_bytes = min(chunk_bytes, max_message_bytes)
        self._publish_timeout_s = publish_timeout_s
        self._coordinator_user = coordinator_user
        self._strangers = Strangers(participant_id, coordinator_user)
        self._credentials = credentials
        self._verify = verify
        self._renewal: Renewal | None = None
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._max_payload_bytes = max_payload_bytes
        self._training: TrainingThread
        self._own_codec = own_codec
        self._handles = itertools.count(1)
        self._deliveries: dict[ev.DeliveryHandle, Delivery] = {}
        self._tick_at = float("-inf")
        self._spool: Spool
        self._intake: TaskIntake
        self._publisher: ParticipantPublisher
        self._agent: Agent

    def run(self) -> str:
        """Serve until the run is finished ("run_finished") or `stop()` was called ("stopped").

        Raises AppError if the app cannot be loaded, or if its model is not the federation's, SpoolError if the spool is
        in use, cannot be made or was taken away, and BrokerRefused if the broker does not take this participant's login
        or has no rights for it.
        """
        trainer = self._trainer
        if not isinstance(trainer, TrainerElsewhere):
            return self._run(trainer)
        try:
            return self._run(trainer.open())
        finally:
            trainer.close()
            self._transport.close()  # if the trainer was not opened, nobody else does it

    def _run(self, trainer: Any) -> str:
        name = f"train-{self.participant_id}"
        self._training = TrainingThread(trainer, name, self._max_payload_bytes, self._inbox.put, self._own_codec)
        self._spool = Spool(self._spool_dir, self.participant_id)
        context = ServiceContext(
            participant_id=self.participant_id,
            transport=self._transport,
            topology=self._topology,
            spool=self._spool,
            limits=self._limits,
            payload_limits=self._payload_limits,
            chunk_bytes=self._chunk_bytes,
            publish_timeout_s=self._publish_timeout_s,
            coordinator_user=self._coordinator_user,
            verify=self._verify,
            put=self._inbox.put,
        )
        self._intake = TaskIntake(context, self._training)
        self._publisher = ParticipantPublisher(context)
        self._renewal = None if self._credentials is None else Renewal(context, self._credentials)
        try:
            self._training.open()
            with signals(self.stop):
                return self._serve(trainer)
        finally:
            self._transport.close(CLOSE_S)
            self._training.close()
            self._spool.close()

    def stop(self) -> None:
        """Leave soon. Updates get a few seconds to be delivered; the others stay on disk. Any thread or signal handler
        may call this."""
        self._inbox.put(ev.StopRequested())

    # The agent's loop

    def _serve(self, trainer: Any) -> str:
        self._agent = agent = Agent(
            self.participant_id,
            uuid.uuid4().hex,
            self._settings,
            num_examples=num_examples_of(trainer),
            rng=random.Random(),  # noqa: S311  jitter
            restored=restore(self._spool, self._limits),
            replies=replies_of(trainer),
            codecs=capabilities(self._own_codec),
            software=f"fedmq {importlib.metadata.version('fedmq')}",
        )
        log.info("started", participant=self.participant_id, session=agent.session_id)
        self._look_at_conditions(FRESH_CONDITIONS_S)
        self._handle(ev.Started())
        threading.Thread(target=self._open, name=f"open-{self.participant_id}", daemon=True).start()
        while True:
            try:
                item = self._inbox.get(timeout=TICK_S)
            except Empty:
                item = None
            left = self._on_item(item) if item is not None else None
            now = time.monotonic()
            if left is None and now >= self._tick_at:
                self._tick_at = now + TICK_S
                self._spool.check()
                self._intake.tick(now)
                left = self._look_at_conditions(CONDITIONS_INTERVAL_S)
                left = left or self._handle(ev.Tick())
                if self._renewal is not None:
                    self._renewal.tick(now, connected=agent.state != "disconnected")
            if self._renewal is not None and agent.state == "idle":
                self._renewal.when_idle()
            if left is not None:
                dropped = {"strangers_messages": self._strangers.count} if self._strangers.count else {}
                log.info("leaving", participant=self.participant_id, why=left.reason, **dropped)
                if left.error is not None:
                    raise AppError(left.error)
                return left.reason

    def _on_item(self, item: Any) -> ev.Exit | None:
        match item:
            case _Delivered(delivery):
                return self._on_delivery(delivery)
            case Trained(update):
                fault("trained")
                self._publisher.keep(item)
                return self._handle(ev.TrainingFinished(update.task_id, update.num_examples))
            case News():
                self._publisher.on_news(item)
                return None
            case ChunkArrived():
                self._intake.on_chunk(item)
                return None
            case _Broken(error):
                raise error
            case TransportState():
                return self._on_state(item)
            case _:
                return self._handle(item)

    def _on_state(self, state: TransportState) -> ev.Exit | None:
        level = logging.INFO if state.name in ("connected", "unblocked") else logging.WARNING
        log.log(level, f"broker_{state.name}", participant=self.participant_id, detail=state.detail)
        if state.name == "connected":
            return self._handle(ev.Connected())
        if state.name == "disconnected":
            # The broker takes unacked deliveries back, so acks of them would return False.
            self._deliveries.clear()
            self._intake.disconnected()
            return self._handle(ev.Disconnected())
        if state.name == "consumer_lost":
            self._intake.interrupted(time.monotonic())
        return None

    def _on_delivery(self, delivery: Delivery) -> ev.Exit | None:
        if self._strangers.sent(delivery.user_id):
            self._transport.ack(delivery)
            return None
        try:
            decoded = decode(delivery.body, self._limits)
        except PeerError as error:
            return self._refuse(delivery, error)
        match decoded.message:
            case Task() as task:
                return self._on_task(task, decoded.parameters, delivery)
            case Receipt() as receipt:
                log.info(
                    "receipt", participant=self.participant_id, task=receipt.task_id, verdict=receipt.verdict,
                    **_outcome(receipt),
                )  # fmt: skip
                event: ev.Event = ev.ReceiptReceived(receipt)
            case Notice() as notice:
                log.info(notice.event, participant=self.participant_id, run=notice.run_id)
                event = ev.NoticeReceived(notice)
            case Certificate() as answer if self._renewal is not None:
                self._renewal.on_answer(answer)
                self._transport.ack(delivery)
                return None
            case other:
                return self._refuse(delivery, MalformedMessage(f"got a {other.kind}, which is for somebody else"))
        left = self._handle(event)
        self._transport.ack(delivery)
        return left

    def _on_task(self, task: Task, parameters: Parameters | None, delivery: Delivery) -> ev.Exit | None:
        log.info(
            "task_received", participant=self.participant_id, task=task.task_id, run=task.run_id,
            base_version=task.base_version, bytes=len(delivery.body), redelivered=delivery.redelivered,
        )  # fmt: skip
        try:
            self._intake.arrived(task, parameters)
        except BadSignature as error:
            return self._refuse_task(task, delivery, error)
        left = self._look_at_conditions(FRESH_CONDITIONS_S)
        if left is not None:
            return left
        handle = next(self._handles)
        self._deliveries[handle] = delivery
        left = self._handle(ev.TaskReceived(task, handle))
        self._intake.decided(task, goes_back=self._agent.leaving and handle in self._deliveries)
        return left

    def _refuse(self, delivery: Delivery, error: PeerError) -> ev.Exit | None:
        """Ack a message that cannot be read: a participant has no right to the dead-letter queue. If it names a task,
        decline that, so that the coordinator need not wait for the lease's end."""
        task_id, run_id = delivery.correlation_id, delivery.headers.get(RUN_ID_HEADER)
        log.error("bad_message", participant=self.participant_id, task=task_id, reason=error.reason, detail=error)
        left = None
        if is_identifier(task_id) and is_identifier(run_id):
            left = self._handle(ev.TaskUnreadable(str(task_id), str(run_id), f"{error.reason}: {error}"))
        self._transport.ack(delivery)
        return left

    def _refuse_task(self, task: Task, delivery: Delivery, error: BadSignature) -> ev.Exit | None:
        """Ack a task that the coordinator has not signed, and decline it unless that very task is in hand or over."""
        log.error("task_refused", participant=self.participant_id, task=task.task_id, detail=error)
        left = None
        if task.participant_id == self.participant_id:
            left = self._handle(ev.TaskUnreadable(task.task_id, task.run_id, str(error), "bad_signature"))
        self._transport.ack(delivery)
        return left

    def _look_at_conditions(self, at_most_s: float) -> ev.Exit | None:
        now = time.monotonic()
        if self._conditions is None or now < self._conditions_at + at_most_s:
            return None
        self._conditions_at = now
        unmet = self._conditions()
        if unmet == self._unmet:
            return None
        self._unmet = unmet
        log.info("conditions", participant=self.participant_id, unmet=unmet)
        return self._handle(ev.ConditionsChanged(unmet))

    def _handle(self, event: ev.Event) -> ev.Exit | None:
        """Feed an event, carry out its commands, and feed the events that they cause."""
        events: list[ev.Event] = [event]
        left: ev.Exit | None = None
        while events:
            for command in self._agent.step(events.pop(0), time.monotonic()):
                if isinstance(command, ev.Exit):
                    left = left or command
                    continue
                caused = self._do(command)
                if caused is not None:
                    events.append(caused)
        return left

    # Commands

    def _do(self, command: ev.Command) -> ev.Event | None:
        match command:
            case ev.SpoolTask(task, handle):
                return self._intake.spool(task, handle, self._deliveries[handle].body)
            case ev.StartTraining(task):
                return self._intake.start_training(task)
            case ev.WriteOutbox(task_id, uid):
                return self._publisher.write_update(task_id, uid)
            case ev.MoveMemory(uid, task_id):
                return self._move_memory(uid, task_id)
            case ev.PublishUpdate(uid, task_id, from_start):
                return self._publisher.send_update(uid, task_id, from_start)
            case ev.AnnounceAgain(uid, task_id):
                return self._publisher.announce_again(uid, task_id)
            case ev.CancelSpooling():
                self._intake.cancel_spooling()
            case ev.SendHello(hello):
                self._publisher.send_hello(hello)
            case ev.SendDecline(decline):
                self._publisher.send_decline(decline)
            case ev.Ack(handle):
                delivery = self._deliveries.pop(handle, None)
                fault("before-task-ack")
                if delivery is None or not self._transport.ack(delivery):
                    log.info("ack_too_late", participant=self.participant_id, why="it will come again")
            case ev.CancelTraining():
                self._training.cancel()
            case ev.Note(level, event, fields):
                log.log(logging.getLevelNamesMapping()[level.upper()], event, participant=self.participant_id, **fields)
            case _:
                self._tidy(command)
        return None

    def _tidy(self, command: ev.Command) -> None:
        """Carry out a command whose failure loses nothing. A file that stays is recognised as old, here or by the
        coordinator."""
        try:
            match command:
                case ev.ClearTask():
                    self._spool.clear_task()
                    fault("task-cleared")
                case ev.ClearOutbox(uid):
                    fault("before-update-cleared")
                    self._publisher.forget(uid)
                    fault("update-cleared")
                case ev.DropNextMemory(uid):
                    fault("before-memory-given-back")
                    self._spool.drop_next_memory(uid)
                case ev.ForgetSoftMemory(task_id):
                    self._spool.forget_soft_memory(run_uid(task_id))
                case ev.ClearMemory(run_id):
                    self._spool.clear_memory(run_id)
                case ev.WriteSent(sent, done):
                    fault("before-remembered")
                    self._spool.write_sent(SentRecord(sent, done))
        except SpoolError as error:
            log.error("spool_not_tidied", participant=self.participant_id, detail=error)

    def _move_memory(self, uid: str, task_id: str) -> ev.Event:
        fault("before-memory-moved")
        try:
            self._spool.move_memory(uid, run_uid(task_id))
        except SpoolError as error:
            return ev.MemoryNotMoved(uid, str(error))
        fault("memory-moved")
        return ev.MemoryMoved(uid)

    # The thread that opens the transport

    def _open(self) -> None:
        queue = self._topology.participant(self.participant_id)
        try:
            self._transport.open(
                self._topology.seen_exchanges, (queue, *self._topology.seen_queues), self._inbox.put, timeout_s=None
            )
            self._transport.consume(queue.name, lambda delivery: self._inbox.put(_Delivered(delivery)), PREFETCH)
        except Exception as error:  # noqa: BLE001  raised again by run(), in its caller's thread
            self._inbox.put(_Broken(error))


def _outcome(receipt: Receipt) -> dict[str, object]:
    """Say why an update was discarded, or which version an accepted one is in, if there is one yet."""
    if receipt.verdict == "discarded":
        return {"reason": receipt.reason}
    return {"buffered": True} if receipt.version is None else {"version": receipt.version}
