"""One federation in virtual time: the way into the engine for scripts, and for the cells of a study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedmq.coordinator.decisions.requirements import check_requirements
from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.engine.engine import Engine, OnVersion
from fedmq.studies.engine.outcome import Evaluation, Outcome
from fedmq.studies.engine.recorded import RecordedEngine
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.devices import Device
from fedmq.studies.population.population import Population, task_streams
from fedmq.studies.problems.problem import Problem


def simulate(
    strategy: Strategy[Any],
    problem: Problem,
    population: Population,
    run: StudyRun,
    training: TrainingConfig | None = None,
    *,
    seed: int = 0,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    on_version: OnVersion | None = None,
) -> Outcome:
    """Run one federation in virtual time until it ends, in this process.

    The coordinator's own decision core drives it. The same arguments give the same bytes, on any machine.

    strategy        how updates become versions, for example `fedmq.FedBuff()`, or a strategy of your own
    problem         the model and everybody's data, for example `fedmq.Softmax(data="mnist.npz")`
    population      who the participants are: number, speed, network, data, dropout. Durations are virtual seconds
    run             when the run stops, how many tasks are out at one time, and what is evaluated
    training        what each task asks for; problems other than apps and Keras models need a `learning_rate`
    seed            decides every random draw: participants, data, durations, dropouts, selection
    on_evaluation   called with each evaluation, when it was made
    on_version      called with (virtual time in s, version, accepted updates so far) at each new version

    Return what happened as columns: the final `parameters`, one row for each accepted update (`updates`), the
    `evaluations`, the time of each version (`version_s`) and why the run `finished`. A run whose training diverges
    ends early with `finished == "diverged"`.

    Raise ConfigError if the run would never end or the strategy does not fit the run, InputError if tasks take no time
    or the problem refuses its data, and Stuck (an InputError that carries the `outcome` so far) if nothing is left to
    happen before the run's end.
    """
    training = training or TrainingConfig()
    if not population.takes_time:
        raise ConfigError(
            f"tasks of the population {population.name!r} take no time: "
            "set its compute.task_s or compute.example_s, its network's bytes a second, or a trace"
        )
    if not any(limit is not None for limit in run.stop.model_dump().values()):
        raise ConfigError("the run would never end: give its stop a max_updates, max_versions, max_time_s or a goal")
    members = population.members(seed)
    federation = problem.deal(members, seed)
    check_requirements(run.run_settings(len(members), seed), strategy, training, evaluates=federation.evaluates)
    recorded = population.order == "recorded"
    streams = task_streams(seed, len(members))
    open_loop = recorded or run.arrivals_per_s is not None
    engine = (RecordedEngine if recorded else Engine)(
        population,
        federation,
        [Device(m, population, seed, streams, open_loop) for m in members],
        strategy=strategy,
        run=run,
        training=training,
        seed=seed,
        on_evaluation=on_evaluation,
        on_version=on_version,
    )
    return engine.run()
