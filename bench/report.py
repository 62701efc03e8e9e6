"""Parts that the benchmarks share: timing, and a table of ratios with their targets."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement against one reference of the same run."""

    what: str
    measured: str
    reference: str
    ratio: float
    target: float
    at_least: bool = True
    """True if the ratio should be at least the target, False if at most."""

    @property
    def met(self) -> bool:
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target


def best_of(
    repeats: int, *functions: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return the shortest time of each function, in seconds. They take turns: a slow spell of the machine hits all.

    `clock`: give `time.process_time` for work of one thread on a machine that others use as well.
    """
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = clock()
            result = function()
            best[i] = min(best[i], clock() - start)
            del result
    return best


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print each measurement, its reference, the ratio and the target."""
    width = max((len(r.what) for r in rows), default=0)
    print(title)
    for row in rows:
        sign = ">=" if row.at_least else "<="
        verdict = "met" if row.met else "MISSED"
        print(
            f"  {row.what:<{width}}  {row.measured:>14}  against {row.reference:>14}"
            f"   ratio {row.ratio:6.2f}  target {sign} {row.target:g}  {verdict}"
        )
    sys.stdout.flush()
