"""Publishes to the participants: tasks within a window of bytes, receipts and notices as they come.

A task is encoded only when the window has room. Until then it is a reference to an immutable version: a thousand tasks
of a large model cost one model, not a thousand. A task that is too large for one message goes out in chunks, one task
after the other, into a queue of its own. The task itself follows as their manifest, so no participant waits for chunks
that never come. A task may also refer to a model that several tasks read (coordinator.service.outgoing.references):
then the tasks wait until it is there. Nothing here decides, and nothing waits but `flush`.

A coordinator with a fleet signs each task just before it is encoded. The tensors of a version are hashed once.
"""

from __future__ import annotations

import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Collection
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass

from fedmq.broker_config.chunks.sender import ChunkSender, News
from fedmq.broker_config.faults import fault
from fedmq.broker_config.topology import DEFAULT_EXCHANGE, LEAST_MESSAGE_BYTES, MAX_MESSAGE_BYTES, Topology
from fedmq.broker_config.transport import Message, Transport
from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.service.outgoing.frozen import FrozenForm, FrozenTasks
from fedmq.coordinator.service.outgoing.model_stream import Published
from fedmq.coordinator.service.outgoing.references import Key, References
from fedmq.schemas.chunks import Pieces
from fedmq.schemas.codec import encode, encode_in_pieces
from fedmq.schemas.errors import PublishRejected, Unroutable
from fedmq.schemas.limits import CHUNK_BYTES
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import (
    RUN_ID_HEADER,
    SCHEMA_VERSION,
    Certificate,
    ChunkedPayload,
    ModelReference,
    Notice,
    Receipt,
    Reply,
    Task,
    Uplink,
)
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import Sign, signed, tensors_digest

log = EventLog(__name__)

FINISHED_NEWS_S = 600.0
"""Seconds for which the end of a run is news: a participant that comes later may have come for the next run."""
REFUSED_AGAIN_S, REFUSED_TRIES = 0.5, 30
"""Seconds between the tries, and their number, for the end of a run that was refused with a nack, for example because
the participant's queue elects a leader. Nobody else tells it. The tries take longer than the time for which a channel
that refuses for ever is kept (broker_config.amqp.publisher, rule 7)."""
HEADER_BYTES = 32 * 1024
"""More than an update holds beside its tensors: ids, metrics, and the names and shapes of its tensors."""
PREPARED_S = 3.0
"""Seconds for which the exchange of a participant's uploads is taken to be there. Somebody may delete it."""
_NEVER: tuple[float, Future[int]] = float("-inf"), Future()
_NEVER[1].set_result(0)
_LEAST_EXPIRY_S, _MOST_EXPIRY_S = 60.0, 14 * 24 * 3600.0
"""Bounds of the seconds after which chunks that nobody fetches go away; in between it is the task's lease."""


@dataclass(frozen=True, slots=True)
class TaskPublished:
    """The end of a task's publish; `error` is None if the broker took it over."""

    task_id: str
    num_bytes: int
    error: BaseException | None
    sent: tuple[int, int, int] | None = None
    """(seq, wire bytes, decoded bytes) of what the broker has taken (coordinator.state.ledger.traffic)."""
    read: tuple[int, int] | None = None
    """(version, wire bytes) of the model that the task refers to; None if it is whole."""


@dataclass(frozen=True, slots=True)
class UploadsPrepared:
    """The answer about the exchange of a participant's uploads; `error` is None if it is there."""

    participant_id: str
    error: BaseException | None


class CoordinatorPublisher:
    """Sends to each participant's queue, through the default exchange. The loop's thread calls everything; `put` is
    called from the transport's thread."""

    def __init__(
        self,
        transport: Transport,
        topology: Topology,
        *,
        run_id: str,
        reply: Reply,
        window_bytes: int,
        timeout_s: float,
        put: Callable[[TaskPublished | News | UploadsPrepared], None],
        update_bytes: int = 0,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        chunk_bytes: int = CHUNK_BYTES,
        clock: Callable[[], float] = time.monotonic,
        sign: Sign | None = None,
        uplink: Uplink | None = None,
        frozen: FrozenTasks | None = None,
        steps: bool = False,
        references: References | None = None,
    ) -> None:
        """`update_bytes`: the length of every update's tensors. `sign` signs tasks; None leaves them unsigned.
        `uplink` is the codec that updates are asked for in. `frozen` knows who has the model's frozen part.
        `steps`: tasks travel as steps of a hidden state, to those that read them. `references` decides which tasks
        refer to a model. None: no task does."""
        self._transport = transport
        self._clock = clock
        self._run_id = run_id
        self._reply = reply
        self._window_bytes = window_bytes
        self._timeout_s = timeout_s
        self._put = put
        self._waiting: deque[tuple[IssueTask, Parameters]] = deque()
        self._bytes_in_flight = 0
        self._unanswered: deque[tuple[Receipt | Notice | Certificate, Future[None]]] = deque()
        """Receipts and notices in the order in which they left. Some may have been answered."""
        self._refused: list[Notice] = []
        """Notices of the end of the run that got a nack."""
        self._topology = topology
        self._max_message_bytes = max_message_bytes
        self._chunk_bytes = chunk_bytes
        self._sending: tuple[IssueTask, ChunkSender] | None = None
        """The task whose chunks are going out."""
        self._updates_in_chunks = update_bytes + HEADER_BYTES > min(LEAST_MESSAGE_BYTES, max_message_bytes)
        """True if a participant may have to send its updates in chunks, by its own settings."""
        self._prepared: dict[str, tuple[float, Future[int]]] = {}
        """Time at which the exchange of a participant's uploads was last asked for, and the answer."""
        self._sign = sign
        self._uplink = uplink
        self._frozen = frozen
        self._steps = steps
        self._references = references
        self._plain: set[str] = set()
        """Participants that were told to lack a codec."""
        self._hashed: tuple[weakref.ref[Parameters], bytes] | None = None
        """The tensors that were hashed last, without keeping them in RAM, and their digest."""

    @property
    def versions(self) -> set[int]:
        """Base versions of the tasks that are not sent yet: these tasks keep the versions' parameters in RAM."""
        held = {command.base_version for command, _ in self._waiting}
        if self._references is not None and self._references.publishing is not None:
            held.add(self._references.publishing)
        return held | {self._sending[0].base_version} if self._sending else held

    @property
    def versions_waiting(self) -> int:
        """Upper bound of the number of model versions that wait here to be sent."""
        if not self._waiting:
            return 0
        return min(len(self._waiting), self._waiting[-1][0].base_version - self._waiting[0][0].base_version + 1)

    def task(self, command: IssueTask, parameters: Parameters) -> None:
        """Send a task with the tensors of its base version that travel, as soon as the window has room."""
        self.prepare_uploads(command.participant_id)
        self._waiting.append((command, parameters))

    def withdraw(self, task_ids: Collection[str]) -> None:
        """Send these tasks no more: they would come after the notices that withdraw them, and be trained in vain. Their
        participants drop those that have left."""
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0].task_id not in task_ids)
        if self._sending is not None and self._sending[0].task_id in task_ids:
            sender = self._sending[1]
            self._sending = None
            sender.cancel()
            self._transport.delete_queue(sender.queue.name)

    def withdraw_all(self) -> None:
        """Send no tasks any more. The next active coordinator sends what participants miss, into queues of its own."""
        self._waiting.clear()
        if self._references is not None:
            self._references.cancel()
        if self._sending is not None:
            self.withdraw({self._sending[0].task_id})

    def prepare_uploads(self, participant_id: str) -> None:
        """Make the exchange of a participant's uploads, if it may need one and none was made lately. The participant
        has no right to make it."""
        now = self._clock()
        if not self._updates_in_chunks or now < self._prepared.get(participant_id, _NEVER)[0] + PREPARED_S:
            return
        made = self._transport.declare_exchange(self._topology.upload_exchange(participant_id), self._timeout_s)
        self._prepared[participant_id] = now, made
        made.add_done_callback(lambda done: self._put(UploadsPrepared(participant_id, done.exception())))

    def uploads_prepared(self, prepared: UploadsPrepared) -> None:
        """Go on with the tasks that waited for the exchange of their participant's uploads."""
        if prepared.error is not None:
            log.warning("uploads_not_prepared", participant=prepared.participant_id, error=prepared.error)
        self.pump()

    def doubt_exchanges(self) -> None:
        """Make all exchanges of uploads, and all models, again when they are next needed: the broker may have lost
        them."""
        if self._references is not None:
            self._references.doubt()
        self._prepared = {name: asked for name, asked in self._prepared.items() if not asked[1].done()}

    def pump(self) -> None:
        """Send waiting tasks while the window has room. One always fits, however large it is."""
        while self._waiting and self._sending is None:
            _, prepared = self._prepared.get(self._waiting[0][0].participant_id, _NEVER)
            if not prepared.done():
                return  # uploads_prepared goes on
            if (error := prepared.exception()) is not None:
                command, _ = self._waiting.popleft()
                self._prepared.pop(command.participant_id, None)
                self._put(TaskPublished(command.task_id, 0, error))
                continue
            wanted, model = self._model_for(*self._waiting[0])
            if wanted and model is None:
                return  # pump is called again once it is there
            more_bytes = self._bytes_in_flight + (0 if wanted else self._num_bytes(*self._waiting[0]))
            if self._bytes_in_flight and more_bytes > self._window_bytes:
                return
            self._send(*self._waiting.popleft(), model)

    def _model_for(self, command: IssueTask, parameters: Parameters) -> tuple[bool, Published | None]:
        """Return True if the task is to refer to a model, and that model. If it is not there yet, begin to publish it.

        No other task leaves meanwhile.
        """
        references = self._references
        if references is None:
            return False, None
        if references.publishing is not None:
            return True, None
        key = self._key(command)
        others = (self._key(other) for other, _ in self._waiting if references.reads(other.participant_id))
        if not references.wants(command, self._num_bytes(command, parameters), key, others):
            return False, None
        model = references.model(key)
        if model is None:
            references.publish(key, self._travelling(command, parameters)[1], self.pump)
        return True, model

    def _key(self, command: IssueTask) -> Key:
        form, order = "", command.downlink
        if order is not None:
            form = order.codec
        held = -1 if order is None or order.held is None else order.held
        frozen: FrozenForm = "away"
        if self._frozen is not None:
            frozen = self._frozen.form(command.participant_id, command.base_version, order is not None)
        return command.base_version, form, held, frozen

    def _travelling(self, command: IssueTask, parameters: Parameters) -> tuple[str | None, Parameters]:
        """Return the digest of the frozen part, and the tensors that go down with the task."""
        if self._frozen is None:
            return None, parameters
        coded = command.downlink is not None
        return self._frozen.of_task(command.participant_id, command.base_version, parameters, coded)

    def reference_lost(self, participant_id: str) -> None:
        """Note that a participant did not find the model that its task refers to: its next task is whole."""
        if self._references is not None:
            self._references.lost(participant_id)

    def reference_found(self, participant_id: str) -> None:
        """Note that a participant has trained its task."""
        if self._references is not None:
            self._references.found(participant_id)

    def delete_models(self) -> None:
        """Delete the stream of models: the run is over, and nobody needs one any more."""
        if self._references is not None:
            self._references.delete()

    def look(self) -> None:
        """Give a publication up that hangs. Call it every few seconds."""
        if self._references is not None:
            self._references.look()

    def _num_bytes(self, command: IssueTask, parameters: Parameters) -> int:
        if self._frozen is None:
            return parameters.num_bytes
        return self._frozen.num_bytes(command.participant_id, command.base_version, parameters)

    def task_done(self, published: TaskPublished) -> None:
        """Give a task's room in the window back."""
        self._bytes_in_flight -= published.num_bytes
        self.pump()

    def _send(self, command: IssueTask, parameters: Parameters, model: Published | None) -> None:
        if self._references is not None:
            self._references.sent(command, self._key(command), model)
        if self._uplink is not None and not command.coded:
            self._tell_of_plain_updates(command.participant_id, self._uplink)
        if self._steps and command.downlink is None:
            self._tell(command.participant_id, "it does not read tasks in steps, and gets whole ones: update its fedmq")
        own_bytes, decoded_bytes = parameters.num_bytes, parameters.num_bytes
        if self._frozen is not None and command.downlink is not None:
            decoded_bytes = self._frozen.model_bytes(command.base_version)
        frozen, parameters = self._travelling(command, parameters)
        decoded_bytes += parameters.num_bytes - own_bytes
        task = Task(
            task_id=command.task_id,
            run_id=self._run_id,
            participant_id=command.participant_id,
            base_version=command.base_version,
            reply=self._reply,
            training=command.training,
            lease_s=command.lease_s,
            uplink=self._uplink if command.coded else None,
            frozen=frozen,
            downlink=command.downlink,
            former=command.former or None,
        )
        if self._sign is not None:  # for what is trained from, however it travels
            task = signed(task, self._signed_digest(task, parameters, model), self._sign)
        if model is not None:
            self._refer(command, task, model, decoded_bytes)
            return
        pieces = Pieces(encode_in_pieces(task, parameters))
        if pieces.num_bytes > self._max_message_bytes:
            self._send_chunks(command, task, pieces, decoded_bytes)
        else:
            sent = (command.seq, pieces.num_bytes, decoded_bytes)
            self._publish(task, pieces.read(0, pieces.num_bytes), sent)

    def _refer(self, command: IssueTask, task: Task, model: Published, decoded_bytes: int) -> None:
        """Send a task whose tensors are in the stream of models."""
        reference = ModelReference(offset=model.offset, digest=model.digest)
        body = encode(task.model_copy(update={"chunks": model.payload, "reference": reference}))
        read_bytes = model.payload.num_bytes
        sent = (command.seq, len(body) + read_bytes, decoded_bytes)
        self._publish(task, body, sent, read=(command.base_version, read_bytes))

    def _tell_of_plain_updates(self, participant_id: str, uplink: Uplink) -> None:
        codec = uplink.codec if uplink.lossless == "none" else f"{uplink.codec} with {uplink.lossless}"
        self._tell(
            participant_id,
            f"it does not have {codec}, and is asked for plain updates: update its fedmq, or install the extra",
        )

    def _tell(self, participant_id: str, detail: str) -> None:
        """Log once that a participant lacks something."""
        if participant_id not in self._plain:
            self._plain.add(participant_id)
            log.warning("codec_not_there", participant=participant_id, detail=detail)

    def _signed_digest(self, task: Task, parameters: Parameters, model: Published | None) -> bytes:
        if task.downlink is not None:
            return bytes.fromhex(task.downlink.digest)
        return self._digest(parameters) if model is None else bytes.fromhex(model.digest)

    def _digest(self, parameters: Parameters) -> bytes:
        if self._hashed is None or self._hashed[0]() is not parameters:
            self._hashed = weakref.ref(parameters), tensors_digest(parameters)
        return self._hashed[1]

    def _send_chunks(self, command: IssueTask, task: Task, pieces: Pieces, decoded_bytes: int) -> None:
        """Send the parameters first, then the task itself."""
        payload_id = uuid.uuid4().hex  # a new one for every try, so that no chunks are mistaken for those of another
        expires_s = min(max(task.lease_s, _LEAST_EXPIRY_S), _MOST_EXPIRY_S)
        queue = self._topology.download(task.participant_id, payload_id, expires_s)

        def done(outcome: ChunkedPayload | BaseException) -> None:
            self._sending = None
            if isinstance(outcome, BaseException):
                self._transport.delete_queue(queue.name)
                self._put(TaskPublished(task.task_id, 0, outcome))
                return
            manifest = encode(task.model_copy(update={"chunks": outcome}))
            published = self._publish(task, manifest, (command.seq, len(manifest) + outcome.num_bytes, decoded_bytes))
            published.add_done_callback(lambda sent: sent.exception() and self._transport.delete_queue(queue.name))
            self.pump()

        sender = ChunkSender(
            self._transport,
            queue,
            payload_id=payload_id,
            task_id=task.task_id,
            num_bytes=pieces.num_bytes,
            chunk_bytes=self._chunk_bytes,
            read=pieces.read,
            put=self._put,
            on_done=done,
        )
        self._sending = command, sender
        sender.begin()

    def _publish(
        self, task: Task, body: bytes, sent: tuple[int, int, int], read: tuple[int, int] | None = None
    ) -> Future[None]:
        num_bytes = len(body)
        self._bytes_in_flight += num_bytes
        message = Message(
            exchange=DEFAULT_EXCHANGE,
            routing_key=self._topology.participant(task.participant_id).name,
            body=body,
            message_id=task.task_id,
            correlation_id=task.task_id,
            headers={"schema_version": SCHEMA_VERSION, "kind": "task", RUN_ID_HEADER: self._run_id},
            expiration_s=task.lease_s,
        )
        fault("before-task-publish")
        future = self._transport.publish(message, self._timeout_s)
        fault("after-task-publish")
        future.add_done_callback(
            lambda done: self._put(TaskPublished(task.task_id, num_bytes, done.exception(), sent, read))
        )
        return future

    def receipt(self, receipt: Receipt) -> None:
        """Send a verdict. A lost one is repeated when the participant's hello asks for it."""
        self._small(receipt, receipt.update_id)

    def notice(self, notice: Notice) -> None:
        """Send news."""
        self._small(notice, uuid.uuid4().hex, FINISHED_NEWS_S if notice.event == "run_finished" else None)

    def certificate(self, user: str, answer: Certificate) -> None:
        """Send the answer to a request for a certificate to a user's queue. A lost one is asked for again."""
        self._small(answer, uuid.uuid4().hex, to=user)

    def _small(
        self,
        message: Receipt | Notice | Certificate,
        message_id: str,
        expiration_s: float | None = None,
        to: str | None = None,
    ) -> None:
        future = self._transport.publish(
            Message(
                exchange=DEFAULT_EXCHANGE,
                routing_key=self._topology.participant(to or message.participant_id).name,
                body=encode(message),
                message_id=message_id,
                correlation_id=None if isinstance(message, Certificate) else message.task_id,
                headers={"schema_version": SCHEMA_VERSION, "kind": message.kind},
                expiration_s=expiration_s,
            ),
            self._timeout_s,
        )
        future.add_done_callback(lambda done: _log_failure(message, done.exception()))
        self._forget_answered()
        self._unanswered.append((message, future))

    def flush(
        self,
        patience_s: float,
        wait: Callable[..., object] = futures.wait,
        pause: Callable[[float], object] = time.sleep,
    ) -> int:
        """Wait until the broker has answered all receipts and notices, or has not answered the oldest of them for
        `patience_s`. Send the end of the run again to those whose queue refused it.

        Return the number of those that are left. A thousand may wait behind each other, and are worth the time while
        they leave.
        """
        left = self._await_answers(patience_s, wait)
        for _ in range(REFUSED_TRIES):
            if left or not self._refused:
                break
            pause(REFUSED_AGAIN_S)
            refused, self._refused = self._refused, []
            for notice in refused:
                self.notice(notice)
            left = self._await_answers(patience_s, wait)
        return left + len(self._refused)

    def _await_answers(self, patience_s: float, wait: Callable[..., object]) -> int:
        self._forget_answered()
        while self._unanswered:
            future = self._unanswered[0][1]
            wait([future], patience_s)
            if not future.done():
                break
            self._forget_answered()
        return len(self._unanswered)

    def _forget_answered(self) -> None:
        while self._unanswered and self._unanswered[0][1].done():
            message, future = self._unanswered.popleft()
            refused = isinstance(future.exception(), PublishRejected)
            if refused and isinstance(message, Notice) and message.event == "run_finished":
                self._refused.append(message)


def _log_failure(message: Receipt | Notice | Certificate, error: BaseException | None) -> None:
    if isinstance(error, Unroutable):
        log.debug(f"{message.kind}_not_delivered", participant=message.participant_id, error="its queue is gone")
    elif error is not None:
        log.warning(f"{message.kind}_not_delivered", participant=message.participant_id, error=error)
