"""What a strategy needs of a run's other settings: refused at the start, where it is missing."""

from __future__ import annotations

from typing import Any

from coordinator.settings import RunSettings
from coordinator.strategies.base import Strategy
from schemas.errors import ConfigError
from schemas.messages import TrainingConfig
from schemas.methods import METHODS


def check_requirements(
    settings: RunSettings, strategy: Strategy[Any], training: TrainingConfig, *, evaluates: bool
) -> None:
    """Raise ConfigError, saying what to set."""
    if not evaluates and (settings.stop.target or settings.stop.patience):
        raise ConfigError(
            "stop.target and stop.patience need a central evaluation, and there is none: "
            "give the app file a load_test_data(), or stop by max_versions, max_updates or max_time_s"
        )
    if METHODS[strategy.reply].corrected and training.learning_rate is None:
        raise ConfigError(
            f"the strategy {strategy.name!r} needs training.learning_rate, because participants divide by it to tell "
            "their mean gradient: set it"
        )
    if strategy.reply == "change" and settings.client_weights != "equal":
        raise ConfigError(
            f"the strategy {strategy.name!r} with its memory on the participants knows no client weights: set "
            f"client_weights = 'equal' (it is {settings.client_weights!r}), or keep the memory on the coordinator"
        )
