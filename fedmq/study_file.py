"""The file of a study: a grid of strategies, populations and seeds, in TOML.

name = "buffer-size"
seeds = 5

[problem]
name = "softmax"

[run]
concurrency = 50
stop = {max_updates = 2000}

[training]
learning_rate = 0.1

[[strategies]]
label = "FedBuff, K = 10"
strategy = {name = "fedbuff", buffer_size = 10}

[[populations]]
name = "phones"
participants = 500
examples = {name = "uniform", low = 20, high = 80}
compute = {example_s = {name = "constant", value = 0.1}, slowness = {name = "lognormal", median = 1, sigma = 0.7}}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from coordinator.settings import TargetMetric
from coordinator.strategies import AnyStrategy
from fedmq.config import read_toml
from fedmq.data import SAMPLE
from fedmq.mistakes import Mistake, explain
from schemas.errors import ConfigError
from schemas.messages import TrainingConfig
from studies.classification import Softmax
from studies.population import Population
from studies.quadratics import Quadratics
from studies.settings import StudyRun
from studies.study import Contender, Study
from studies.tuning import Tuning
from studies.value import Value

MNIST = "mnist"
"""In place of a data file: the sample that fedmq ships."""


class SoftmaxProblem(Softmax):
    """Softmax regression; without a data file on the MNIST sample."""

    data: str = MNIST


class StudyStrategy(Value):
    """A strategy of the grid."""

    label: Annotated[str, Field(min_length=1, max_length=80)]
    strategy: AnyStrategy
    training: TrainingConfig | None = None
    """In place of the study's, where a strategy is to be compared at its own best learning rate."""
    run: StudyRun | None = None
    """In place of the study's."""
    tune: dict[str, list[float]] | None = None
    """Parameter ("training.learning_rate", "strategy.staleness.a") -> values to be tried, in place of the default grid;
    an empty table leaves this strategy as it is."""


class StudyFile(Value):
    """A study's file, as it stands."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    seeds: Annotated[int, Field(ge=1, le=10_000)] | list[Annotated[int, Field(ge=0, lt=2**63)]] = 1
    """How many, from 0 up; or which."""
    out: str | None = None
    """The folder of the results, relative to the file; {name}-results without it."""
    target: TargetMetric | None = None
    """What the report counts the cost of reaching; without one the report chooses a value that all cells reached."""
    tuning: Tuning | Literal[False] = Tuning()
    """How each strategy is tuned before it is compared; false compares them as they stand here."""
    memory_limit_bytes: Annotated[int, Field(ge=1024**2)] | None = None
    """For all processes together; what the machine has free without it."""
    problem: Annotated[Quadratics | SoftmaxProblem, Field(discriminator="name")]
    run: StudyRun
    training: TrainingConfig = TrainingConfig()
    strategies: Annotated[list[StudyStrategy], Field(min_length=1)]
    populations: Annotated[list[Population], Field(min_length=1)]


def load_study(path: str | Path) -> tuple[Study, Path]:
    """Read and check a study's file: the study, and its results' folder. Raises ConfigError with all mistakes."""
    path = Path(path)
    tree = read_toml(path, "study", "give the path of one (examples/studies has some)")
    _find_runs(tree, path.resolve().parent)
    try:
        file = StudyFile.model_validate(tree)
    except ValidationError as e:
        raise ConfigError(_report(path, explain(e, tree, StudyFile.model_json_schema(), {}))) from None
    mistakes = _beyond_types(file)
    if mistakes:
        raise ConfigError(_report(path, mistakes))
    here = path.resolve().parent
    study = Study(
        name=file.name,
        problem=_found(file.problem, here),
        contenders=[Contender(s.label, s.strategy, s.training, s.run, s.tune) for s in file.strategies],
        populations=[_with_trace(p, here) for p in file.populations],
        run_settings=file.run,
        training=file.training,
        seeds=list(range(file.seeds)) if isinstance(file.seeds, int) else file.seeds,
        target=file.target,
        tuning=file.tuning or None,
        memory_limit_bytes=file.memory_limit_bytes,
    )
    return study, here / (file.out or f"{file.name}-results")


def _beyond_types(file: StudyFile) -> list[Mistake]:
    """What pydantic's types do not say."""
    found = []
    runs = [("run", file.run)] + [(f"strategies.{i}.run", s.run) for i, s in enumerate(file.strategies, 1) if s.run]
    for place, run in runs:
        if not any(value is not None for value in run.stop.model_dump().values()):
            allowed = "one or more of max_versions, max_updates, max_time_s, target, patience"
            found.append(Mistake(f"{place}.stop", f"the run would never end; set {allowed}"))
    for i, s in enumerate(file.strategies, 1):
        if (s.training or file.training).learning_rate is None:
            text = f"missing, expected a number above 0: {file.problem.name} has no learning rate of its own"
            found.append(
                Mistake(f"strategies.{i}.training.learning_rate" if s.training else "training.learning_rate", text)
            )
    return list(dict.fromkeys(found))


def _found(problem: Quadratics | SoftmaxProblem, here: Path) -> Quadratics | Softmax:
    if isinstance(problem, Quadratics):
        return problem
    data = SAMPLE if problem.data == MNIST else here / Path(problem.data).expanduser()
    return Softmax(data=str(data), deal_by=problem.deal_by)


def _with_trace(population: Population, here: Path) -> Population:
    if population.trace is None:
        return population
    return population.model_copy(update={"trace": str(here / Path(population.trace).expanduser())})


def _find_runs(tree: dict[str, Any], here: Path) -> None:
    """Make the paths of recorded runs absolute: a population is as large as its run."""
    populations = tree.get("populations")
    for table in populations if isinstance(populations, list) else []:
        if isinstance(table, dict) and isinstance(table.get("run"), str):
            table["run"] = str(here / Path(table["run"]).expanduser())


def _report(path: Path, mistakes: Sequence[Mistake]) -> str:
    count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return "\n".join([f"{path} has {count}:", *(f"  {m.place}: {m.text}" for m in mistakes)])


__all__ = ["StudyFile", "load_study"]
