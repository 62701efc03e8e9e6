"""A strategy of the user's own, from a Python file beside the federation file.

    [strategy]
    name = "custom"
    file = "strategy.py"            # has build_strategy(**options) -> a frozen dataclass
    (coordinator.strategies.protocol) options = { buffer_size = 5 }

It is a file of its own, not the app, because the coordinator loads it and the app loads TensorFlow.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies import AnyStrategy
from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.schemas.errors import AppError

NEEDED = ("name", "reply", "cohort", "init", "restore", "accumulate", "ready", "weights", "aggregate")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CustomStrategy:
    """Where to find it."""

    file: str
    options: dict[str, Any] = Field(default_factory=dict)
    name: Literal["custom"] = "custom"


def build(configured: AnyStrategy | CustomStrategy) -> Strategy[Any]:
    """The strategy itself. Raises AppError where the file or what it builds is not one."""
    if not isinstance(configured, CustomStrategy):
        return configured
    strategy = _call(configured.file, configured.options)
    missing = [name for name in NEEDED if not hasattr(strategy, name)]
    if missing:
        raise AppError(
            f"build_strategy in {configured.file} gave {type(strategy).__name__}, which lacks {', '.join(missing)}: "
            "extend fedmq.FedBuff, fedmq.FedAsync or fedmq.FedAvg, or write all of fedmq.Strategy"
        )
    if not dataclasses.is_dataclass(strategy) or isinstance(strategy, type):
        raise AppError(
            f"build_strategy in {configured.file} gave {type(strategy).__name__}, expected a frozen dataclass: its "
            "hyper-parameters go into the ledger"
        )
    return strategy  # type: ignore[return-value]


def _call(file: str, options: Mapping[str, Any]) -> Any:
    spec = importlib.util.spec_from_file_location("fedmq_custom_strategy", file)
    if spec is None or spec.loader is None:
        raise AppError(f"The strategy file {file} is not a Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        raise AppError(
            f"There is no strategy file {file}: strategy.file names it, relative to the file that it stands in."
        ) from None
    except Exception as e:
        raise AppError(f"The strategy file {file} fails when it is loaded: {type(e).__name__}: {e}") from e
    if not callable(getattr(module, "build_strategy", None)):
        there = ", ".join(name for name in vars(module) if not name.startswith("_"))
        raise AppError(f"{file} has no function build_strategy(**options). It has {there}.")
    try:
        return module.build_strategy(**options)
    except Exception as e:
        raise AppError(f"build_strategy in {file} failed with {dict(options)}: {type(e).__name__}: {e}") from e
