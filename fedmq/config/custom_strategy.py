"""A strategy from the user's own Python file.

[strategy]
name = "custom"
file = "strategy.py"            # has build_strategy(**options), which returns a frozen dataclass (fedmq.Strategy)
options = { buffer_size = 5 }
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedmq.coordinator.own_file import call
from fedmq.schemas.errors import AppError

if TYPE_CHECKING:  # numpy, and all strategies
    from fedmq.coordinator.strategies import AnyStrategy
    from fedmq.coordinator.strategies.protocol import Strategy

NEEDED = ("name", "reply", "cohort", "init", "restore", "accumulate", "ready", "weights", "aggregate")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CustomStrategy:
    """The [strategy] table of a user's own strategy."""

    file: str
    options: dict[str, Any] = Field(default_factory=dict)
    name: Literal["custom"] = "custom"


def build(configured: AnyStrategy | CustomStrategy) -> Strategy[Any]:
    """Return the strategy itself. Raises AppError if the file, or what it builds, is not one."""
    if not isinstance(configured, CustomStrategy):
        return configured
    strategy = call(configured.file, configured.options, "strategy", "strategy")
    missing = [name for name in NEEDED if not hasattr(strategy, name)]
    if missing:
        raise AppError(
            f"build_strategy in {configured.file} gave {type(strategy).__name__}, which lacks {', '.join(missing)}: "
            "extend fedmq.WeightedMean or another strategy of fedmq, or write all of fedmq.Strategy"
        )
    if not dataclasses.is_dataclass(strategy) or isinstance(strategy, type):
        raise AppError(
            f"build_strategy in {configured.file} gave {type(strategy).__name__}, expected a frozen dataclass: its "
            "hyper-parameters go into the ledger"
        )
    return strategy  # type: ignore[return-value]
