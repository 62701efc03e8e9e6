"""A study: every strategy, tuned, on every population from every seed. Each such cell is one run in virtual time.

Rules
 1. Everything that decides a cell's result identifies it: strategy, population, problem, run, training, seed, and the
    contents of the files that these name. A digest of that is the name of the cell's file. A cell whose file is there
    is not run again. After a change of a setting only the cells that it touches are run.
 2. Cells run in processes of their own, as many as there are cores. A cell's bytes do not depend on where it ran.
 3. A cell's file is written whole or not at all. Ctrl-C stops at once. Finished cells stay, and the next run goes on.
 4. A cell that diverges, or can come to no end, is a result with its reason, and the grid goes on. A mistake in the
    input, a missing package, or a need for more memory than there may be ends the study before anything is trained.
 5. Each strategy is tuned before it is compared (studies.sweep.tuning). Its trials are cells like any others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmq.coordinator.settings import TargetMetric
from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.local.extras import check_installed
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.population import Population
from fedmq.studies.problems.problem import Problem
from fedmq.studies.report.advice import Source
from fedmq.studies.report.tables import write_tables
from fedmq.studies.sweep.cell import Cell, CellResult
from fedmq.studies.sweep.grids import changed, value_at, with_values
from fedmq.studies.sweep.machine_limits import cores, free_bytes
from fedmq.studies.sweep.pool import Arm, Batch, CellPool, OnCell, OnProgress, prepare_folder, single_threaded_children
from fedmq.studies.sweep.tuning import Tuned, Tuning, tune


@dataclass(frozen=True)
class Contender:
    """A strategy with its name in the tables, and its own training and run if it has any."""

    label: str
    strategy: Strategy[Any]
    training: TrainingConfig | None = None
    run: StudyRun | None = None
    tune: Mapping[str, Sequence[float]] | None = None
    """Parameter -> values to try, in place of the study's default grid. Parameters are named like
    "training.learning_rate", "strategy.server_learning_rate", "strategy.staleness.a". An empty mapping leaves this
    strategy untuned."""


@dataclass(frozen=True)
class Study:
    """A grid of strategies, populations and seeds on one problem.

    It has values only, so it can be pickled, printed and compared. A script that runs one needs
    `if __name__ == "__main__":`, as all of Python's process pools do.

    study = Study("buffer", Quadratics(), [Contender("K=10", FedBuff(buffer_size=10))], [Population(participants=100)],
                  StudyRun(stop=StopSettings(max_updates=1000)), TrainingConfig(learning_rate=0.1), seeds=range(5))
    results = study.run("results/buffer")
    """

    name: str
    problem: Problem
    contenders: Sequence[Contender]
    populations: Sequence[Population]
    run_settings: StudyRun
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seeds: Sequence[int] = (0,)
    target: TargetMetric | None = None
    """Target to which the report counts the cost. Without one it is a value that all finished cells hold at their
    end and none had at the start."""
    tuning: Tuning | None = field(default_factory=Tuning)
    """Way to tune the strategies. With None, or a tuning that is off, they are compared as they are, and the report
    says so."""
    memory_limit_bytes: int | None = None
    """Memory for all processes together. Without it they may take what the machine has free."""

    source: Source = "code"
    """Place in which the study is written. The report's advice names what is there to be changed."""

    def __post_init__(self) -> None:
        for what, names in (
            ("strategies", [c.label for c in self.contenders]),
            ("populations", [p.name for p in self.populations]),
            ("seeds", [str(seed) for seed in self.seeds]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if not names or twice:
                said = f"{twice[0]!r} twice" if twice else "none"
                raise ConfigError(f"the study {self.name!r} has {said} among its {what}, expected distinct ones")
        contenders = dict(enumerate(self.contenders, 1))
        found = tuning_mistakes(self.tuning, contenders, self.populations, self.seeds)
        mistakes = [f"{place}: {text}" for place, text in found]
        if mistakes:
            raise ConfigError(f"the study {self.name!r} cannot be tuned: {'; '.join(mistakes)}")

    def settings_text(self) -> str:
        """Return everything that decides the results, for the report."""
        parts = [
            f"problem     {self.problem!r}",
            f"run         {self.run_settings!r}",
            f"training    {self.training!r}",
            f"tuning      {self.tuning!r}",
        ]
        parts += [f"population  {p!r}" for p in self.populations]
        parts += [f"strategy    {c!r}" for c in self.contenders]
        return "\n".join([*parts, f"seeds       {list(self.seeds)}"])

    def cells(self) -> list[Cell]:
        """Return the cells of the comparison as they are before tuning, in the order of the tables.

        The order is by population, then strategy, then seed.
        """
        return [
            self._cell(contender, population, seed)
            for population in self.populations
            for contender in self.contenders
            for seed in self.seeds
        ]

    def _cell(self, contender: Contender, population: Population, seed: int) -> Cell:
        return Cell(
            study=self.name,
            label=contender.label,
            strategy=contender.strategy,
            population=population,
            problem=self.problem,
            run=contender.run or self.run_settings,
            training=contender.training or self.training,
            seed=seed,
        )

    def run(
        self,
        folder: str | Path,
        *,
        workers: int | None = None,
        on_cell: OnCell | None = None,
        on_progress: OnProgress | None = None,
        on_tuned: Callable[[Tuned], None] | None = None,
    ) -> list[CellResult]:
        """Run the cells that are missing, and write tables and report.html into `folder`.

        workers       number of processes; all cores if None
        on_cell       called for each cell that was run (studies.sweep.pool)
        on_progress   called a few times a second (studies.sweep.pool)
        on_tuned      called at the end, with the result of the tuning of each strategy

        Ctrl-C leaves the folder in order. Raises MissingExtra without the packages of the report, ConfigError for a
        mistake or for too little memory, and FedmqError if a process ends or a user's code fails.
        """
        check_installed("matplotlib", "a study's report")
        check_installed("pyarrow", "a study's Parquet tables")
        folder = Path(folder)
        prepare_folder(folder)
        tuned: dict[tuple[str, str], Tuned] = {}
        found: dict[tuple[str, str], list[CellResult]] = {}
        arms = [arm for contender in self.contenders for arm in self._arms(contender, tuned, found)]
        limit = free_bytes() if self.memory_limit_bytes is None else self.memory_limit_bytes
        with single_threaded_children(), CellPool(folder, workers or cores(), limit) as pool:
            pool.drive(arms, on_cell, on_progress)
        order = [(p.name, c.label) for p in self.populations for c in self.contenders]
        results = [result for key in order for result in found[key]]
        tunings = [tuned[key] for key in order if key in tuned]
        write_tables(folder, results, tunings, target=self.target)
        if on_tuned is not None:
            for one in tunings:
                on_tuned(one)
        from fedmq.studies.report.page import (
            write_report,
        )  # loads matplotlib, which cells do not need

        write_report(
            folder / "report.html", self.name, results, self.settings_text(), target=self.target, tunings=tunings,
            source=self.source,
        )  # fmt: skip
        return results

    def _arms(
        self, contender: Contender, tuned: dict[tuple[str, str], Tuned], found: dict[tuple[str, str], list[CellResult]]
    ) -> list[Arm]:
        """Return an arm for each population, or one arm for all of them if they share their tuning."""
        shared = None if self.tuning is None else self.tuning.population
        first = next((p for p in self.populations if p.name == shared), None)
        groups = [(p, [p]) for p in self.populations] if first is None else [(first, list(self.populations))]
        return [self._arm(contender, on, populations, tuned, found) for on, populations in groups]

    def _arm(
        self,
        contender: Contender,
        on: Population,
        populations: Sequence[Population],
        tuned: dict[tuple[str, str], Tuned],
        found: dict[tuple[str, str], list[CellResult]],
    ) -> Arm:
        values: Mapping[str, float] = {}
        to_come = len(populations) * len(self.seeds)
        judged_by = () if self.target is None else (self.target.name,)
        if self.tuning is not None and not self.tuning.off and contender.tune != {}:
            cell = self._cell(contender, on, 0)
            done = yield from tune(cell, self.tuning, contender.tune, later=to_come, judged_by=judged_by)
            tuned[on.name, contender.label] = done
            values = done.best.values if done.best is not None else {}
        cells = [with_values(self._cell(contender, p, seed), values) for p in populations for seed in self.seeds]
        assert all(cell is not None for cell in cells), values
        got = yield Batch([cell for cell in cells if cell is not None], judged_by=judged_by)
        for result in got:
            found.setdefault((result.population, contender.label), []).append(result)


def tuning_mistakes(
    tuning: Tuning | None, contenders: Mapping[int, Contender], populations: Sequence[Population], seeds: Sequence[int]
) -> list[tuple[str, str]]:
    """Return the mistakes in a tuning, as (place in a study's file, reason).

    `contenders` are keyed by their numbers.
    """
    found = []
    if tuning is not None and not tuning.off:
        twice = sorted({seed for seed in tuning.seeds if tuning.seeds.count(seed) > 1})
        if twice:
            found.append(("tuning.seeds", f"got {twice[0]} twice, expected different numbers"))
        both = sorted(set(tuning.seeds) & set(seeds))
        if both:
            found.append(("tuning.seeds", f"got {both[0]}, which the study compares on: take seeds of its own"))
        names = [p.name for p in populations]
        if tuning.population is not None and tuning.population not in names:
            found.append(("tuning.population", f"got {tuning.population!r}, allowed: {', '.join(names)}"))
    for i, contender in contenders.items():
        training = contender.training or TrainingConfig()
        for path, values in (contender.tune or {}).items():
            text = _cannot_be_tuned(contender.strategy, training, path, values)
            if text:
                found.append((f"strategies.{i}.tune.{path}", text))
    return found


def _cannot_be_tuned(strategy: Strategy[Any], training: TrainingConfig, path: str, values: Sequence[float]) -> str:
    """Return why this parameter cannot be tuned; "" if it can."""
    try:
        now = value_at(strategy, training, path)
    except (AttributeError, KeyError):
        return "there is no such parameter: give training.KEY or strategy.KEY, as in the strategy's table"
    if isinstance(now, bool) or not isinstance(now, int | float | None):
        return f"it is {now!r}, which is not a number that can be tuned"
    if not values:
        return "got an empty list, expected values to try"
    refused = [v for v in values if changed(strategy, training, {path: v}) is None]
    return f"got {refused[0]:g}, which is refused" if refused else ""


__all__ = ["Contender", "Study", "tuning_mistakes"]
