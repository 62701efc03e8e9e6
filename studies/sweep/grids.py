"""The parameters of a strategy that can be tuned, and the grids of values to try: half-decades that grow if the best
value stands at an edge."""

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
"""One value for each axis of a grid."""
LOCAL = "training.learning_rate"
SERVER_FIELDS = ("alpha", "server_learning_rate", "learning_rate")
"""Names of the server's step, in the order in which a strategy is searched for it."""


@dataclass
class Axis:
    """The values of one parameter. A grid that may grow has a `base`, and exponents of √10."""

    path: str
    values: list[float]
    base: float | None = None
    lowest: int = -1
    highest: int = 1

    def grow(self, best: float) -> list[float]:
        """Add the values beyond the edge at which the best value stands, and return them.

        There are none if it stands at no edge, or if there is no more room.
        """
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
        """Return True if a better value may lie beyond this one."""
        if len(self.values) < 2 or (self.path.endswith(".alpha") and value >= 1):
            return False
        return value in (min(self.values), max(self.values))


class Grid:
    """All combinations of the axes' values that a cell accepts, as cells."""

    def __init__(self, cell: Cell, axes: Sequence[Axis]) -> None:
        self.axes = axes
        self._cell = cell
        self._seen: set[Point] = set()

    def new(self) -> Iterator[tuple[Point, Cell]]:
        """Yield the points that were not yielded before, with their cells."""
        for point in itertools.product(*(axis.values for axis in self.axes)) if self.axes else ():
            if point in self._seen:
                continue
            self._seen.add(point)
            made = with_values(self._cell, self.named(point))
            if made is not None:
                yield point, made

    def grow(self, best: Point) -> bool:
        """Grow each axis at whose edge the best point stands. Return True if there are new values."""
        grown = [axis.grow(value) for axis, value in zip(self.axes, best, strict=True)]
        return any(grown)

    def named(self, point: Point) -> dict[str, float]:
        """Return parameter -> value for a point."""
        return {axis.path: value for axis, value in zip(self.axes, point, strict=True)}


def axes_of(
    cell: Cell,
    given: Mapping[str, Sequence[float]] | None,
    learning_rate: Sequence[float] | None,
    server_step: Sequence[float] | None,
) -> tuple[list[Axis], list[str]]:
    """Return the axes of a cell's grid, and in words what could be tuned and is not.

    `given` (parameter -> values) names all axes. If it is None the axes are the two step sizes, with the values of
    `learning_rate` and `server_step`, or with half-decades around the cell's own.
    """
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
    """Return the cell with these parameters (`training.x`, `strategy.x.y`); None if they are refused."""
    found = changed(cell.strategy, cell.training, values)
    return None if found is None else replace(cell, strategy=found[0], training=found[1])


def changed(
    strategy: Strategy[Any], training: TrainingConfig, values: Mapping[str, float]
) -> tuple[Strategy[Any], TrainingConfig] | None:
    """Return both with these parameters; None if they are refused."""
    try:
        for path, value in values.items():
            where, _, rest = path.partition(".")
            if where == "training":
                training = type(training)(**{**training.model_dump(), rest: _as_kind(getattr(training, rest), value)})
            else:
                strategy = _replaced(strategy, rest.split("."), value)
    except (ValidationError, InputError):
        return None
    return strategy, training


def server_step_of(strategy: Strategy[Any]) -> str | None:
    """Return the path of the server's step size; None if the strategy has none (a plain mean)."""
    optimizer = getattr(strategy, "server_optimizer", None)
    if optimizer is not None and hasattr(optimizer, "learning_rate"):
        return "strategy.server_optimizer.learning_rate"
    name = next((n for n in SERVER_FIELDS if isinstance(getattr(strategy, n, None), float)), None)
    return None if name is None else f"strategy.{name}"


def value_at(strategy: Strategy[Any], training: TrainingConfig, path: str) -> Any:
    """Return a parameter's present value. Raises KeyError or AttributeError if there is no such parameter."""
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
    if hasattr(value, "with_field"):  # a strategy that a file builds
        return value.with_field(path[0], new)
    if len(path) > 1:
        new = _replaced(getattr(value, path[0]), path[1:], new)
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} is not a dataclass: its {path[0]} cannot be tuned")
    settable = {f.name for f in fields(value) if f.init}
    new = _as_kind(getattr(value, path[0]), new)
    return type(value)(**{name: getattr(value, name) for name in settable} | {path[0]: new})


def _as_kind(now: Any, new: Any) -> Any:
    """Return `new` as a whole number if `now` is one."""
    return int(new) if isinstance(now, int) and isinstance(new, float) and new.is_integer() else new


__all__ = ["Axis", "Grid", "Point", "axes_of", "changed", "server_step_of", "value_at", "with_values"]
