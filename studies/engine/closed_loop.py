"""Closed loops without the core: what it would decide follows from durations, seeds and the strategy's numbers alone.

In the plainest kind of study nothing that arrives is ever refused, late or lost. The core's answers to its events are
then few: accept the update, make a version of every K, pick who is next. Here they are given without its records, its
messages and its checks, at a tenth of the price. The trainings of a version are done in one call that sums their deltas
as it makes them.

Rules
 1. The core is the oracle. Everything in the outcome equals what `Engine` with the core gives, bit for bit; tests
    compare the two (tests/scenario/studies/test_closed_loop.py).
 2. `closed_loop_of` takes only what it knows: FedBuff, FedAsync, fedmq's own staleness weights and laws, settings by
    their names, and a backend that offers to sum. A setting that is not on its list must be at its default. All else is
    left to the core.
 3. The core's own parts are used wherever there is a choice: its picker, its client weights, its schedule of
    evaluations, its limits, its `Model`, and the population's laws. Only the steps between them are written again.
 4. If something happens that is not known here (an update or a metric that is not finite, a strategy that raises, a
    time beyond any study's end), the loop is given up, and the core begins anew. Calls that were made already
    (`on_version`, `on_evaluation`) are not made again.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import numpy as np

from fedmq.coordinator.decisions.ending import limit_reached
from fedmq.coordinator.decisions.evaluation import Evaluations
from fedmq.coordinator.decisions.events import EvaluationArrived
from fedmq.coordinator.decisions.failures import StrategyFailed
from fedmq.coordinator.decisions.participants.selection import make_picker
from fedmq.coordinator.decisions.task_desk import task_seed
from fedmq.coordinator.decisions.versions.model import Model
from fedmq.coordinator.settings import RunSettings
from fedmq.coordinator.strategies import FedAsync, FedBuff
from fedmq.coordinator.strategies.fedasync import PendingUpdate
from fedmq.coordinator.strategies.math import server_optimizers, staleness_weights
from fedmq.coordinator.strategies.math.client_weights import ClientWeights
from fedmq.coordinator.strategies.protocol import ClientUpdate, Strategy
from fedmq.coordinator.strategies.states.buffer import BufferState
from fedmq.coordinator.strategies.weighted_mean import MOST_WEIGHT
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.local.allocator import keep_freed_memory
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.methods import update_spec
from fedmq.schemas.tensors import spec_of
from fedmq.studies.engine.engine import OnVersion
from fedmq.studies.engine.message_sizes import task_bytes, update_bytes
from fedmq.studies.engine.outcome import Evaluation, Outcome
from fedmq.studies.engine.settings import NEVER_S, StudyRun
from fedmq.studies.engine.task_sizes import example_passes
from fedmq.studies.population import laws
from fedmq.studies.population.population import DRAWS_A_TASK, Member, Population, task_streams
from fedmq.studies.problems.lazy_training import SumJob, Sums
from fedmq.studies.problems.problem import Federation

_STALENESS = frozenset(
    {staleness_weights.Constant, staleness_weights.Polynomial, staleness_weights.Hinge, staleness_weights.DelayAdaptive}
)
_OPTIMIZERS = frozenset(
    {type(None), server_optimizers.SgdMomentum, server_optimizers.Adagrad, server_optimizers.Yogi,
     server_optimizers.Adam, server_optimizers.AmsGrad}
)  # fmt: skip
_LAWS = frozenset(
    {laws.Constant, laws.Uniform, laws.Exponential, laws.HalfNormal, laws.LogNormal, laws.Pareto, laws.Zipf,
     laws.Choice, laws.Empirical, laws.Shifted, laws.Mixture}
)  # fmt: skip
_CLIENT_WEIGHTS = frozenset({"equal", "examples", "sqrt", "log"})
"""Kinds of client weights. `quality` is not among them: it goes by the losses."""
# Settings that the loop takes into account. One that is not here has to be at its default.
_STRATEGIES: dict[type, set[str]] = {
    FedBuff: {"name", "buffer_size", "server_learning_rate", "staleness", "normalize", "server_optimizer"},
    FedAsync: {"name", "alpha", "staleness"},
}
_OF_POPULATION = {"name", "participants", "compute", "network", "examples", "correlation"}
_OF_COMPUTE = {"task_s", "example_s", "slowness"}
_OF_NETWORK = {"down_bytes_per_s", "up_bytes_per_s", "latency_s"}
_OF_RUN = {"stop", "concurrency", "selection", "client_weights", "evaluate_interval_s", "evaluate_every_updates"}
_OF_STOP = {"max_versions", "max_updates", "max_time_s", "target", "patience"}
_OF_TRAINING = {"learning_rate", "batch_size", "epochs", "max_steps", "proximal_mu", "seed"}

TASKS_AHEAD = 8
"""Tasks of a participant whose durations are drawn at once."""
_TICK = -1
"""Stands for a participant in the heap: time to look at the clock."""


class LeftToTheCore(Exception):
    """Something happened that only the core knows how to answer."""


def closed_loop_of(
    strategy: Strategy[Any],
    *,
    federation: Federation,
    population: Population,
    members: Sequence[Member],
    run: StudyRun,
    training: TrainingConfig,
    seed: int,
    on_evaluation: Callable[[Evaluation], None] | None,
    on_version: OnVersion | None,
) -> ClosedLoop | None:
    """Return the loop that gives this run's outcome; None for a run that is not known to be that plain."""
    summed = getattr(federation.backend, "summed", None)
    if not isinstance(strategy, FedBuff | FedAsync) or summed is None:
        return None
    if not _is_plain(strategy, population, run, training):
        return None
    settings = run.run_settings(len(members), seed)
    if federation.initial.non_trainable or not all(1 <= n <= settings.max_examples for n in federation.num_examples):
        return None
    sums: Sums = summed(training)
    model = Model(strategy, federation.initial)
    state = model.state
    if not isinstance(state, BufferState | PendingUpdate) or state.layout is not sums.layout:
        return None
    if isinstance(state, BufferState) and (state.block is None or state.block.dtype != np.float32):
        return None
    return ClosedLoop(
        strategy, model=model, sums=sums, federation=federation, population=population, members=members,
        settings=settings, training=training, seed=seed, on_evaluation=on_evaluation, on_version=on_version,
    )  # fmt: skip


def _is_plain(strategy: FedBuff | FedAsync, population: Population, run: StudyRun, training: TrainingConfig) -> bool:
    """Return True if every setting is one that the loop takes into account, or at its default."""
    return (
        type(strategy) in _STRATEGIES
        and changed(strategy) <= _STRATEGIES[type(strategy)]
        and type(strategy.staleness) in _STALENESS
        and type(getattr(strategy, "server_optimizer", None)) in _OPTIMIZERS
        and changed(population) <= _OF_POPULATION
        and changed(population.compute) <= _OF_COMPUTE
        and changed(population.network) <= _OF_NETWORK
        and type(population.compute.task_s) in _LAWS
        and changed(run) <= _OF_RUN
        and changed(run.stop) <= _OF_STOP
        and run.client_weights in _CLIENT_WEIGHTS
        and changed(training) <= _OF_TRAINING
        and training.learning_rate is not None
    )


def changed(value: Any) -> set[str]:
    """Return the names of a pydantic model's or a dataclass's fields that are not at their defaults."""
    if not is_dataclass(value):
        known = type(value).model_fields.items()
        return {name for name, f in known if getattr(value, name) != f.get_default(call_default_factory=True)}
    return {f.name for f in fields(value) if getattr(value, f.name) != _default(f)}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


class ClosedLoop:
    """One run. See the module docstring."""

    def __init__(
        self,
        strategy: FedBuff | FedAsync,
        *,
        model: Model,
        sums: Sums,
        federation: Federation,
        population: Population,
        members: Sequence[Member],
        settings: RunSettings,
        training: TrainingConfig,
        seed: int,
        on_evaluation: Callable[[Evaluation], None] | None,
        on_version: OnVersion | None,
    ) -> None:
        self._strategy, self._model, self._sums = strategy, model, sums
        self._federation, self._population, self._members = federation, population, members
        self._settings, self._training = settings, training
        self._on_evaluation, self._on_version = on_evaluation, on_version
        self.versions_told = self.evaluations_told = 0
        """Calls that were made so far."""
        self._rng = np.random.Generator(np.random.PCG64(settings.seed))
        self._picker = make_picker(settings.selection)
        self._issued = [0] * len(members)
        """Tasks that each participant had."""
        self._slots = min(settings.concurrency, len(members))
        self._weights = ClientWeights(settings.client_weights, settings.max_client_weight)
        self._evaluations = Evaluations(settings, federation.evaluates)
        self._stopping: str | None = None
        self._streams = task_streams(seed, len(members))
        self._ahead: list[list[float]] = [[] for _ in members]
        """Draws of the durations of each participant's tasks to come, the next one last."""
        self._passes: dict[int, int] = {}
        """Examples of a participant -> examples that its task goes through."""
        initial = federation.initial
        spec = update_spec(strategy.reply, spec_of(initial))
        self._down_bytes = task_bytes(spec_of(initial), strategy.reply, training)
        self._up_bytes = update_bytes(spec, strategy.reply)
        self._payload_bytes = (initial.num_bytes, sum(t.num_bytes for t in spec))
        self._issued_bytes = self._sent_bytes = 0.0
        self._now = 0.0
        self._heap: list[tuple[float, int, int, int, Any, int]] = []
        """(time, number in the order of planning, participant, base version, start of the training, task)."""
        self._planned = self._tasks = self._trained_to = 0
        self._wakeup_s = math.inf
        self._version = self._accepted = 0
        self._start = sums.start(initial)
        self._waiting: list[SumJob] = []
        """Accepted updates that are not trained yet: those of the version in the making."""
        self._coefficients: dict[tuple[int, float], float] = {}
        """(staleness, client weight) -> coefficient."""
        self._outcome = Outcome(initial)

    def run(self) -> Outcome:
        """Run until a limit or goal is reached. Raises LeftToTheCore if the core has to do it (rule 4)."""
        keep_freed_memory()
        for i in range(len(self._members)):
            self._picker.add(i, 0)
        self._answer(slots=0)
        if not self._outcome.finished:
            self._issue(self._slots)
        outcome, heap = self._outcome, self._heap
        self._plan_wakeup()
        while not outcome.finished:
            self._now, _, i, base_version, start, task = heapq.heappop(heap)
            if self._now >= NEVER_S:
                raise LeftToTheCore
            if i == _TICK:
                self._wakeup_s = math.inf
                self._answer(slots=0)
            else:
                self._accept(i, base_version, start, task)
                self._answer(slots=1)
            self._plan_wakeup()
        self._train()
        return self._closed()

    def _closed(self) -> Outcome:
        outcome, compute, training = self._outcome, self._population.compute, self._training
        outcome.parameters = self._model.parameters
        outcome.time_s = self._now
        outcome.bytes_up, outcome.bytes_down = self._sent_bytes, self._issued_bytes
        outcome.tasks_issued = self._tasks
        outcome.num_examples = list(self._federation.num_examples)
        outcome.mean_task_s = [
            m.mean_task_s(compute, example_passes(training, count), self._payload_bytes)
            for m, count in zip(self._members, outcome.num_examples, strict=True)
        ]
        outcome.trained = self._trained_to
        outcome.backend = self._federation.backend.name
        return outcome

    # Updates and versions

    def _accept(self, i: int, base_version: int, start: Any, task: int) -> None:
        if task > self._trained_to:  # the engine trains everything that is in flight as soon as one result is needed
            self._outcome.cohorts += 1
            self._trained_to = self._tasks
        self._sent_bytes += self._up_bytes
        self._accepted += 1
        staleness = self._version - base_version
        weight = self._weights.weight(self._members[i].participant_id, self._federation.num_examples[i], {})
        rows = self._outcome.updates
        rows.time_s.append(self._now)
        rows.participant.append(i)
        rows.base_version.append(base_version)
        rows.staleness.append(staleness)
        rows.client_weight.append(weight)
        rows.bytes_up.append(self._sent_bytes)
        rows.bytes_down.append(self._issued_bytes)
        self._picker.add(i, self._issued[i])
        seed = task_seed(self._settings.seed, task)
        if isinstance(self._strategy, FedBuff):
            self._waiting.append(SumJob(i, seed, start, self._coefficient(self._strategy, staleness, weight)))
            if len(self._waiting) + self._model.state.count >= self._strategy.buffer_size:
                self._train()
                self._make_version(self._strategy.buffer_size)
        else:
            self._mix(self._strategy, SumJob(i, seed, start, weight), staleness)
            self._make_version(1)

    def _mix(self, strategy: FedAsync, job: SumJob, staleness: int) -> None:
        """Train, and give the strategy the update that the next version is made of."""
        local = self._sums.train(job)
        if local is None:
            raise LeftToTheCore
        update = ClientUpdate("", "", 0, local, 1, client_weight=job.coefficient)  # all that FedAsync looks at
        try:
            self._model.state = strategy.accumulate(self._model.state, update, staleness)  # type: ignore[arg-type]
        except ValueError:
            raise LeftToTheCore from None

    def _coefficient(self, strategy: FedBuff, staleness: int, weight: float) -> float:
        found = self._coefficients.get((staleness, weight))
        if found is None:
            update = ClientUpdate("", "", 0, self._federation.initial, 1, client_weight=weight)
            found = strategy.weight(update, staleness)
            if type(found) is not float or not 0 <= found <= MOST_WEIGHT:
                raise LeftToTheCore
            self._coefficients[staleness, weight] = found
        return found

    def _train(self) -> None:
        """Add the updates that wait to the strategy's buffer."""
        if not self._waiting:
            return
        waiting, self._waiting, state = self._waiting, [], self._model.state
        assert isinstance(state, BufferState)
        assert state.block is not None
        if not self._sums.add(waiting, state.block):
            raise LeftToTheCore
        state.coefficients.extend(job.coefficient for job in waiting)

    def _make_version(self, count: int) -> None:
        try:
            weights = self._model.make_version(count=count)
        except StrategyFailed:
            raise LeftToTheCore from None
        self._version += 1
        self._start = self._sums.start(self._model.parameters)
        self._outcome.version_s.append(self._now)
        self._outcome.updates.weigh(weights, None)
        if self._on_version is not None:
            self.versions_told += 1
            self._on_version(self._now, self._version, self._accepted)

    # The rest of a step

    def _answer(self, slots: int) -> None:
        """Do what the core does after each event: look for the end, evaluate, and fill the slots that are free."""
        if self._stopping is None:
            self._stopping = limit_reached(
                self._settings.stop, version=self._version, accepted=self._accepted, now=self._now
            )
        if slots:
            self._outcome.updates.tasks_out.append(0 if self._stopping is not None else self._slots)
        due_s = self._evaluations.due_s(self._version, self._accepted, last=self._stopping is not None)
        metrics = None
        if due_s is not None and (self._stopping is not None or self._now >= due_s):
            self._evaluations.begin(self._version, self._now, self._accepted)
            metrics = self._evaluate()
        if self._stopping is None and slots:
            self._issue(slots)
        if metrics is not None:
            arrived = EvaluationArrived(self._version, metrics)
            goal = self._evaluations.on_result(arrived, stopping=self._stopping is not None)
            if self._evaluations.mistake is not None:
                raise ConfigError(self._evaluations.mistake)
            self._stopping = self._stopping or goal
        if self._stopping is not None and self._evaluations.complete(self._version):
            self._outcome.finished = self._stopping

    def _evaluate(self) -> dict[str, float]:
        self._train()  # an update that is not finite ends the run before this
        metrics = self._federation.evaluate(self._model.parameters)
        if not all(math.isfinite(v) for v in metrics.values()):
            raise LeftToTheCore
        found = Evaluation(
            self._version, self._now, self._accepted, self._sent_bytes, self._issued_bytes, metrics, self._tasks
        )
        self._outcome.evaluations.append(found)
        if self._on_evaluation is not None:
            self.evaluations_told += 1
            self._on_evaluation(found)
        return metrics

    def _issue(self, slots: int) -> None:
        for _ in range(slots):
            i = self._picker.pick(self._rng)
            self._issued[i] += 1
            self._tasks += 1
            self._issued_bytes += self._down_bytes
            self._planned += 1
            at = self._now + self._duration_s(i)
            heapq.heappush(self._heap, (at, self._planned, i, self._version, self._start, self._tasks))

    def _duration_s(self, i: int) -> float:
        """Return the seconds of a participant's next task. Every task takes as many draws as in `Device.begin`."""
        if not self._ahead[i]:
            self._ahead[i] = self._streams.random(i, TASKS_AHEAD * DRAWS_A_TASK)[::DRAWS_A_TASK][::-1]
        count = self._federation.num_examples[i]
        passes = self._passes.get(count)
        if passes is None:
            passes = self._passes[count] = example_passes(self._training, count)
        return self._members[i].times_s(self._population.compute, self._ahead[i].pop(), passes, self._payload_bytes)[1]

    def _plan_wakeup(self) -> None:
        """Plan a look at the clock after an event, as the engine does. Two of them at one time may both come."""
        if self._stopping is not None:
            return
        due = (self._settings.stop.max_time_s, self._evaluations.due_s(self._version, self._accepted))
        due_s = min((at for at in due if at is not None), default=math.inf)
        if due_s < self._wakeup_s:
            self._wakeup_s = due_s
            self._planned += 1
            heapq.heappush(self._heap, (max(due_s, self._now), self._planned, _TICK, 0, None, 0))
