"""Means over seeds with their 95 % confidence intervals (Student's t)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's quantile for 1 to 9 degrees of freedom."""
_Z_975 = 1.959964
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
    return _plain(mean[0], 4) if len(values) == 1 else f"{_plain(mean[0], 4)} ± {_plain(half[0], 2)}"


def difference_text(values: Sequence[float]) -> str:
    """Return the mean with its sign, to the last digit that half the width of its interval has.

    One value has no interval. The text is "-" for no value.
    """
    if not values:
        return "-"
    mean, half = (float(x[0]) for x in mean_and_half_width(np.asarray(values, np.float64)[:, None]))
    sign = "+" if mean > 0 else ""
    if len(values) == 1:
        return f"{sign}{_plain(mean, 4)}"
    if not 1e-6 <= half < 1e9:
        return f"{sign}{_plain(mean, 4)} ± {half:.2g}"
    places = 1 - math.floor(math.log10(half))
    shown = max(places, 0)
    return f"{round(mean, places) + 0.0:+,.{shown}f} ± {round(half, places):,.{shown}f}"


def _plain(value: float, digits: int) -> str:
    """Return a number with so many digits, from 1,000 on as a whole number, with an exponent only if it needs one."""
    if 1e-4 <= abs(value) < 1e9:
        return f"{value:,.0f}" if digits > 2 and abs(value) >= 1000 else f"{float(f'{value:.{digits}g}'):,.10g}"
    return f"{value:.{digits}g}"
