"""A strategy from the user's own Python file.

    [strategy]
    name = "custom"
    file = "strategy.py"            # has build_strategy(**options), which returns a frozen dataclass (fedmq.Strategy)
    options = { buffer_size = 5 }

It is a file of its own, not the app, because the coordinator loads it and the app loads TensorFlow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from fedmq.config.mistakes import near
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
    strategy = _call(configured.file, configured.options)
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


def _call(file: str, options: Mapping[str, Any]) -> Any:
    module_name = f"fedmq_custom_strategy_{hashlib.sha256(os.path.abspath(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise AppError(f"The strategy file {file} is not a Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        raise AppError(
            f"There is no strategy file {file}. strategy.file is relative to the federation file that names it."
        ) from None
    except (Exception, SystemExit) as e:
        raise AppError(f"The strategy file {file} fails when it is loaded: {type(e).__name__}: {e}") from e
    if not callable(getattr(module, "build_strategy", None)):
        there = ", ".join(name for name in vars(module) if not name.startswith("_"))
        raise AppError(f"{file} has no function build_strategy(**options). It has {there}.")
    try:
        return module.build_strategy(**options)
    except (Exception, SystemExit) as e:
        said = str(e)
        if isinstance(e, ValidationError):  # its text has many lines
            said = "; ".join(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in e.errors())
        said = f"build_strategy in {file} failed with {dict(options)}: {type(e).__name__}: {said}"
        raise AppError(said + _allowed(module, options, str(e))) from e


def _allowed(module: ModuleType, options: Mapping[str, Any], said: str) -> str:
    """Return a text on the first unknown option and the allowed ones; an empty one if no option is unknown.

    `build_strategy(**options)` takes every name, so the class that refused one is asked too: the error names it.
    """
    named = [value for name, value in vars(module).items() if re.search(rf"\b{name}\b", said)]
    for names in map(_names, (module.build_strategy, *(value for value in named if isinstance(value, type)))):
        for option in options:
            if names and option not in names:
                hint = near(option, names)
                return f". strategy.options has an unknown key {option}, allowed: {', '.join(names)}{hint}"
    return ""


def _names(function: Any) -> list[str]:
    """Return the names of a dataclass's or a function's parameters; an empty list if it takes any name."""
    if isinstance(function, type):  # pydantic's signature lacks the fields of a plain dataclass that extends one
        return (
            sorted(f.name for f in dataclasses.fields(function) if f.init) if dataclasses.is_dataclass(function) else []
        )
    parameters = inspect.signature(function).parameters.values()
    return [] if any(p.kind is p.VAR_KEYWORD for p in parameters) else sorted(p.name for p in parameters)
