"""`fedmq study --from-run RUN`: other strategies on the participants of a recorded run.

A study's file may say the rest; the run then takes the place of its populations. Without one the run's federation file
says it. Its app is the problem, and each participant has its own data there. Its settings are the study's, and its
strategy is compared with a few others. They are compared as they are; write a study's file to tune them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fedmq.config.custom_strategy import CustomStrategy
from fedmq.config.file import FederationConfig
from fedmq.coordinator.settings import StopSettings, of_table
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import FedAsync, FedAvg, FedBuff
from fedmq.schemas.errors import ConfigError
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.population import Population
from fedmq.studies.study import Contender, Study
from fedmq.study.app_problem import AppProblem
from fedmq.study.strategy_file import StrategyFromFile

Order = Literal["drawn", "recorded"]


def population_table(run_dir: Path, order: Order) -> dict[str, Any]:
    """Return the [[populations]] table of a run."""
    with LedgerReader(RunFolder(run_dir).ledger) as ledger:
        run_id = ledger.run().run_id
    name = re.sub(r"[^A-Za-z0-9._-]", "-", run_id)[:64]
    return {"name": name, "run": str(run_dir.resolve()), "order": order}


def study_of_run(run_dir: Path, config: FederationConfig, order: Order) -> tuple[Study, Path]:
    """Return the study, and its results' folder beside the run. Raises ConfigError if the file is of another run."""
    population = Population.model_validate(population_table(run_dir, order))
    with LedgerReader(RunFolder(run_dir).ledger) as ledger:
        run, accepted = ledger.run(), ledger.accepted()
    if config.run.run_id != run.run_id:
        raise ConfigError(
            f"the run in {run_dir} is {run.run_id!r}, and the federation file's run_id is {config.run.run_id!r}: "
            "name the file that the run was started with"
        )
    study = Study(
        name=f"{population.name}-what-if",
        problem=AppProblem(app=config.app),
        contenders=_contenders(config, population.participants),
        populations=[population],
        run_settings=_study_run(config, run.settings["run"], accepted),
        training=of_table(config.training),
        tuning=None,
        source="run",
    )
    return study, run_dir.resolve().parent / study.name


def _study_run(config: FederationConfig, settings: Mapping[str, Any], accepted: int) -> StudyRun:
    """Return the run's settings, with an end after as many updates as it accepted."""
    return StudyRun(
        stop=StopSettings(max_updates=accepted),
        concurrency=config.run.concurrency,
        selection=config.run.selection,
        client_weights=settings["client_weights"],
        max_staleness=settings["max_staleness"],
        steps=config.run.steps,
        lease_s=config.run.lease_s,
    )


def _contenders(config: FederationConfig, participants: int) -> list[Contender]:
    own = config.strategy
    mine: Any = StrategyFromFile(own.file, own.options) if isinstance(own, CustomStrategy) else own
    half = max(1, participants // 2)
    others: dict[str, Any] = {
        "FedAsync": FedAsync(),
        f"FedBuff, K = {half}": FedBuff(buffer_size=half),
        f"FedAvg of {half}": FedAvg(cohort_size=half, min_updates=1),
    }
    return [
        Contender(f"as it ran: {mine.name}", mine),
        *(Contender(label, strategy) for label, strategy in others.items() if strategy != mine),
    ]
