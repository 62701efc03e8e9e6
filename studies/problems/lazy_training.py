"""Lazy training: nothing is trained before its result is needed. Then everything is trained that can be.

A task's result is needed when its update arrives. At that moment all trainings in flight that have not been computed
are computed together, as one cohort, each from the version that it started from. A version's arrays live as long as a
training that has not been computed refers to them: Python's own reference counts keep the snapshots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedmq.participant.memory import Memory
from fedmq.participant.training.methods import Made, Start, begin, make
from fedmq.participant.training.uplink import Coder
from fedmq.schemas.codecs.wire import Wire
from fedmq.schemas.errors import ConfigError, NotFinite
from fedmq.schemas.layout import Layout
from fedmq.schemas.messages import Reply, TrainingConfig, Uplink
from fedmq.schemas.methods import METHODS, Method, memory_kind, update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import ModelSpec, check_finite, spec_of


class Job(NamedTuple):
    """One training to do."""

    participant: int
    """Index of the participant in the population."""
    base: Parameters
    config: TrainingConfig
    correction: Parameters | None = None
    """Tensors to add to each gradient (SCAFFOLD). Either all jobs of a cohort have one, or none has."""


class Trained(NamedTuple):
    """The result of a job. Its arrays may be parts of the cohort's own arrays."""

    parameters: Parameters
    num_examples: int
    num_steps: int
    metrics: Mapping[str, float]


class Backend(Protocol):
    """The part of a problem that trains cohorts.

    A backend with an integer `at_once` gets no more jobs than that at a time. A backend may also have `train_deltas`,
    which returns y - base in place of the parameters. It is called if updates carry deltas. One with `summed(training)`
    returns a `Sums`, by which plain studies train (studies.engine.closed_loop).
    """

    @property
    def name(self) -> str:
        """Name for the report."""

    def train(self, jobs: Sequence[Job]) -> Sequence[Trained]:
        """Return the results in the order of the jobs.

        No bit of a job's result may depend on which other jobs are in the cohort.
        """


class SumJob(NamedTuple):
    """One training whose delta is summed."""

    participant: int
    seed: int
    """Seed of the task (`TrainingConfig.seed`)."""
    start: Any
    """The parameters to start from, as `Sums.start` returned them."""
    coefficient: float


class Sums(Protocol):
    """Trainings of one configuration, one after the other, whose deltas are summed as they are made."""

    @property
    def layout(self) -> Layout:
        """Layout of the sums."""

    def start(self, parameters: Parameters) -> Any:
        """Return parameters that trainings start from, in the form that `SumJob.start` takes."""

    def add(self, jobs: Sequence[SumJob], sums: npt.NDArray[np.float32]) -> bool:
        """Do sums += coefficient·delta for each job in order; `sums` is flat and in `layout`.

        The bits are those that `arithmetic.scale_add` makes of the backend's own deltas. Return False if a delta is not
        finite; the sums are of no use then.
        """

    def train(self, job: SumJob) -> Parameters | None:
        """Return the trained parameters themselves, as the backend's `train` does; None if they are not finite."""


class Result(NamedTuple):
    """A trained job, as its update carries it."""

    payload: Parameters
    num_examples: int
    num_steps: int
    metrics: Mapping[str, float]
    memory: str | None = None
    """Mark of the method's memory that it was made from (`Update.memory`)."""
    remembered: Mapping[str, Any] | None = None
    """The method's memory that its participant has once the update is accepted."""
    finite: bool = True
    """False if the training diverged."""
    coded: ModelSpec | None = None
    """Tensors of its message; None if they are plain."""


class LazyTraining:
    """The trainings in flight, by the number that the caller gives each, and the method's memory of each
    participant."""

    def __init__(self, backend: Backend, reply: Reply, wire: Wire | None = None, uplink: Uplink | None = None) -> None:
        """`wire` and `uplink` are the run's codec; None sends plain tensors."""
        self._reply = reply
        self._wire, self._uplink = wire, uplink
        self._at_once: int | None = getattr(backend, "at_once", None)
        self._plain = METHODS[reply] == Method() and wire is None
        deltas = getattr(backend, "train_deltas", None) if self._plain and reply == "delta" else None
        self._makes_deltas, self._train = deltas is not None, deltas or backend.train
        self._wires: dict[int, Wire] = {}
        """The codec, by the number of the model's tensors."""
        self._waiting: dict[int, tuple[Job, Start | None]] = {}
        self._done: dict[int, Result] = {}
        self._memories: dict[int, Memory] = {}
        self._unsettled: dict[str, tuple[int, Memory]] = {}
        self.cohorts = 0
        self.trained = 0

    def add(self, number: int, participant: int, tensors: Parameters, config: TrainingConfig) -> None:
        """Note that a task with these tensors has gone to a participant."""
        if self._plain:
            self._waiting[number] = (Job(participant, tensors, config), None)
            return
        own = self._memories.get(participant) if METHODS[self._reply].remembers else None
        start = begin(self._reply, tensors, own)
        self._waiting[number] = (Job(participant, start.parameters, config, start.correction), start)

    def drop(self, number: int) -> None:
        """Forget a training whose result will not be needed."""
        if self._waiting.pop(number, None) is None:
            self._done.pop(number, None)

    def result(self, number: int) -> Result:
        """Return a result, once. If it has not been computed, everything that is waiting is computed now."""
        if number in self._waiting:
            self._compute()
        return self._done.pop(number)

    def sent(self, update_id: str, participant: int, result: Result) -> None:
        """Note that an update is on its way to the coordinator."""
        if result.remembered is not None:
            self._unsettled[update_id] = (participant, Memory(update_id, result.remembered))

    def settled(self, update_id: str, accepted: bool) -> None:
        """Note an update's receipt. The method's memory moves only if the update was accepted."""
        participant, remembered = self._unsettled.pop(update_id, (0, None))
        if accepted and remembered is not None:
            self._memories[participant] = remembered

    def _compute(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self.cohorts += 1
        self.trained += len(waiting)
        numbers, tasks = list(waiting), list(waiting.values())
        # Parts of about one size: the results of a part are used while they are in the processor's caches.
        size = math.ceil(len(tasks) / math.ceil(len(tasks) / (self._at_once or len(tasks))))
        with np.errstate(over="ignore", invalid="ignore"):  # `finite` reports it
            for first in range(0, len(tasks), size):
                part = tasks[first : first + size]
                jobs = [job for job, _ in part]
                trained = self._train(jobs)
                check_trained(trained, jobs)
                for number, (job, start), result in zip(numbers[first : first + size], part, trained, strict=True):
                    self._done[number] = self._result(job, start, result)

    def _result(self, job: Job, start: Start | None, trained: Trained) -> Result:
        base, local = job.base, trained.parameters
        if self._makes_deltas:
            return Result(*trained, finite=_is_finite(local))
        if start is None:
            layout, x, y = base.layout, base.block, local.block
            if self._reply == "delta" and layout is local.layout and x is not None and y is not None and x.itemsize > 2:
                assert layout is not None
                delta = Parameters.in_block(layout, np.subtract(y, x), base.non_trainable)  # as `make` computes it
                return Result(delta, *trained[1:], finite=_is_finite(delta))
            start = Start(base, {}, None, None)
        if self._wire is not None:
            return self._coded(job, start, trained)
        return _made(make(self._reply, start, local, trained.num_steps, job.config), start.memory, trained)

    def _wire_of(self, base: Parameters) -> Wire:
        """Return the codec on the tensors of an update of this model, which has more of them once some are unfrozen."""
        assert self._wire is not None
        if len(base) not in self._wires:
            self._wires[len(base)] = replace(self._wire, spec=update_spec(self._reply, spec_of(base)))
        return self._wires[len(base)]

    def _coded(self, job: Job, start: Start, trained: Trained) -> Result:
        """Return the result as its receiver decodes it. A training that diverged is not encoded."""
        assert self._wire is not None
        assert self._uplink is not None
        soft = memory_kind(self._reply, self._uplink) == "soft"
        memory = self._memories.get(job.participant)
        coder = Coder(
            self._wire_of(start.parameters), job.config.seed, memory if soft else None, self._uplink, remembers=soft
        )

        def code(tensors: Parameters) -> Parameters:
            return coder.code(tensors) if _is_finite(tensors) else tensors

        made = make(self._reply, start, trained.parameters, trained.num_steps, job.config, code)
        if coder.is_done:
            made = Made(made.tensors, coder.next_memory() if made.next_memory is None else made.next_memory)
        return _made(made, memory, trained)._replace(coded=spec_of(coder.coded) if coder.is_done else None)


def check_trained(results: Any, jobs: Sequence[Job]) -> None:
    """Raise ConfigError unless there is a Trained for each job, with the tensors of its base.

    Arrays of another shape would be broadcast, without a word.
    """
    if not isinstance(results, Sequence) or len(results) != len(jobs):
        raise ConfigError(
            f"the backend's train(…) gave {named(results)} for {len(jobs)} jobs: return a list of as many"
        )
    for job, result in zip(jobs, results, strict=True):
        if not isinstance(result, Trained) or not isinstance(result.parameters, Parameters):
            got = named(result.parameters) + " as parameters" if isinstance(result, Trained) else named(result)
            raise ConfigError(
                f"the backend's train(…) gave {got}, expected fedmq.Trained(fedmq.Parameters({{name: array}}), "
                "num_examples, num_steps, metrics) for each job"
            )
        base, local = job.base, result.parameters
        if local.layout is not None and local.layout is base.layout:
            continue
        shapes, expected = ({name: array.shape for name, array in one.items()} for one in (local, base))
        if shapes != expected:
            raise ConfigError(f"the backend's train(…) gave tensors {shapes}, expected those of the base: {expected}")


def named(given: Any) -> str:
    """Return a thing that a user's code gave, in the words of an error."""
    if given is None:
        return "None"
    if isinstance(given, type):
        return f"the class {given.__name__}"
    count = f" of {len(given)}" if isinstance(given, list | tuple) else ""
    return f"a {type(given).__name__}{count}"


def _made(made: Made, memory: Memory | None, trained: Trained) -> Result:
    return Result(
        payload=_own(made.tensors),
        num_examples=trained.num_examples,
        num_steps=trained.num_steps,
        metrics=trained.metrics,
        memory=None if memory is None else memory.mark,
        remembered=made.next_memory,
        finite=_is_finite(made.tensors),
    )


def stacked_corrections(jobs: Sequence[Job], name: str) -> npt.NDArray[Any] | None:
    """Stack a tensor's corrections of a cohort, [jobs, ...]; None if the method has none."""
    corrections = [job.correction for job in jobs]
    return None if corrections[0] is None else np.stack([c[name] for c in corrections if c is not None])


def _is_finite(payload: Parameters) -> bool:
    block = payload.block
    # The sum of squares takes one pass, and is finite only if all values are. If it overflows, look at each value.
    if block is not None and block.dtype.char in "fd" and math.isfinite(np.dot(block, block)):
        return True
    try:
        check_finite(payload)
    except NotFinite:
        return False
    return True


def _own(payload: Parameters) -> Parameters:
    """Copy arrays that are parts of larger ones. They would keep these alive until the slowest task has finished."""
    if payload.block is not None and payload.block.base is None:
        return payload
    if all(a.base is None for a in payload.values()):
        return payload
    return payload.replace({name: a if a.base is None else a.copy() for name, a in payload.items()})
