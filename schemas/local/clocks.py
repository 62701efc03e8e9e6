"""The age of a moment, by the clock that nobody sets if that clock can tell."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

_CLOCK_NOT_SET = 1_577_836_800.0
"""2020-01-01: a wall clock below this was never set (a device without a battery starts in 1970)."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment by two clocks: the wall clock, and the seconds since the boot that `boot_id` names."""

    wall_s: float
    boot_s: float
    boot_id: str


def moment_now() -> Moment:
    """Return the present moment by this machine's clocks."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot_id = ""
    return Moment(time.time(), time.clock_gettime(clock), boot_id)


def age_s(then: Moment, now: Moment) -> float | None:
    """Return the seconds between two moments; None if the clocks cannot tell.

    Within one boot the clock that nobody sets decides. Across boots the wall clock decides, unless it was not set or
    went back.
    """
    if then.boot_id and then.boot_id == now.boot_id and now.boot_s >= then.boot_s:
        return now.boot_s - then.boot_s
    if then.wall_s < _CLOCK_NOT_SET or now.wall_s < then.wall_s:
        return None
    return now.wall_s - then.wall_s
