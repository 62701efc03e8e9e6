"""Means over seeds with their 95 % confidence intervals (Student's t)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's quantile for 1 to 9 degrees of freedom."""
_Z_975 = 1.959964
DIGITS = 3
"""Significant digits of a number that people read."""
_ROUNDING = 1e-12
"""Part of the mean below which a spread comes from the last bits of sums."""


def half_width_factor(count: int) -> float:
    """Return the half-width of the interval for a standard deviation of 1 over `count` values; NaN for fewer than
    two."""
    if count < 2:
        return math.nan
    freedom = count - 1
    t = _T_975[freedom - 1] if freedom <= len(_T_975) else _t_975(freedom)
    return t / math.sqrt(count)


def _t_975(freedom: int) -> float:
    """Return Student's quantile by Fisher's expansion in 1/freedom (Abramowitz and Stegun, 26.7.5).

    It is right to 4 digits from 10 degrees of freedom on.
    """
    z = _Z_975
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def mean_and_half_width(rows: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean over the first axis and the half-width of its interval, which is 0 for one row."""
    mean = rows.mean(axis=0)
    if len(rows) < 2:
        return mean, np.zeros_like(mean)
    with np.errstate(over="ignore"):  # runs on their way to divergence
        return mean, half_width_factor(len(rows)) * rows.std(axis=0, ddof=1)


def mean_text(values: Sequence[float]) -> str:
    """Return the mean as text, with half the width of its interval for several values; "-" if one is not finite."""
    if not values or not all(math.isfinite(v) for v in values):
        return "-"
    mean, half = mean_and_half_width(np.asarray(values, np.float64)[:, None])
    half = np.where(half > _ROUNDING * abs(mean), half, 0.0)
    return number_text(mean[0]) if len(values) == 1 else f"{number_text(mean[0])} ± {number_text(half[0], 2)}"


def difference_text(values: Sequence[float]) -> str:
    """Return the mean with its sign, to the last digit that half the width of its interval has, and at most to the
    third one.

    One value has no interval. The text is "-" for no value.
    """
    if not values:
        return "-"
    mean, half = (float(x[0]) for x in mean_and_half_width(np.asarray(values, np.float64)[:, None]))
    half = half if half > _ROUNDING * abs(mean) else 0.0
    sign = "+" if mean > 0 else ""
    if len(values) == 1:
        return f"{sign}{number_text(mean)}"
    if not 1e-6 <= half < 1e9:
        return f"{sign}{number_text(mean)} ± {half:.2g}"
    places = 1 - math.floor(math.log10(half))
    rounded = float(f"{mean:.{DIGITS}g}")
    shown = max(places, 0) if rounded == 0 else max(min(places, DIGITS - 1 - math.floor(math.log10(abs(rounded)))), 0)
    own = max(places, 0)
    return f"{round(rounded, places) + 0.0:+,.{shown}f} ± {round(half, places):,.{own}f}"


def number_text(value: float, digits: int = DIGITS) -> str:
    """Return a number with so many significant digits, and with an exponent only if it needs one."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.10g}" if rounded == 0 or 1e-4 <= abs(rounded) < 1e9 else f"{value:.{digits}g}"
