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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from fedmq.config.custom_strategy import CustomStrategy
from fedmq.config.file import read_toml
from fedmq.config.mistakes import Mistake, explain
from fedmq.coordinator.settings import DownlinkSettings, TargetMetric, TrainingSettings, UplinkSettings, of_table
from fedmq.coordinator.strategies import BuiltIn
from fedmq.demo.data import SAMPLE, full_mnist
from fedmq.schemas.errors import ConfigError
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.population import Population
from fedmq.studies.problems.classification import Softmax
from fedmq.studies.problems.problem import Problem
from fedmq.studies.problems.quadratics import Quadratics
from fedmq.studies.problems.synthetic import Synthetic
from fedmq.studies.study import Contender, Study
from fedmq.studies.sweep.tuning import Tuning
from fedmq.studies.value import Value
from fedmq.study.app_problem import AppProblem
from fedmq.study.checks import Parts, all_mistakes
from fedmq.study.strategy_file import StrategyFromFile

MNIST, FULL_MNIST = "mnist", "mnist-full"
"""Names in place of a data file: the sample that fedmq ships, and all 70,000 images from Keras's cache."""


class SoftmaxProblem(Softmax):
    """Softmax regression, by default on the MNIST sample."""

    data: str = MNIST


Seeds = Annotated[int, Field(ge=1, le=10_000)] | list[Annotated[int, Field(ge=0, lt=2**63)]]
AnyProblem = Quadratics | SoftmaxProblem | Synthetic | AppProblem


class StudyStrategy(Value):
    """A strategy of the grid."""

    label: Annotated[str, Field(min_length=1, max_length=80)]
    strategy: Annotated[BuiltIn | CustomStrategy, Field(discriminator="name")]
    training: TrainingSettings | None = None
    """Training in place of the study's, to compare a strategy at its own best learning rate."""
    run: StudyRun | None = None
    """Run in place of the study's."""
    uplink: UplinkSettings | None = None
    """Codec of its updates in place of the study's."""
    downlink: DownlinkSettings | None = None
    """Form of the model in its tasks in place of the study's."""
    tune: dict[str, list[float]] | None = None
    """Parameter ("training.learning_rate", "strategy.staleness.a") -> values to try, in place of the default grid. An
    empty table leaves this strategy as it is."""


class StudyFile(Value):
    """The contents of a study's file, unchanged."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    seeds: Seeds = 1
    """Number of seeds, from 0 up; or a list of them."""
    out: str | None = None
    """Folder of the results, relative to the file. It is {name}-results if this is not given."""
    target: TargetMetric | None = None
    """Target to which the report counts the cost. Without one the report chooses a value that all cells hold."""
    tuning: Tuning = Tuning()
    """Way to tune each strategy before it is compared. `false` compares the strategies as they are here."""
    memory_limit_bytes: Annotated[int, Field(ge=1024**2)] | None = None
    """Memory for all processes together. Without it they may take what the machine has free."""
    problem: Annotated[AnyProblem, Field(discriminator="name")]
    run: StudyRun
    training: TrainingSettings = TrainingSettings()
    uplink: UplinkSettings | None = None
    """Codec of the updates, as in a federation file."""
    downlink: DownlinkSettings | None = None
    """Form of the model in tasks, as in a federation file."""
    strategies: Annotated[list[StudyStrategy], Field(min_length=1)]
    populations: Annotated[list[Population], Field(min_length=1)]


def load_study(path: str | Path, populations: Sequence[Mapping[str, Any]] = ()) -> tuple[Study, Path]:
    """Read and check a study's file, and return the study and its results' folder.

    `populations` are tables in place of the file's own. Raises ConfigError with all mistakes.
    """
    path = Path(path)
    tree = read_toml(path, "study", "give the path of one (examples/studies has some)")
    if populations:
        tree["populations"] = [dict(table) for table in populations]
    here = path.resolve().parent
    _find_runs(tree, here)
    _find_measurements([tree.get("populations"), tree.get("problem")], here)
    mistakes: list[Mistake] = []
    file: StudyFile | None = None
    try:
        file = StudyFile.model_validate(tree)
    except ValidationError as e:
        mistakes += explain(e, tree, StudyFile.model_json_schema(), {})
    parts = _parts(tree, here)
    mistakes += all_mistakes(parts)
    if mistakes or file is None:
        raise ConfigError(_report(path, list(dict.fromkeys(mistakes))))
    study = Study(
        name=file.name,
        problem=_found(file.problem, here),
        contenders=list(parts.contenders.values()),
        populations=list(parts.populations.values()),
        run_settings=parts.run or file.run,
        training=of_table(file.training),
        seeds=parts.seeds or [0],
        target=file.target,
        tuning=file.tuning,
        memory_limit_bytes=file.memory_limit_bytes,
        source="file",
    )
    return study, here / (file.out or f"{file.name}-results")


def _parts(tree: Mapping[str, Any], here: Path) -> Parts:
    """Return the parts of the file that are right by themselves, so that one mistake does not hide others."""
    problem = _valid(Annotated[AnyProblem, Field(discriminator="name")], tree.get("problem"))
    strategies = _rows(StudyStrategy, tree.get("strategies"))
    populations = _rows(Population, tree.get("populations"))
    seeds = _valid(Seeds, tree.get("seeds", 1))
    codecs = Codecs(_valid(UplinkSettings | None, tree.get("uplink")), _valid(_Downlink, tree.get("downlink")))
    run = _with_codecs(_valid(StudyRun, tree.get("run")), codecs, here)
    return Parts(
        problem=None if problem is None else _found(problem, here),
        run=run,
        training=None if (table := _valid(TrainingSettings, tree.get("training", {}))) is None else of_table(table),
        contenders={
            i: Contender(
                _label(s),
                _strategy(s.strategy, here),
                None if s.training is None else of_table(s.training),
                _own_run(s, run, codecs, here),
                s.tune,
            )
            for i, s in strategies.items()
        },
        populations={i: _with_trace(p, here) for i, p in populations.items()},
        seeds=list(range(seeds)) if isinstance(seeds, int) else seeds,
        tuning=_valid(Tuning, tree.get("tuning", {})),
        target=_valid(TargetMetric | None, tree.get("target")),
    )


def _label(strategy: StudyStrategy) -> str:
    """Return the strategy's label, which names a codec of its own too."""
    codec = "none" if strategy.uplink is None else strategy.uplink.codec
    return strategy.label if codec == "none" or codec in strategy.label.lower() else f"{strategy.label}, {codec}"


class Codecs(NamedTuple):
    """The codecs of a table in the file."""

    uplink: UplinkSettings | None
    downlink: DownlinkSettings | None


_Downlink = DownlinkSettings | None


def _own_run(strategy: StudyStrategy, run: StudyRun | None, codecs: Codecs, here: Path) -> StudyRun | None:
    """Return a strategy's own run; None if the study's is its own too."""
    if strategy.run is None and strategy.uplink is None and strategy.downlink is None:
        return None
    own = Codecs(strategy.uplink or codecs.uplink, strategy.downlink or codecs.downlink)
    return _with_codecs(strategy.run or run, own, here)


def _with_codecs(run: StudyRun | None, codecs: Codecs, here: Path) -> StudyRun | None:
    """Return the run with these codecs, and with a path of the codec's file that this process can open."""
    if run is None:
        return None
    uplink = codecs.uplink or run.uplink
    if uplink is not None and uplink.file is not None:
        uplink = uplink.model_copy(update={"file": str(here / Path(uplink.file).expanduser())})
    return run.model_copy(update={"uplink": uplink, "downlink": codecs.downlink or run.downlink})


def _valid(kind: Any, given: object) -> Any:
    """Return a value as this kind; None if it is not valid."""
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError:
        return None


def _rows(kind: Any, given: object) -> dict[int, Any]:
    """Return the valid rows of a list, by their numbers from 1."""
    rows = enumerate(given, 1) if isinstance(given, list) else ()
    return {i: found for i, row in rows if (found := _valid(kind, row)) is not None}


def _strategy(strategy: BuiltIn | CustomStrategy, here: Path) -> Any:
    if not isinstance(strategy, CustomStrategy):
        return strategy
    return StrategyFromFile(str(here / Path(strategy.file).expanduser()), strategy.options)


def _found(problem: AnyProblem, here: Path) -> Problem:
    """Return the problem with paths that this process can open."""
    if isinstance(problem, AppProblem):
        data = None if problem.data is None else _data_file(problem.data, here)
        return problem.model_copy(update={"app": str((here / Path(problem.app).expanduser()).resolve()), "data": data})
    if isinstance(problem, SoftmaxProblem):
        given = dict(problem) | {"data": _data_file(problem.data, here)}
        return Softmax(**given)
    return problem


def _data_file(data: str, here: Path) -> str:
    if data == MNIST:
        return str(SAMPLE)
    return str(full_mnist() if data == FULL_MNIST else here / Path(data).expanduser())


def _with_trace(population: Population, here: Path) -> Population:
    found = tuple(str(here / Path(path).expanduser()) for path in population.traces)
    return population.model_copy(update={"trace": found[0] if len(found) == 1 else found or None})


def _find_runs(tree: dict[str, Any], here: Path) -> None:
    """Make the paths of recorded runs absolute, because a population reads its size from its run."""
    populations = tree.get("populations")
    for table in populations if isinstance(populations, list) else []:
        if isinstance(table, dict) and isinstance(table.get("run"), str):
            table["run"] = str(here / Path(table["run"]).expanduser())


def _find_measurements(part: object, here: Path) -> None:
    """Make the paths of empirical laws absolute, at any depth, because a law reads its file."""
    if isinstance(part, list):
        for one in part:
            _find_measurements(one, here)
    elif isinstance(part, dict):
        if part.get("name") == "empirical" and isinstance(part.get("file"), str):
            part["file"] = str(here / Path(part["file"]).expanduser())
        for one in part.values():
            _find_measurements(one, here)


def _report(path: Path, mistakes: Sequence[Mistake]) -> str:
    count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return "\n".join([f"{path} has {count}:", *(f"  {m.place}: {m.text}" for m in mistakes)])


__all__ = ["StudyFile", "load_study"]
