"""Episodes of a participant: the real service on a real spool, with bad messages between the honest tasks.

What an episode shows
1. The service lives, and every message is acked.
2. Each honest task leads to one update.

The noise names other runs and tasks than the honest ones. A notice that a run is over ends the participant if it served
that run, as it should. Then it is started again on the same spool.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from fedmq.broker_config.topology import Topology
from fedmq.participant.decisions.events import TrainingFailed
from fedmq.participant.service import service as service_module
from fedmq.participant.service import task_intake as intake_module
from fedmq.participant.service.service import ParticipantService
from fedmq.participant.settings import ParticipantSettings
from fedmq.participant.trainer import TrainResult
from fedmq.participant.training.task_work import TaskFailed, do_task
from fedmq.participant.training.thread import Trained
from fedmq.schemas.chunks import digest_of, digest_of_all, headers
from fedmq.schemas.codec import decode, encode, encode_in_pieces
from fedmq.schemas.errors import PeerError
from fedmq.schemas.messages import ChunkedPayload, Decline, Receipt, Task, TrainingConfig, Update, update_id
from fedmq.schemas.parameters import Parameters
from tests.security.fuzzing.corpus import model, samples
from tests.security.fuzzing.fake_broker import FakeTime, FakeTransport, encoded
from tests.security.fuzzing.mutations import Headers, Mutator, Sample
from tests.security.fuzzing.plan import EPISODE_KINDS
from tests.security.fuzzing.tasks import TaskNoise
from tests.security.fuzzing.watch import Failed, Figures, LogCheck, Watch

NAME = "p0"
TOPOLOGY = Topology()
NOISE_PER_HONEST = 25
MOST_IDLE = 2000
CHUNK_BYTES = 4096


class Trainer:
    """Adds one to everything that moves."""

    num_examples = 10

    def __init__(self, frozen: Collection[str] = ()) -> None:
        self._frozen = frozen

    def train(self, parameters: Any, config: Any) -> TrainResult:
        moved = {name: a if name in self._frozen else np.asarray(a) + 1 for name, a in parameters.items()}
        return TrainResult(moved, num_examples=10, num_steps=1)

    def evaluate(self, parameters: Any) -> dict[str, float]:
        return {"loss": 0.5}


class InlineTraining:
    """The training thread without a thread: it trains at once, so that the same seed gives the same events."""

    trainer_keeps = False

    def __init__(self, trainer: Any, name: str, max_payload_bytes: int, put: Callable[[Any], None], own: Any) -> None:
        self._put = put

    def open(self) -> None: ...

    def start(self, task: Task, tensors: Parameters, memory: Any, frozen: Any = None, own_folder: Any = None) -> None:
        try:
            trainer = Trainer(() if frozen is None else frozen.by_name)
            done = do_task(trainer, task, tensors, lambda: 0.0, memory, was_cancelled=lambda: False, frozen=frozen)
            self._put(Trained(done.update, encode_in_pieces(done.update, done.payload), done.next_memory))
        except TaskFailed as failed:
            self._put(TrainingFailed(task.task_id, failed.reason, failed.detail, failed.fatal))

    def cancel(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """One episode of a participant."""

    seed: int
    episode: int
    messages: int
    limit_s: float
    only: tuple[tuple[str, bytes, bytes], ...] | None = None


class ScriptedInbox:
    """The service's inbox, which asks the script for more when the participant has nothing to do."""

    def __init__(self, idle: Callable[[float], None]) -> None:
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._idle = idle
        self.put = self._items.put

    def get(self, timeout: float) -> Any:
        if self._items.empty():
            self._idle(timeout)
        return self._items.get(block=False)


class ParticipantEpisode:
    """One episode. `run` returns the figures, and raises Failed."""

    def __init__(self, plan: Plan, folder: Path, log: LogCheck) -> None:
        self._plan = plan
        self._folder = folder
        self._rng = random.Random(f"{plan.seed}/{plan.episode}/participant")
        self._mutator, self._headers = Mutator(self._rng), Headers(self._rng)
        self._model = model()
        self._tasks = TaskNoise(self._rng, self._model)
        self._corpus = samples()
        self._updates: Counter[str] = Counter()
        self._honest: list[str] = []
        self._declined: set[str] = set()
        self._idle = 0
        self._over = False
        self.clock = FakeTime()
        self.queue = TOPOLOGY.participant(NAME).name
        self.transport = FakeTransport()
        self.watch = Watch(self._deliver, plan.limit_s, log)
        self._steps = self._script()
        self._service: ParticipantService

    def _deliver(self, _queue: str, properties: bytes, body: bytes) -> None:
        self.transport.put(self.queue, properties, body)

    def run(self) -> Figures:
        """Run it, with a new process whenever the run of the noise is over."""
        before = service_module.time, intake_module.time, service_module.TrainingThread
        service_module.time = intake_module.time = self.clock  # type: ignore[assignment]
        service_module.TrainingThread = InlineTraining  # type: ignore[misc,assignment]
        try:
            while not self._over:
                self._service = self._process()
                self._service.run()
        except Failed:
            raise
        except BaseException as error:
            raise self.watch.failure(f"the participant ended: {type(error).__name__}: {error}") from error
        finally:
            service_module.time, intake_module.time, service_module.TrainingThread = before  # type: ignore[misc]
        self._check()
        return self.watch.figures

    def _process(self) -> ParticipantService:
        service = ParticipantService(
            participant_id=NAME,
            settings=ParticipantSettings(hello_interval_s=1e6),
            trainer=Trainer(),
            transport=self.transport,
            topology=TOPOLOGY,
            spool_dir=self._folder,
            max_message_bytes=2**21,
            chunk_bytes=CHUNK_BYTES,
            max_payload_bytes=2**22,
        )
        service._inbox = ScriptedInbox(self.idle)  # type: ignore[assignment]
        return service

    def idle(self, timeout_s: float) -> None:
        """Do the next step: the participant has worked off all before."""
        self.clock.now += 0.001
        if self.queue not in self.transport._consumers:  # the opening thread is not that far
            import time

            time.sleep(0.0005)
            return
        if self.watch.busy():
            return
        self._take_published()
        waits = next(self._steps, None)
        if waits is None:
            self._over = True
            self._service.stop()
        elif waits:
            self._idle += 1
            self.clock.now += timeout_s
            if self._idle > MOST_IDLE:
                raise self.watch.failure("an honest task led to no update: honest work has stopped")
        else:
            self._idle = 0

    def _script(self) -> Iterator[bool]:
        plan, sent = self._plan, 0
        for number in range(max(2, plan.messages // NOISE_PER_HONEST)):
            while sent < min(plan.messages, (number + 1) * NOISE_PER_HONEST):
                sent += 1
                yield from self._noise()
            yield from self._honest_task(f"honest-{plan.episode}-{number}")
        for _ in range(20):
            yield True

    def _honest_task(self, task_id: str) -> Iterator[bool]:
        first, tries = task_id, 0
        task = self._task(task_id, "honest")
        self._give(task)
        yield False
        while not self._updates[uid := update_id(task.run_id, task_id, NAME)]:
            yield True
            if task_id in self._declined:  # it is busy with the noise: ask once more, as a coordinator does
                tries += 1
                task_id = f"{first}-{tries}"
                task = self._task(task_id, "honest")
                self._give(task)
        self._honest.append(uid)
        receipt = Receipt(
            update_id=uid, task_id=task_id, run_id=task.run_id, participant_id=NAME, verdict="accepted", version=1
        )
        self.transport.put(self.queue, b"".join(encoded("coordinator", task_id=task_id)), encode(receipt))
        yield False

    def _give(self, task: Task) -> None:
        properties = b"".join(encoded("coordinator", task_id=task.task_id))
        self.transport.put(self.queue, properties, encode(task, self._model))

    def _task(self, task_id: str, run_id: str) -> Task:
        return Task(
            task_id=task_id, run_id=run_id, participant_id=NAME, base_version=1, reply="delta",
            training=TrainingConfig(extra={"word": "w"}), lease_s=60.0,
        )  # fmt: skip

    def _noise(self) -> Iterator[bool]:
        rng = self._rng
        if self._plan.only is not None:
            for queue, properties, body in self._plan.only:
                self.watch.send(queue, properties, body, "repeated")
                yield False
            return
        draw = rng.random()
        task = self._task(f"noise-{rng.randrange(50)}", f"noise-{rng.randrange(3)}")
        if rng.random() < (0.75 if self._plan.episode // EPISODE_KINDS % 2 else 0.1):
            self.watch.figures.coded += 1
            body = self._tasks.body(task)
            self._mutator.names = self._tasks.names
            if rng.random() < 0.1:
                body = self._mutator.of_bytes(body)
        elif draw < 0.3:
            body = self._mutator.message(Sample.of(encode(task, self._model)), self._corpus)
        elif draw < 0.45:
            body = self._manifest(task)
        elif draw < 0.6:
            receipt = Receipt(
                update_id=update_id(task.run_id, task.task_id, NAME), task_id=task.task_id, run_id=task.run_id,
                participant_id=NAME, verdict=rng.choice(["accepted", "discarded"]), reason="x",
            )  # fmt: skip
            body = self._mutator.message(Sample.of(encode(receipt)), self._corpus)
        else:
            body = self._mutator.message(rng.choice(self._corpus), self._corpus)
        pieces = encoded("coordinator" if rng.random() < 0.8 else "mallory", task_id=task.task_id)
        mutated = rng.random() < 0.15
        properties = self._headers.properties(pieces) if mutated else b"".join(pieces)
        self.watch.send(self.queue, properties, body, "+".join([*self._mutator.names, *["properties"] * mutated]))
        yield False

    def _manifest(self, task: Task) -> bytes:
        """Put a task's payload in chunks, with or without a mistake, and return its manifest."""
        rng = self._rng
        body = encode(task, self._model)
        payload_id = f"{rng.randrange(16**32):032x}"
        queue = TOPOLOGY.download(NAME, payload_id)
        pieces = [body[at : at + CHUNK_BYTES] for at in range(0, len(body), CHUNK_BYTES)]
        digests = [digest_of(piece) for piece in pieces]
        for index, (piece, digest) in enumerate(zip(pieces, digests, strict=True)):
            label: dict[str, Any] = dict(headers(payload_id, index, digest))
            if rng.random() < 0.5:
                label[rng.choice(list(label))] = rng.choice([None, True, -1, 2**62, "", "zz" * 32, " " * 64, [1]])
            self.transport.put(queue.name, b"".join(encoded("coordinator", label)), piece)
        chunks = ChunkedPayload(
            payload_id=payload_id, num_bytes=len(body), chunk_bytes=CHUNK_BYTES, count=len(pieces),
            digest=digest_of_all(digests),
        )  # fmt: skip
        manifest = encode(task.model_copy(update={"chunks": chunks}))
        self._mutator.names = ["chunks"]
        return self._mutator.message(Sample.of(manifest), self._corpus) if rng.random() < 0.5 else manifest

    def _take_published(self) -> None:
        while self.transport.published:
            queue, message = self.transport.published.popleft()
            if queue not in {TOPOLOGY.updates.name, TOPOLOGY.control.name}:
                continue
            try:
                told = decode(bytes(message.body)).message
            except PeerError as error:
                raise self.watch.failure(f"the participant itself sent a bad message: {error}") from error
            if isinstance(told, Update):
                self._updates[told.update_id] += 1
            elif isinstance(told, Decline):
                self._declined.add(told.task_id)
                reason, outcomes = f"declined: {told.reason}", self.watch.figures.outcomes
                outcomes[reason] = outcomes.get(reason, 0) + 1

    def _check(self) -> None:
        figures = self.watch.figures
        for reason in self.transport.dead:
            figures.outcomes[reason] = figures.outcomes.get(reason, 0) + 1
        figures.outcomes["settled"] = self.transport.settled - len(self.transport.dead)
        figures.honest = len(self._honest)
        if self.transport.failed:
            raise Failed(f"{len(self.transport.failed)} deliveries were given back because their handler raised")
        missing = [uid for uid in self._honest if self._updates[uid] != 1]
        if missing:
            raise Failed(f"{len(missing)} of {len(self._honest)} honest tasks led to no update, or to several")


def run(plan: Plan, folder: Path, log: LogCheck) -> Figures:
    """Run an episode. Raises Failed."""
    return ParticipantEpisode(plan, folder, log).run()
