"""Episodes of a coordinator: a whole run of the real service, with bad messages between the honest ones.

What an episode shows
1. The service lives, and every message is settled or dead-lettered.
2. Each honest update is accepted once: `fedmq verify` finds nothing wrong, and the ledger has all of them.
3. The noise of a stranger changes nothing: the final model has the same bits as that of a run without the noise.
4. If the sender of the noise is a participant itself ("inside"), the model is its share as well, and stays finite.
5. With a codec ("coded") all of this holds as well: honest updates are coded, and so is most of the noise.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedmq.broker_config.topology import Topology
from fedmq.coordinator.audit import audit
from fedmq.coordinator.decisions.participants.back_offs import MAX_BACKOFF_S
from fedmq.coordinator.service import service as service_module
from fedmq.coordinator.service.incoming.inbox import Inbox
from fedmq.coordinator.service.service import CoordinatorService
from fedmq.coordinator.settings import CommitSettings, RunSettings, StopSettings
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.schemas.chunks import digest_of, digest_of_all, headers
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.codecs.known import capabilities
from fedmq.schemas.errors import PeerError
from fedmq.schemas.frozen import split_off
from fedmq.schemas.messages import ChunkedPayload, Hello, Task, TrainingConfig, Update, update_id
from fedmq.schemas.methods import update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of
from tests.security.fuzzing.coded import CodedNoise, Fragile
from tests.security.fuzzing.corpus import mixed_model, model, samples
from tests.security.fuzzing.fake_broker import FakeTime, FakeTransport, encoded
from tests.security.fuzzing.mutations import Headers, Mutator, Sample
from tests.security.fuzzing.plan import Plan
from tests.security.fuzzing.watch import Failed, Figures, LogCheck, Watch

HONEST = ("h0", "h1", "h2")
STRANGERS = tuple(f"m{i}" for i in range(8))
"""Users that send the noise. In an episode "inside" they are participants too."""
HELLO_EACH = 20
"""Bad messages between two restarts of a hostile participant: a restart ends the back-off for what it did."""
NOISE_PER_HONEST = 25
MOST_IDLE = 2000
"""Times in a row that the coordinator may wait before the script gives up on a task that does not come."""
TOPOLOGY = Topology()
CHUNK_BYTES = 16_384
SMALL, MIDDLE, LARGE = 40, 2000, 30_000
"""Values of the model's kernel, for updates in one message, in one coded message, and in chunks."""


class ScriptedInbox(Inbox):
    """An inbox that asks the script for more when the coordinator has nothing to do."""

    script: CoordinatorEpisode

    def wait(self, timeout_s: float) -> Any | None:
        if self._items.empty():
            self.script.idle(timeout_s)
        return None if self._items.empty() else self._items.get()


class CoordinatorEpisode:
    """One episode. `run` returns the figures, and raises Failed."""

    def __init__(self, plan: Plan, folder: Path, log: LogCheck) -> None:
        self._plan = plan
        self._folder = folder
        self._log = log
        self._rng = random.Random(f"{plan.seed}/{plan.episode}/coordinator")
        self._mutator, self._headers = Mutator(self._rng), Headers(self._rng)
        self._model = (mixed_model if plan.mixed else model)(LARGE if plan.chunked else MIDDLE if plan.coded else SMALL)
        moving = split_off(self._model, plan.frozen)[0]
        self._spec = update_spec(plan.strategy.reply, spec_of(moving))
        """Tensors of an honest update."""
        self._corpus = samples()
        uplink = plan.uplink
        self._coded = None if uplink is None else CodedNoise(self._rng, moving, uplink, plan.strategy.reply)
        self._tasks: dict[str, list[Task]] = {name: [] for name in (*HONEST, *STRANGERS)}
        self._sent: list[Update] = []
        self._idle = 0
        self.clock = FakeTime()
        self.num_honest = max(len(HONEST), plan.messages // NOISE_PER_HONEST)
        self.transport = FakeTransport()
        for name in (*HONEST, *STRANGERS):
            self.transport.bind(TOPOLOGY.participant(name))
        self.watch = Watch(self.transport.put, plan.limit_s, log)
        self._steps = self._script()
        self.service = self._service()

    def _service(self) -> CoordinatorService:
        plan = self._plan
        stop = StopSettings(max_updates=10**9 if plan.inside else self.num_honest)
        return CoordinatorService(
            run_dir=self._folder,
            run=RunSettings(
                run_id="r1", concurrency=100_000, lease_s=1e6, participant_timeout_s=1e6, decline_backoff_s=0, stop=stop
            ),
            commit=CommitSettings(commit_interval_s=5.0, checkpoint_copies=1),
            strategy=plan.strategy,
            training=TrainingConfig(),
            connect=lambda: self.transport,
            topology=TOPOLOGY,
            initial_parameters=lambda: self._model,
            max_message_bytes=65_536 if plan.chunked else 2**24,
            chunk_bytes=CHUNK_BYTES,
            uplink=plan.uplink,
            downlink=plan.downlink,
            frozen=lambda: plan.frozen,
        )

    def run(self) -> Figures:
        """Run it from its beginning to its end, and check what it left."""
        ScriptedInbox.script = self
        before = service_module.Inbox, service_module.time
        service_module.Inbox, service_module.time = ScriptedInbox, self.clock  # type: ignore[misc,assignment]
        try:
            self.service.run()
        except Failed:
            raise
        except BaseException as error:
            raise self.watch.failure(f"the coordinator ended: {type(error).__name__}: {error}") from error
        finally:
            service_module.Inbox, service_module.time = before  # type: ignore[misc]
        self.watch.busy()
        self._check()
        self.watch.figures.honest = len(self._sent)
        return self.watch.figures

    # The script

    def idle(self, timeout_s: float) -> None:
        """Do the next step: the coordinator has worked off all before."""
        self.clock.now += 0.001
        if self.watch.busy():
            return
        self._take_published()
        waits = next(self._steps, None)
        if waits:
            self._idle += 1
            self.clock.now += min(max(timeout_s, 0.0), 1.0)
            if self._idle > MOST_IDLE:
                raise self.watch.failure("no task came for an honest participant: honest work has stopped")
        else:
            self._idle = 0

    def _script(self) -> Iterator[bool]:
        """Yield after each step; True if it waits for the coordinator."""
        plan = self._plan
        for name in (*HONEST, *(STRANGERS if plan.inside else ())):
            yield from self._hello(name, "first")
        sent = 0
        for number in range(self.num_honest):
            if plan.messages:
                while sent < min(plan.messages, (number + 1) * NOISE_PER_HONEST):
                    sent += 1
                    yield from self._noise()
                    if plan.coded and sent % len(STRANGERS) == 0:
                        self.clock.now += MAX_BACKOFF_S + 1  # tasks for all of them again: a coded update needs one
                        for stranger in STRANGERS:
                            yield from self._hello(stranger, str(sent))
                    elif plan.inside and sent % HELLO_EACH == 0:
                        yield from self._hello(STRANGERS[sent // HELLO_EACH % len(STRANGERS)], str(sent))
            name = HONEST[number % len(HONEST)]
            while not self._tasks[name]:
                yield True
            yield from self._honest_update(self._tasks[name].pop(0), number)
        for _ in range(20):
            yield True
        self.service.stop()
        yield False

    def _hello(self, name: str, session: str) -> Iterator[bool]:
        self._tasks[name].clear()
        codecs = () if self._coded is None else capabilities(Fragile())
        hello = Hello(participant_id=name, session_id=session, num_examples=10, codecs=codecs)
        if self._coded is not None:
            hello = hello.model_copy(update=self._coded.claims() if name in STRANGERS else {"frozen": ()})
        self._put(TOPOLOGY.control.name, encoded(name), encode(hello))
        yield False

    def _honest_update(self, task: Task, number: int) -> Iterator[bool]:
        rng = np.random.default_rng(number)
        payload = Parameters({t.name: np.asarray(rng.normal(size=t.shape)).astype(t.dtype) for t in self._spec})
        update = self._update_of(task)
        if self._coded is not None and number % 4 != 3:  # each fourth update is plain: a codec is never a duty
            update, payload = self._coded.honest(update, payload)
        self._sent.append(update)
        yield from self._send(task.participant_id, update, payload)

    def _update_of(self, task: Task) -> Update:
        return Update(
            update_id=update_id(task.run_id, task.task_id, task.participant_id), task_id=task.task_id,
            run_id=task.run_id, participant_id=task.participant_id, base_version=task.base_version, payload=task.reply,
            num_examples=10, num_steps=1, metrics={"loss": 0.5}, train_s=0.001,
        )  # fmt: skip

    def _send(self, user: str, update: Update, payload: Parameters) -> Iterator[bool]:
        body = encode(update, payload)
        if self._plan.chunked:
            body = encode(update.model_copy(update={"chunks": self._put_chunks(user, update, body)}))
        self._put(TOPOLOGY.updates.name, encoded(user, task_id=update.task_id), body)
        yield False

    def _put_chunks(self, user: str, update: Update, body: bytes) -> ChunkedPayload:
        queue = TOPOLOGY.upload(update.participant_id, update.update_id).name
        pieces = [body[at : at + CHUNK_BYTES] for at in range(0, len(body), CHUNK_BYTES)]
        digests = [digest_of(piece) for piece in pieces]
        for index, (piece, digest) in enumerate(zip(pieces, digests, strict=True)):
            self.transport.put(queue, b"".join(encoded(user, dict(headers("one", index, digest)))), piece)
        return ChunkedPayload(
            payload_id="one", num_bytes=len(body), chunk_bytes=CHUNK_BYTES, count=len(pieces),
            digest=digest_of_all(digests),
        )  # fmt: skip

    def _put(self, queue: str, properties: list[bytes], body: bytes) -> None:
        self.transport.put(queue, b"".join(properties), body)

    def _take_published(self) -> None:
        """Take the messages for participants: their tasks are what the script goes by."""
        while self.transport.published:
            queue, message = self.transport.published.popleft()
            name = queue.rsplit(".", 1)[-1]
            if queue != TOPOLOGY.participant(name).name and queue != name:
                continue
            try:
                told = decode(bytes(message.body)).message
            except PeerError as error:
                if ".payload." in queue:  # a chunk
                    continue
                raise self.watch.failure(f"the coordinator itself sent a bad message: {error}") from error
            if isinstance(told, Task) and told.participant_id in self._tasks:
                self._tasks[told.participant_id].append(told)
                if self._coded is not None:
                    self._coded.note(told)

    # The noise

    def _noise(self) -> Iterator[bool]:
        rng, plan = self._rng, self._plan
        if plan.only is not None:
            for queue, properties, body in plan.only:
                self.watch.send(queue, properties, body, "repeated")
                yield False
            return
        user = rng.choice(STRANGERS)
        body, task_id = self._bad_body(user)
        elsewhere = rng.random() < (0.05 if self._coded is not None else 0.3)
        queue = TOPOLOGY.control.name if elsewhere else TOPOLOGY.updates.name
        pieces = encoded(user if rng.random() < 0.9 else None, task_id=task_id)
        mutated = rng.random() < 0.15
        properties = self._headers.properties(pieces) if mutated else b"".join(pieces)
        names = "+".join([*self._mutator.names, *["properties"] * mutated])
        self.watch.send(queue, properties, body, names)
        yield False
        if plan.chunked and rng.random() < (0.5 if self._coded is None else 0.9):
            yield from self._bad_chunks(user)

    def _bad_body(self, user: str) -> tuple[bytes, str | None]:
        """Return a bad body, and the task that it claims to be about."""
        rng = self._rng
        others = self._tasks[HONEST[rng.randrange(len(HONEST))]]
        mine = self._tasks[user]
        share = 0.7 if self._coded is None else 0.95
        open_tasks = mine if self._plan.inside and mine and not self._plan.chunked and rng.random() < share else others
        if not open_tasks or rng.random() < (0.4 if self._coded is None else 0.1):
            return self._mutator.message(rng.choice(self._corpus), self._corpus), None
        task = rng.choice(open_tasks)
        if self._coded is not None and rng.random() < 0.8:
            if open_tasks is mine:
                open_tasks.remove(task)
            update = self._update_of(task)
            if rng.random() < 0.9:  # in its own name: only then is a tensor decoded at all
                update = update.model_copy(update={"participant_id": user})
            body = self._coded.bad(update)
            self.watch.figures.coded += 1
            self._mutator.names = self._coded.names
            return (self._mutator.of_bytes(body) if rng.random() < 0.1 else body), task.task_id
        payload = Parameters({n: np.full(a.shape, 0.01, np.float32) for n, a in model(SMALL).items()})
        sample = Sample.of(encode(self._update_of(task), payload))
        if open_tasks is mine and rng.random() < 0.5:  # as it should be, but for its numbers
            open_tasks.remove(task)
            return self._mutator.claims(sample), task.task_id
        body = self._mutator.message(sample, self._corpus)
        return body, task.task_id

    def _bad_chunks(self, user: str) -> Iterator[bool]:
        """Upload to the stranger's own task in chunks, with one thing wrong in their labels or their order."""
        rng, tasks = self._rng, self._tasks[user]
        if not tasks:
            return
        update = self._update_of(tasks.pop(0))
        queue = TOPOLOGY.upload(user, update.update_id).name
        body = encode(update, self._model)
        if self._coded is not None and rng.random() < 0.8:
            body = self._coded.bad(update)
            self.watch.figures.coded += 1
        elif rng.random() < 0.3:
            body = self._mutator.message(Sample.of(body), self._corpus)
        pieces = [body[at : at + CHUNK_BYTES] for at in range(0, max(len(body), 1), CHUNK_BYTES)]
        digests = [digest_of(piece) for piece in pieces]
        labels: list[dict[str, Any]] = [dict(headers("one", i, d)) for i, d in enumerate(digests)]
        for _ in range(rng.choice([0, 1, 1, 2])):
            label = rng.choice(labels)
            name = rng.choice(list(label))
            label[name] = rng.choice(
                [None, True, -1, 0, 2**62, "", "one", "1", "zz" * 32, " " * 64, "é" * 32, [1], {"a": 1}, 10**9]
            )
            if rng.random() < 0.2:
                del label[name]
        order = list(range(len(pieces)))
        change = rng.randrange(6)
        if change == 0:
            order.pop()
        elif change == 1:
            order.append(0)
        elif change == 2:
            rng.shuffle(order)
        elif change == 3:
            pieces[0] = pieces[0][:-1]
        elif change == 4 and pieces[0]:
            pieces[0] = bytes([pieces[0][0] ^ 1]) + pieces[0][1:]
        for index in order:
            self.transport.put(queue, b"".join(encoded(user, labels[index])), pieces[index])
        chunks = ChunkedPayload(
            payload_id="one", num_bytes=max(1, len(body)), chunk_bytes=CHUNK_BYTES, count=len(pieces),
            digest=digest_of_all(digests),
        )  # fmt: skip
        manifest = encode(update.model_copy(update={"chunks": chunks}))
        self.watch.send(TOPOLOGY.updates.name, b"".join(encoded(user, task_id=update.task_id)), manifest, "chunks")
        yield False

    # The end

    def _check(self) -> None:
        plan, folder = self._plan, RunFolder(self._folder)
        figures = self.watch.figures
        for reason in self.transport.dead:
            figures.outcomes[reason] = figures.outcomes.get(reason, 0) + 1
        figures.outcomes["settled"] = self.transport.settled - len(self.transport.dead)
        if self.transport.failed:
            raise Failed(f"{len(self.transport.failed)} deliveries were given back because their handler raised")
        with LedgerReader(folder.ledger) as ledger:
            accepted = [row.update_id for row in ledger.updates()]
        honest = [update.update_id for update in self._sent]
        figures.outcomes["accepted, sent by a hostile participant"] = len(accepted) - len(honest)
        missing = [one for one in honest if accepted.count(one) != 1]
        if missing or len(honest) != self.num_honest:
            raise Failed(f"{len(missing)} of {len(honest)} honest updates are not accepted exactly once")
        if not plan.inside and accepted != honest:
            raise Failed(f"{len(accepted)} updates were accepted, {len(honest)} of them are honest")
        wrong = [check for check in audit.verify(folder, plan.strategy) if not check.holds and not check.left_out]
        if wrong:
            raise Failed(f"verify: {wrong[0].name}: {audit.shown(wrong[0])}")
        for name, array in self._newest(folder).items():
            if not np.isfinite(array).all():
                raise Failed(f"tensor {name} of the model is not finite any more")

    def _newest(self, folder: RunFolder) -> dict[str, np.ndarray[Any, Any]]:
        """Return the floating-point arrays of the newest checkpoint."""
        with LedgerReader(folder.ledger) as ledger:
            row = ledger.checkpoints()[0]
        arrays = checkpoint.read(next(self._folder.rglob(row.file))).arrays
        return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}

    def final_bits(self) -> dict[str, bytes]:
        """Return the final model of a run that finished."""
        arrays = checkpoint.read(RunFolder(self._folder).final_parameters).arrays
        return {name: array.tobytes() for name, array in arrays.items()}


def run(plan: Plan, folder: Path, log: LogCheck) -> Figures:
    """Run an episode, and without the noise once more if the noise must change nothing. Raises Failed."""
    noisy = CoordinatorEpisode(plan, folder / "noisy", log)
    figures = noisy.run()
    if not plan.inside:
        quiet_plan = Plan(plan.seed, plan.episode, 0, plan.limit_s, chunked=plan.chunked)
        quiet = CoordinatorEpisode(quiet_plan, folder / "quiet", log)
        quiet.num_honest = noisy.num_honest
        quiet.service = quiet._service()
        quiet.run()
        if quiet.final_bits() != noisy.final_bits():
            raise Failed("the model differs from that of a run without the noise")
    return figures
