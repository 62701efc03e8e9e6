"""Tasks from their arrival to the start of their training: onto the disk, with parameters that may come in chunks.

The service's thread calls everything here. It carries out the agent's SpoolTask, CancelSpooling and StartTraining.

No parameters go to the trainer before the task's signature is checked with them, if the bundle demands signatures.
Those beside a task are checked as it arrives, before anything is written. Those that come in chunks are checked as they
are read from disk, and so are those of a task that an earlier process spooled. If the model travels in a codec, what it
is to train from is made, and checked, before the task is written (participant.service.task_models).
"""

from __future__ import annotations

import time

from fedmq.broker_config.chunks.receiver import ChunkArrived, Lost
from fedmq.broker_config.faults import fault
from fedmq.participant.decisions import events as ev
from fedmq.participant.memory import Memory
from fedmq.participant.service import task_models
from fedmq.participant.service.context import ServiceContext
from fedmq.participant.service.download import Download
from fedmq.participant.service.task_models import ModelDiffers
from fedmq.participant.training.thread import TrainingThread
from fedmq.schemas.codec import decode
from fedmq.schemas.errors import BadSignature, MalformedMessage, PeerError, SpecMismatch, SpoolError
from fedmq.schemas.frozen import Frozen, beside, frozen_part
from fedmq.schemas.local.clocks import moment_now
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import HeldModel, Model, Task, run_uid
from fedmq.schemas.methods import has_memory
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import check_signature, check_signed, tensors_digest

log = EventLog(__name__)


class TaskIntake:
    """The task intake of one participant."""

    def __init__(self, context: ServiceContext, training: TrainingThread) -> None:
        self._context = context
        self._spool = context.spool
        self._training = training
        self._received: dict[str, Parameters] = {}
        """task_id -> its parameters, from its arrival to its training."""
        self._download: Download | None = None

    def arrived(self, task: Task, parameters: Parameters | None) -> None:
        """Hold the tensors of a task that the agent is about to see; None if they come in chunks.

        Raises BadSignature.
        """
        if parameters is not None and task.downlink is None:
            self._check(task, parameters)
        elif self._context.verify is not None:
            check_signed(task)
        if parameters is not None:
            self._received[task.task_id] = parameters

    def decided(self, task: Task, goes_back: bool) -> None:
        """Drop what a task brought, now that the agent has decided on it, unless it is being fetched.

        The agent may have declined it, or it is here already, or it is a copy of the task in hand. `goes_back` means
        that the task returns to its queue for the next process, which needs its chunks.
        """
        self._received.pop(task.task_id, None)
        fetched = None if self._download is None else self._download.payload
        own = task.chunks is not None and task.reference is None
        if own and fetched != task.chunks and not goes_back:
            self._context.transport.delete_queue(self._context.payload_queue(task))

    def on_chunk(self, chunk: ChunkArrived) -> None:
        """Keep a chunk of the task that is fetched now."""
        if self._download is not None:
            self._download.on_chunk(chunk, time.monotonic())

    def tick(self, now: float) -> None:
        if self._download is not None:
            self._download.tick(now)

    def interrupted(self, now: float) -> None:
        """Look at the stream that is being read, because the broker has ended a consumer."""
        if self._download is not None:
            self._download.interrupted(now)

    def disconnected(self) -> None:
        if self._download is not None:
            self._download.disconnected()

    def spool(self, task: Task, handle: ev.DeliveryHandle, body: bytes | bytearray) -> ev.Event | None:
        """Write a task's message body to disk. Parameters in chunks are fetched first, and the event is put later."""
        if task.chunks is None:
            return self._keep_task(task, handle, body)
        most_bytes = self._context.payload_limits.max_body_bytes
        if task.chunks.num_bytes > most_bytes:
            detail = (
                f"the task has {task.chunks.num_bytes} bytes, max_payload_bytes is {most_bytes}: "
                "raise it in [broker] on both sides"
            )
            return ev.SpoolFailed(task.task_id, handle, detail, "unsupported")

        def done(outcome: Lost | OSError | None) -> None:
            self._download = None
            if outcome is None:
                event = self._keep_task(task, handle, body)
            elif isinstance(outcome, Lost):
                event = ev.SpoolFailed(task.task_id, handle, outcome.detail, "payload_lost")
            else:
                event = ev.SpoolFailed(task.task_id, handle, f"cannot keep its parameters: {outcome}", "not_idle")
            self._context.put(event)

        if self._download is not None:
            self._download.cancel()
        self._download = download = Download(
            self._context.transport,
            self._context.payload_queue(task),
            task,
            self._spool.payload,
            sender=self._context.coordinator_user,
            put=self._context.put,
            on_done=done,
        )
        download.begin(time.monotonic())
        return None

    def cancel_spooling(self) -> None:
        if self._download is not None:
            self._download.cancel()
            self._download = None

    def start_training(self, task: Task) -> ev.Event | None:
        """Give a task to the training thread, with its parameters and the method's memory of its run."""
        parameters = self._received.pop(task.task_id, None)
        if parameters is None:
            try:
                parameters = self._read_checked(task)
            except BadSignature as error:
                log.error("task_refused", participant=self._context.participant_id, task=task.task_id, detail=error)
                return ev.TrainingFailed(task.task_id, "bad_signature", str(error))
            except ModelDiffers as error:
                return ev.TrainingFailed(task.task_id, "model_differs", str(error))
            except (PeerError, SpoolError) as error:
                return ev.TrainingFailed(task.task_id, "trainer_error", f"the spooled task cannot be read: {error}")
        try:
            tensors, frozen = self._apart(task, parameters)
        except SpecMismatch as error:
            return ev.TrainingFailed(task.task_id, "frozen_lost", str(error))
        try:
            memory = self._memory(task) if has_memory(task) else None
            own_folder = self._spool.own_folder(run_uid(task.task_id)) if self._training.trainer_keeps else None
        except SpoolError as error:
            return ev.TrainingFailed(task.task_id, "trainer_error", str(error))
        self._training.start(task, tensors, memory, frozen, own_folder)
        return None

    def _apart(self, task: Task, parameters: Parameters) -> tuple[Parameters, Frozen | None]:
        """Return the tensors that move, and the model's frozen part: it came with the task, and is kept on disk from
        now on, or it is there already. Raises SpecMismatch if it is not the one that the task names."""
        if task.frozen is None:
            return parameters, None
        tensors, came = beside(parameters)
        if came:
            part: Frozen | None = frozen_part(came)
            assert part is not None
            if part.digest != task.frozen:
                raise SpecMismatch(f"the task names the frozen part {task.frozen}, and carries {part.digest}")
            self._spool.frozen.keep(part)
        else:
            part = self._spool.frozen.read(task.frozen, tensors)
            if part is None:
                raise SpecMismatch(f"the model's frozen part {task.frozen} is not on the disk any more")
        return tensors, part

    def _memory(self, task: Task) -> Memory | None:
        """Return the memory of the task's run, also from before the run's folder was restored from a backup."""
        uid = run_uid(task.task_id)
        if task.former is not None:
            self._spool.adopt_soft_memory(uid, task.former)
        return self._spool.read_memory(uid)

    def _check(self, task: Task, parameters: Parameters) -> None:
        """Raise BadSignature unless the task is signed, if signatures are checked."""
        if self._context.verify is not None:
            check_signature(task, parameters, self._context.verify)

    def _keep_task(self, task: Task, handle: ev.DeliveryHandle, body: bytes | bytearray) -> ev.Event:
        """Write the hidden state that the task is to train from, if it has one, and then its message body."""
        try:
            if task.reference is not None and task.downlink is None:
                self._check(task, self._read_payload(task))
            held = self._keep_model(task)
            self._spool.write_task(body, moment_now())
        except BadSignature as error:
            log.error("task_refused", participant=self._context.participant_id, task=task.task_id, detail=error)
            return ev.SpoolFailed(task.task_id, handle, str(error), "bad_signature")
        except ModelDiffers as error:
            return ev.SpoolFailed(task.task_id, handle, str(error), "model_differs")
        except PeerError as error:
            return ev.SpoolFailed(task.task_id, handle, f"{error.reason}: {error}", "unreadable")
        except SpoolError as error:
            return ev.SpoolFailed(task.task_id, handle, str(error))
        fault("task-on-disk")
        return ev.TaskSpooled(task.task_id, handle, held)

    def _keep_model(self, task: Task) -> HeldModel | None:
        if task.downlink is None:
            return None
        came = self._received.get(task.task_id)
        tensors, frozen = beside(self._read_payload(task) if came is None else came)
        base = task_models.base_of(task, tensors, self._spool)
        self._check(task, base)
        if came is not None:
            self._received[task.task_id] = _joined(base, frozen)
        if frozen:
            self._apart(task, frozen)
        return task_models.keep(task, base, self._spool)

    def _read_checked(self, task: Task) -> Parameters:
        """Read the tensors to train from, and the frozen part that came with them, and check the signature.

        Raises SpoolError, PeerError or ModelDiffers.
        """
        base = task_models.kept(task, self._spool)
        if base is not None:  # the frozen part was kept before it
            self._check(task, base)
            return base
        tensors = self._read_payload(task) if task.chunks is not None else self._read_task()
        if task.downlink is None:
            self._check(task, tensors)
            return tensors
        tensors, frozen = beside(tensors)
        base = task_models.base_of(task, tensors, self._spool)
        self._check(task, base)
        return _joined(base, frozen)

    def _read_payload(self, task: Task) -> Parameters:
        """Read the tensors of a task that came in chunks. Raises SpoolError or PeerError."""
        decoded = decode(self._spool.payload.read(), self._context.payload_limits)
        reference, tensors = task.reference, decoded.parameters
        if reference is None:
            if decoded.message != task.model_copy(update={"chunks": None}):
                raise MalformedMessage("its chunks belong to another task than its manifest")
            assert tensors is not None, "the codec refuses a whole task without parameters"
            return tensors
        model = Model(run_id=task.run_id, base_version=task.base_version, digest=reference.digest)
        if decoded.message != model or tensors is None or tensors_digest(tensors).hex() != reference.digest:
            raise MalformedMessage(
                f"its chunks are another model than version {task.base_version} with the digest {reference.digest}"
            )
        return tensors

    def _read_task(self) -> Parameters:
        """Read the tensors of the task on disk. Raises SpoolError or PeerError."""
        found = self._spool.read_task()
        if found is None:
            raise SpoolError("its file is gone")
        decoded = decode(found[0], self._context.limits)
        assert decoded.parameters is not None, "the codec refuses a whole task without parameters"
        return decoded.parameters


def _joined(base: Parameters, frozen: Parameters) -> Parameters:
    """Return what is to be trained from, with the frozen tensors that came beside it."""
    return Parameters({**base, **frozen}, base.non_trainable | frozen.non_trainable) if frozen else base
