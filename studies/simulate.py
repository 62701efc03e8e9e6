"""One federation in virtual time: the way into the engine for scripts, and for the cells of a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

from fedmq.coordinator.decisions.requirements import check_requirements
from fedmq.coordinator.settings import unfreezing, what_tasks_ask
from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.engine.closed_loop import LeftToTheCore, closed_loop_of
from fedmq.studies.engine.distilling import check_distils
from fedmq.studies.engine.engine import Engine, OnVersion
from fedmq.studies.engine.outcome import Evaluation, Outcome, Stuck
from fedmq.studies.engine.pace import check_pace
from fedmq.studies.engine.recorded import RecordedEngine
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.engine.task_sizes import first_training
from fedmq.studies.population.devices import Device
from fedmq.studies.population.population import Member, Population, task_streams
from fedmq.studies.problems.claims import check_arguments, check_dealt
from fedmq.studies.problems.frozen import with_schedule
from fedmq.studies.problems.problem import Federation, Problem

P = ParamSpec("P")


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

    The coordinator's own decision core drives it, or for plain runs a closed loop that gives the core's bytes
    (studies.engine.closed_loop). The same arguments give the same bytes again.

    strategy        how updates become versions, for example `fedmq.FedBuff()`, or a strategy of your own
    problem         the model and everybody's data, for example `fedmq.Softmax(data="mnist.npz")`
    population      the participants: number, speed, network, data, dropout. Durations are in virtual seconds
    run             when the run stops, how many tasks are out at one time, and what is evaluated
    training        what each task asks for; problems other than apps and Keras models need a `learning_rate`
    seed            decides every random draw: participants, data, durations, dropouts, selection
    on_evaluation   called with each evaluation, when it was made
    on_version      called with (virtual time in s, version, accepted updates so far) at each new version

    Return what happened: the final `parameters`, the `history` with a row for each evaluation, a row for each of the
    `participants` with its counts and weights, columns with a value for each accepted update (`updates`), the time of
    each version (`version_s`) and the reason of the end (`finished`). A run whose training diverges ends early with
    `finished == "diverged"`.

    Raise ConfigError if an argument or something of a problem of your own is not what its place takes, tasks take no
    time, the run would never end or hardly move on, or the strategy does not fit the run; InputError if the problem
    refuses its data; MissingExtra if it needs a package that is not installed; and Stuck (an InputError that carries
    the `outcome` so far) if nothing is left to happen before the run's end.
    """
    training = TrainingConfig() if training is None else training
    check_arguments(
        strategy=strategy, problem=problem, population=population, run=run, training=training, seed=seed
    )  # fmt: skip
    seed = int(seed)  # numpy's integers are no Python integers
    if not population.takes_time:
        raise ConfigError(
            f"tasks of the population {population.name!r} take no time: "
            "set its compute.task_s or compute.example_s, its network's bytes a second, or a trace"
        )
    if not any(limit is not None for limit in run.stop.model_dump().values()):
        raise ConfigError("the run would never end: give its stop a max_updates, max_versions, max_time_s or a goal")
    check_number(strategy, population)
    check_order(population, run)
    members = population.members(seed)
    federation = problem.deal(members, seed)
    check_dealt(federation, len(members))
    check_requirements(run.run_settings(len(members), seed), strategy, training, evaluates=federation.evaluates)
    federation = with_schedule(federation, unfreezing(training), strategy)
    training = what_tasks_ask(training)
    for table in (run.uplink, run.downlink):
        for place, text in () if table is None else table.unmet(strategy):
            raise ConfigError(f"{place}: {text}")
    check_metrics(federation, goals(run))
    check_training(federation, strategy, population, run, training)
    check_pace(federation.num_examples, strategy, population, members, run, training)
    check_distils(strategy, federation)
    loop = closed_loop_of(
        strategy, federation=federation, population=population, members=members, run=run, training=training,
        seed=seed, on_evaluation=on_evaluation, on_version=on_version,
    )  # fmt: skip
    if loop is not None:
        try:
            return _named(loop.run(), members, run)
        except LeftToTheCore:
            on_evaluation = _after(loop.evaluations_told, on_evaluation)
            on_version = _after(loop.versions_told, on_version)
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
    try:
        return _named(engine.run(), members, run)
    except Stuck as e:
        _named(e.outcome, members, run)
        raise


def _named(outcome: Outcome, members: Sequence[Member], run: StudyRun) -> Outcome:
    outcome.name_participants([m.participant_id for m in members], run.client_weights)
    return outcome


def _after(calls: int, callback: Callable[P, None] | None) -> Callable[P, None] | None:
    """Return the callback without its first `calls` calls."""
    if callback is None:
        return None
    left = calls

    def called(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal left
        if left:
            left -= 1
        else:
            callback(*args, **kwargs)

    return called


def check_training(
    federation: Federation, strategy: Strategy[Any], population: Population, run: StudyRun, training: TrainingConfig
) -> None:
    """Raise ConfigError if a task asks for too little: less than the problem needs, or than can be done in part."""
    check = getattr(federation, "check_training", None)
    if check is not None:
        check(training)
    text = without_effect(strategy, population, run, training)
    if text:
        raise ConfigError(f"partial_work of the population {population.name!r} has no effect: {text}")


def without_effect(strategy: Strategy[Any], population: Population, run: StudyRun, training: TrainingConfig) -> str:
    """Return why no task can be done in part; "" if it can, or if none is to be."""
    partial, asked = population.partial_work, first_training(training, strategy, run)
    if partial is None or not partial.share or partial.can_do_less(asked):
        return ""
    what = "one step" if asked.max_steps else "one epoch"
    return f"a task asks for {what}. Set training.epochs (or max_steps) to 2 or more"


def check_order(population: Population, run: StudyRun) -> None:
    """Raise ConfigError if the seed is to draw an order that is recorded."""
    if run.ties is not None and population.order == "recorded":
        raise ConfigError(
            f'ties = "seed" contradicts the recorded order of the population {population.name!r}: leave one out'
        )


def goals(run: StudyRun) -> list[str]:
    """Return the metrics that may end the run."""
    return [goal.name for goal in (run.stop.target, run.stop.patience) if goal is not None]


def check_number(strategy: Strategy[Any], population: Population) -> None:
    """Raise ConfigError if a strategy's number of participants is not the population's.

    If it is lower, some participants never get a task. If it is higher, a sum is divided by too many.
    """
    number = getattr(strategy, "num_participants", None)
    if population.order == "recorded":
        return  # a participant whose tasks overlapped counts more than once
    if number is not None and number != population.participants:
        raise ConfigError(
            f"num_participants = {number}, and the population {population.name!r} has {population.participants}: "
            "they must be the same; populations of other sizes want a study of their own"
        )


def check_metrics(federation: Federation, needed: Sequence[str]) -> None:
    """Raise ConfigError if one of the `needed` metrics is never measured."""
    if not needed:
        return
    if not federation.evaluates:
        raise ConfigError(
            "nothing is measured, and so nothing can be tuned and no target can be reached: give the app "
            "load_test_data() (or evaluate(), beside build_trainer), or take tuning = false and no target"
        )
    measured = list(federation.evaluate(federation.initial))
    unknown = [name for name in needed if name not in {"", *measured}]
    if unknown:
        raise ConfigError(f"the metric {unknown[0]!r} is never measured, there are: {', '.join(measured)}")
