"""The doctor's look at what a new run's tasks move and make: the frozen part with its schedule, and distillations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedmq.config.file import FederationConfig
from fedmq.coordinator.service.startup import parts_of
from fedmq.coordinator.strategies.protocol import Distils, Strategy
from fedmq.schemas.parameters import Parameters
from fedmq.views.finding import Finding


def frozen(config: FederationConfig, strategy: Strategy[Any], first: Parameters, flags: Mapping[str, bool]) -> str:
    """Return which part of the first model stays at home, in words; "" if none does. `flags` are the app's.

    Raises AppError or ConfigError if these or the schedule of [training] unfreeze do not fit the model.
    """
    _, parts = parts_of(first, flags, strategy, config.training, config.downlink)
    if parts is None:
        return ""
    count, still = sum(a.size for a in first.values()), sum(a.size for a in parts.first.by_name.values())
    told = f"{still:,} of the model's {count:,} numbers do not move, and travel once"
    for one in parts.schedule:
        told += f"; {len(one.tensors)} of their {len(parts.first.by_name)} tensors move from version {one.version} on"
    return told


def distillation(strategy: Strategy[Any], *, able: bool) -> Iterator[Finding]:
    """Tell if the strategy distils versions and the app cannot (`able` is false)."""
    if isinstance(strategy, Distils) and not able:
        what = f"distillation: {strategy.name} asks for it, and the app has no distil(ensemble, start, seed)"
        yield Finding("warning", what, "give the app one, or every version is the plain mean")
