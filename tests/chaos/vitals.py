"""Measurements of a soak's processes, with the limits below which they count as flat."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

WARM_UP_S = 10.0
"""First part of a process's life, which is not counted: it loads its modules and its queues fill."""
LONG_S = 20.0
"""Least length of a life. Shorter lives say nothing about growth."""
GROWTH_MB = {"coordinator": 12.0, "participant": 8.0, "broker": 150.0}
"""Resident memory (RSS) that a process may gain after its warm-up."""
SPREAD_HANDLES = {"coordinator": 12, "participant": 12, "broker": 200}
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass
class Life:
    """One process from its start to its death."""

    kind: str
    name: str
    pid: int
    born_s: float
    samples: list[tuple[float, float, int]] = field(default_factory=list)
    """Samples: (age in s, RSS in MB, open file handles)."""

    def sample(self, now_s: float) -> None:
        """Take a sample, unless the process is gone."""
        with suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            handles = len(os.listdir(f"/proc/{self.pid}/fd"))
            if pages:
                self.samples.append((now_s - self.born_s, pages * PAGE_MB, handles))

    @property
    def settled(self) -> list[tuple[float, float, int]]:
        return [sample for sample in self.samples if sample[0] >= WARM_UP_S]

    @property
    def age_s(self) -> float:
        return self.samples[-1][0] if self.samples else 0.0

    @property
    def growth_mb(self) -> float:
        """Growth of the RSS by a least-squares line through the settled samples."""
        ages, sizes, _ = zip(*self.settled, strict=True)
        return float(np.polyfit(ages, sizes, 1)[0] * (ages[-1] - ages[0]))

    @property
    def handles(self) -> tuple[int, int]:
        found = [count for _, _, count in self.settled]
        return min(found), max(found)

    @property
    def long(self) -> bool:
        return len(self.settled) >= 3 and self.settled[-1][0] - self.settled[0][0] >= LONG_S - WARM_UP_S

    @property
    def flat(self) -> bool:
        least, most = self.handles
        return self.growth_mb <= GROWTH_MB[self.kind] and most - least <= SPREAD_HANDLES[self.kind]


def table(lives: Sequence[Life]) -> list[str]:
    """Return the rows of a table: the longest lives of each kind, and every one that is not flat."""
    lines = [f"  {'process':<14}{'pid':>8}{'lived s':>9}{'RSS MB':>16}{'growth MB':>11}{'handles':>10}"]
    chosen = [life for life in lives if not life.flat]
    for kind in GROWTH_MB:
        chosen += sorted((life for life in lives if life.kind == kind), key=lambda life: -life.age_s)[:4]
    for life in dict.fromkeys(map(id, chosen)):
        one = next(found for found in chosen if id(found) == life)
        sizes = f"{one.settled[0][1]:.1f} to {one.settled[-1][1]:.1f}"
        handles = "{} to {}".format(*one.handles)
        verdict = "" if one.flat else "   NOT FLAT"
        lines.append(
            f"  {one.name:<14}{one.pid:>8}{one.age_s:>9.0f}{sizes:>16}{one.growth_mb:>11.2f}{handles:>10}{verdict}"
        )
    return lines
