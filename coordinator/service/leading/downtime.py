"""Time that run time does not count: no coordinator was up, or its machine slept."""

from __future__ import annotations

SHORTEST_S = 1.0
"""Shortest gap between the wall clock and run time that is noted, in seconds. A wall clock is set by less than that all
the time."""


class Downtime:
    """Compares run time with the wall clock. A wall clock that is set back tells nothing."""

    def __init__(self, run_s: float, wall_s: float) -> None:
        """Both clocks were last seen at these times: run time and Unix time of the last commit, after a restart."""
        self._run_s, self._wall_s = run_s, wall_s

    def since_last(self, run_s: float, wall_s: float) -> float:
        """Return the seconds since the last call for which run time stood still; 0 if there are none to speak of."""
        gap_s = (wall_s - self._wall_s) - (run_s - self._run_s)
        self._run_s, self._wall_s = run_s, wall_s
        return gap_s if gap_s > SHORTEST_S else 0.0
