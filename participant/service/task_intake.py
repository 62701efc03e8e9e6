"""Tasks from their arrival to the training: onto the disk, with parameters that come in chunks, and off it again.

Used from the service's thread, which carries out the agent's SpoolTask, CancelSpooling and StartTraining here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fedmq.broker_config.chunks.receiver import ChunkArrived, Lost
from fedmq.broker_config.faults import fault
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Transport
from fedmq.participant.decisions import events as ev
from fedmq.participant.service.download import Download
from fedmq.participant.spool.spool import Spool
from fedmq.participant.training.methods import has_memory, run_uid
from fedmq.participant.training.thread import TrainingThread
from fedmq.schemas.codec import Limits, decode
from fedmq.schemas.errors import MalformedMessage, PeerError, SpoolError
from fedmq.schemas.local.clocks import moment_now
from fedmq.schemas.messages import Task
from fedmq.schemas.parameters import Parameters


class TaskIntake:
    """One participant's. `put` takes what is to be fed to the agent later, and the chunks that arrive."""

    def __init__(
        self,
        transport: Transport,
        topology: Topology,
        spool: Spool,
        training: TrainingThread,
        participant_id: str,
        *,
        limits: Limits,
        payload_limits: Limits,
        put: Callable[[Any], None],
    ) -> None:
        self._transport = transport
        self._topology = topology
        self._spool = spool
        self._training = training
        self._participant_id = participant_id
        self._limits = limits
        self._payload_limits = payload_limits
        self._put = put
        self._received: dict[str, Parameters] = {}
        """task_id -> its parameters, from its arrival to its training."""
        self._download: Download | None = None

    def arrived(self, task: Task, parameters: Parameters | None) -> None:
        """A task that the agent is about to see; None: its parameters come in chunks."""
        if parameters is not None:
            self._received[task.task_id] = parameters

    def decided(self, task: Task, goes_back: bool) -> None:
        """The agent has seen it: nothing stays of a task that was declined, or is there already, or is a copy of the
        one in hand. `goes_back`: it is left to the next process."""
        self._received.pop(task.task_id, None)
        fetched = None if self._download is None else self._download.payload
        if task.chunks is not None and fetched != task.chunks and not goes_back:
            self._transport.delete_queue(self._payload_queue(task))

    def on_chunk(self, chunk: ChunkArrived) -> None:
        """Keep a chunk of the task that is fetched now."""
        if self._download is not None:
            self._download.on_chunk(chunk, time.monotonic())

    def tick(self, now: float) -> None:
        if self._download is not None:
            self._download.tick(now)

    def disconnected(self) -> None:
        if self._download is not None:
            self._download.disconnected()

    def spool(self, task: Task, handle: ev.DeliveryHandle, body: bytes | bytearray) -> ev.Event | None:
        """Write the message body; parameters in chunks are fetched first, and the event is put later."""
        if task.chunks is None:
            return self._write_task(task, handle, body)
        if task.chunks.num_bytes > self._payload_limits.max_body_bytes:
            detail = (
                f"the task has {task.chunks.num_bytes} bytes, max_payload_bytes is "
                f"{self._payload_limits.max_body_bytes}: raise it in [broker] on both sides"
            )
            return ev.SpoolFailed(task.task_id, handle, detail, "unsupported")

        def done(outcome: Lost | OSError | None) -> None:
            self._download = None
            if outcome is None:
                self._put(self._write_task(task, handle, body))
            else:
                lost = isinstance(outcome, Lost)
                detail = outcome.detail if isinstance(outcome, Lost) else f"cannot keep its parameters: {outcome}"
                self._put(ev.SpoolFailed(task.task_id, handle, detail, "payload_lost" if lost else "not_idle"))

        if self._download is not None:
            self._download.cancel()
        self._download = download = Download(
            self._transport,
            self._payload_queue(task),
            task,
            self._spool.payload,
            put=self._put,
            on_done=done,
        )
        download.begin(time.monotonic())
        return None

    def cancel_spooling(self) -> None:
        if self._download is not None:
            self._download.cancel()
            self._download = None

    def start_training(self, task: Task) -> ev.Event | None:
        """With its parameters as they arrived or from disk, and with what is remembered of its run."""
        parameters = self._received.pop(task.task_id, None)
        if parameters is None:
            try:
                parameters = self._read_parameters(task)
            except (PeerError, SpoolError) as error:
                return ev.TrainingFailed(task.task_id, "trainer_error", f"the spooled task cannot be read: {error}")
        try:
            memory = self._spool.read_memory(run_uid(task.task_id)) if has_memory(task) else None
        except SpoolError as error:
            return ev.TrainingFailed(task.task_id, "trainer_error", str(error))
        self._training.start(task, parameters, memory)
        return None

    def _write_task(self, task: Task, handle: ev.DeliveryHandle, body: bytes | bytearray) -> ev.Event:
        try:
            self._spool.write_task(body, moment_now())
        except SpoolError as error:
            return ev.SpoolFailed(task.task_id, handle, str(error))
        fault("task-on-disk")
        return ev.TaskSpooled(task.task_id, handle)

    def _read_parameters(self, task: Task) -> Parameters:
        """From disk, and checked: raises SpoolError or PeerError."""
        if task.chunks is not None:
            decoded = decode(self._spool.payload.read(), self._payload_limits)
            if decoded.message != task.model_copy(update={"chunks": None}):
                raise MalformedMessage("its chunks are of another task than its manifest")
        else:
            found = self._spool.read_task()
            if found is None:
                raise SpoolError("its file is gone")
            decoded = decode(found[0], self._limits)
        assert decoded.parameters is not None, "the codec lets no whole task through without"
        return decoded.parameters

    def _payload_queue(self, task: Task) -> str:
        assert task.chunks is not None
        return self._topology.payload(self._participant_id, task.chunks.payload_id).name
