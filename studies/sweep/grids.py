"""What of a strategy can be tuned, and the grids of values that are tried: half-decades that grow where the best one
stands at an edge."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from pydantic import ValidationError

from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.schemas.errors import InputError
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.sweep.cell import Cell

Point = tuple[float, ...]
"""A value for each axis of a grid."""
LOCAL = "training.learning_rate"
SERVER_FIELDS = ("alpha", "server_learning_rate", "learning_rate")
"""What the server's step is called, in the order in which a strategy is searched for it."""


@dataclass
class Axis:
    """The values of one parameter; `base` and exponents of √10 for a grid that may grow."""

    path: str
    values: list[float]
    base: float | None = None
    lowest: int = -1
    highest: int = 1

    def grow(self, best: float) -> list[float]:
        """The values beyond the edge at which the best one stands; none where there is no edge, or no more room."""
        if self.base is None:
            return []
        found = []
        if best == min(self.values):
            self.lowest -= 1
            found.append(_rounded(self.base * 10 ** (self.lowest / 2)))
        if best == max(self.values) and not (self.path.endswith(".alpha") and best >= 1):
            self.highest += 1
            found.append(_capped(self.path, _rounded(self.base * 10 ** (self.highest / 2))))
        new = [v for v in found if v not in self.values]
        self.values += new
        return new

    def at_edge(self, value: float) -> bool:
        """Whether a better value may lie beyond this one."""
        if len(self.values) < 2 or (self.path.endswith(".alpha") and value >= 1):
            return False
        return value in (min(self.values), max(self.values))


class Grid:
    """All combinations of its axes' values that a cell accepts, as cells."""

    def __init__(self, cell: Cell, axes: Sequence[Axis]) -> None:
        self.axes = axes
        self._cell = cell
        self._seen: set[Point] = set()

    def new(self) -> Iterator[tuple[Point, Cell]]:
        """Those that were not given out yet."""
        for point in itertools.product(*(axis.values for axis in self.axes)) if self.axes else ():
            if point in self._seen:
                continue
            self._seen.add(point)
            made = with_values(self._cell, self.named(point))
            if made is not None:
                yield point, made

    def grow(self, best: Point) -> bool:
        """Whether there are new values, next to where the best point stands at an edge."""
        grown = [axis.grow(value) for axis, value in zip(self.axes, best, strict=True)]
        return any(grown)

    def named(self, point: Point) -> dict[str, float]:
        """Parameter -> value."""
        return {axis.path: value for axis, value in zip(self.axes, point, strict=True)}


def axes_of(
    cell: Cell,
    given: Mapping[str, Sequence[float]] | None,
    learning_rate: Sequence[float] | None,
    server_step: Sequence[float] | None,
) -> tuple[list[Axis], list[str]]:
    """What is tuned of a cell, and what could be and is not, in words. `given`: parameter -> values, and nothing else;
    otherwise the two step sizes, at these values or half-decades around the cell's own."""
    if given is not None:
        return [Axis(path, list(dict.fromkeys(values))) for path, values in given.items()], []
    axes, untuned = [], []
    rate = cell.training.learning_rate
    if learning_rate is not None:
        axes.append(Axis(LOCAL, list(dict.fromkeys(learning_rate))))
    elif rate is not None:
        axes.append(_around(LOCAL, rate))
    else:
        untuned.append("the participants' learning rate (the app's own: give training.learning_rate to have it tuned)")
    path = server_step_of(cell.strategy)
    if path is not None and server_step is not None:
        axes.append(Axis(path, list(dict.fromkeys(_capped(path, v) for v in server_step))))
    elif path is not None:
        axes.append(_around(path, float(value_at(cell.strategy, cell.training, path))))
    return axes, untuned


def with_values(cell: Cell, values: Mapping[str, float]) -> Cell | None:
    """The cell with these parameters (`training.x`, `strategy.x.y`); None where they are refused."""
    found = changed(cell.strategy, cell.training, values)
    return None if found is None else replace(cell, strategy=found[0], training=found[1])


def changed(
    strategy: Strategy[Any], training: TrainingConfig, values: Mapping[str, float]
) -> tuple[Strategy[Any], TrainingConfig] | None:
    """Both with these parameters; None where they are refused."""
    try:
        for path, value in values.items():
            where, _, rest = path.partition(".")
            if where == "training":
                training = TrainingConfig(**{**training.model_dump(), rest: _as_kind(getattr(training, rest), value)})
            else:
                strategy = _replaced(strategy, rest.split("."), value)
    except (ValidationError, InputError):
        return None
    return strategy, training


def server_step_of(strategy: Strategy[Any]) -> str | None:
    """The path of the server's step size; None where the strategy has none (a plain mean)."""
    optimizer = getattr(strategy, "server_optimizer", None)
    if optimizer is not None and hasattr(optimizer, "learning_rate"):
        return "strategy.server_optimizer.learning_rate"
    name = next((n for n in SERVER_FIELDS if isinstance(getattr(strategy, n, None), float)), None)
    return None if name is None else f"strategy.{name}"


def value_at(strategy: Strategy[Any], training: TrainingConfig, path: str) -> Any:
    """What a parameter is now. Raises KeyError or AttributeError where there is none of this path."""
    where, _, rest = path.partition(".")
    found: Any = {"training": training, "strategy": strategy}[where]
    for name in rest.split("."):
        found = getattr(found, name)
    return found


def _around(path: str, value: float) -> Axis:
    values = [_capped(path, v if k == 0 else _rounded(v)) for k in (-1, 0, 1) for v in [value * 10 ** (k / 2)]]
    return Axis(path, list(dict.fromkeys(values)), base=value)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _capped(path: str, value: float) -> float:
    return min(value, 1.0) if path.endswith(".alpha") else value


def _replaced(value: Any, path: Sequence[str], new: float) -> Any:
    if hasattr(value, "with_field"):  # a strategy that is built from a file
        return value.with_field(path[0], new)
    if len(path) > 1:
        new = _replaced(getattr(value, path[0]), path[1:], new)
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} is not a dataclass: its {path[0]} cannot be tuned")
    settable = {f.name for f in fields(value) if f.init}
    new = _as_kind(getattr(value, path[0]), new)
    return type(value)(**{name: getattr(value, name) for name in settable} | {path[0]: new})


def _as_kind(now: Any, new: Any) -> Any:
    """A whole number where a whole number was."""
    return int(new) if isinstance(now, int) and isinstance(new, float) and new.is_integer() else new


__all__ = ["Axis", "Grid", "Point", "axes_of", "changed", "server_step_of", "value_at", "with_values"]
