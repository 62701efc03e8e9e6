"""Durations, as a person says them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return a duration as a person says it: 0.4 s, 12 s, 3 min 20 s, 5 h 2 min, 3 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def age(seconds: float) -> str:
    """Return a duration in one unit, for a column of a table: 0.4 s, 12 s, 3 min, 5 h, 3 d."""
    return " ".join(duration(seconds).split()[:2])
