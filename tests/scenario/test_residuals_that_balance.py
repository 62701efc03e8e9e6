"""The real agent, the real core and the real codecs under random faults: the books of error feedback always balance.

For each participant, whatever happens,

    sum of what was accepted + its residual + the residuals that lost disks had = sum of its accepted trainings' deltas

and no residual is the start of two accepted updates. Faults: those of test_participants_that_remember, and disks that
are lost with all that is on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fedmq.coordinator.strategies import FedBuff
from fedmq.participant.decisions import events as ev
from fedmq.participant.trainer import TrainResult
from fedmq.participant.training.task_work import do_task
from fedmq.participant.training.uplink import RESIDUAL
from fedmq.schemas.codecs.known import codec_of
from fedmq.schemas.codecs.wire import Wire
from fedmq.schemas.messages import Task, Update, Uplink, run_uid
from fedmq.schemas.methods import update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of
from tests.scenario.test_participants_that_remember import NAMES, RUN, Disk, Person, World
from tests.support.full import FULL
from tests.unit.coordinator.decisions.harness import Bench

Sum = npt.NDArray[np.float64]
MODEL = Parameters({"w": np.zeros((6, 5), np.float32), "b": np.zeros(4, np.float32)})
SIZE = 34
NOTHING = np.zeros(SIZE)
UPLINKS = (
    Uplink(codec="topk", fraction=0.1, error_feedback=True),
    Uplink(codec="topk", fraction=0.2, values="int8", error_feedback=True),
    Uplink(codec="int4", rounding="nearest", error_feedback=True, lossless="zstd"),
    Uplink(codec="powersgd", rank=1, error_feedback=True),
)


def flat(tensors: Parameters) -> Sum:
    return np.concatenate([a.astype(np.float64).reshape(-1) for a in tensors.values()])


class Trainer:
    num_examples = 5

    def __init__(self, seed: int) -> None:
        self._values = np.random.default_rng(seed)

    def train(self, parameters: Parameters, config: Any) -> TrainResult:
        local = {n: a + self._values.normal(size=a.shape).astype(np.float32) for n, a in parameters.items()}
        self.delta = flat(Parameters({n: local[n] - parameters[n] for n in local}))
        return TrainResult(local, 5, 1, {})


class Owing(Person):
    """A participant that owes what its codec left out."""

    replies = ("delta",)
    world: Owers

    def start(self) -> None:
        self.codecs = ("topk", "int4", "powersgd", "zstd")
        super().start()

    def train(self, task: Task) -> None:
        tensors = self.disk.tensors
        assert tensors is not None
        self.world.trainings += 1
        memory = self.disk.memory.get(run_uid(task.task_id))
        trainer = Trainer(self.world.trainings)
        done = do_task(trainer, task, tensors, lambda: 1.0, memory)
        assert done.payload is not None
        assert done.next_memory is not None
        self.world.deltas[done.next_memory.mark] = trainer.delta
        self.world.left[done.next_memory.mark] = done.next_memory.tensors[RESIDUAL].astype(np.float64)
        self.finished[done.update.update_id] = (done.update, done.payload, done.next_memory)
        self.inbox.append(ev.TrainingFinished(task.task_id, 5))


class Owers(World):
    """A world of them. `sent`, `wanted` and `lost` are sums over each participant's accepted updates."""

    person = Owing

    def __init__(self, seed: int, uplink: Uplink, buffer_size: int, crash_rate: float) -> None:
        self.uplink, self.buffer_size = uplink, buffer_size
        self.deltas: dict[str, Sum] = {}
        self.left: dict[str, Sum] = {}
        """Mark of a memory -> its residual."""
        self.begun: set[str] = set()
        """Marks that an accepted update was made from."""
        self.marks: dict[str, str] = {}
        """Participant -> the mark that its last accepted update left."""
        self.sent = {name: NOTHING.copy() for name in NAMES}
        self.wanted, self.lost = ({name: NOTHING.copy() for name in NAMES} for _ in range(2))
        codec = codec_of(uplink)
        assert codec is not None
        self.wire = Wire(codec, uplink.lossless == "zstd", update_spec("delta", spec_of(MODEL)))
        super().__init__(seed)
        self.crash_rate = crash_rate

    def new_bench(self) -> Bench:
        return Bench(FedBuff(buffer_size=self.buffer_size), model=MODEL, uplink=self.uplink, **RUN)

    def task_of(self, t: Any, **fields: Any) -> Task:
        assert t.coded
        return super().task_of(t, reply="delta", uplink=self.uplink, **fields)

    def trouble(self) -> None:
        if not self.chance(0.2):
            super().trouble()
            return
        person = self.people[self.rng.choice(NAMES)]
        self.seen["lost disk"] += 1
        person.disk = Disk()
        person.start()

    def decoded(self, payload: Parameters) -> Parameters:
        return self.wire.decode(payload)

    def accepted(self, update: Update, payload: Parameters) -> None:
        name, made_from = update.participant_id, update.memory
        former = self.marks.get(name)
        if made_from is None:
            self.lost[name] += NOTHING if former is None else self.left[former]
        else:
            assert made_from == former, "an update from a residual that no accepted update left"
            assert made_from not in self.begun, "two accepted updates from one residual"
            self.begun.add(made_from)
        assert update.next_memory is not None
        self.marks[name] = update.next_memory
        self.sent[name] += flat(payload)
        self.wanted[name] += self.deltas[update.next_memory]

    def check(self) -> None:
        """Check the books, and that a disk has what it should under each mark."""
        for name, mark in self.marks.items():
            books = self.sent[name] + self.left[mark] + self.lost[name]
            assert np.linalg.norm(books - self.wanted[name]) <= 1e-5 * max(np.linalg.norm(self.wanted[name]), 1.0)
            for memory in self.people[name].disk.memory.values():
                assert memory.soft
                assert np.array_equal(memory.tensors[RESIDUAL].astype(np.float64), self.left[memory.mark])


@settings(max_examples=200 if FULL else 12, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(
    seed=st.integers(0, 2**32), uplink=st.sampled_from(UPLINKS), buffer_size=st.sampled_from([1, 2, 3]),
    crash_rate=st.sampled_from([0.0, 0.02, 0.08]),
)  # fmt: skip
def test_the_books_balance_whatever_happens(seed, uplink, buffer_size, crash_rate):
    world = Owers(seed, uplink, buffer_size, crash_rate)
    for _ in range(6):
        world.run(250)
        world.check()
    assert world.bench.core.accepted > 20, world.seen
