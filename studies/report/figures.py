"""The figures of a study's report, by matplotlib: SVG with text as text, or PNG if a page would become too large.

Each strategy has one colour, one dash pattern and one mark in all figures of a report (studies.report.look).
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FuncFormatter, LogLocator, MaxNLocator

from fedmq.coordinator.settings import TargetMetric
from fedmq.studies.report.look import GRID, INK, Look, with_page_colours
from fedmq.studies.report.texts import shortened, write
from fedmq.studies.sweep.cell import CellResult
from fedmq.studies.sweep.intervals import mean_and_half_width, number_text
from fedmq.studies.sweep.measures import Floats, favour, final_value, is_better_high, on_one_grid, series

AXES = (("time_s", "virtual time (s)", 1.0), ("updates", "updates counted", 1.0), ("bytes_up", "uploaded (MB)", 1e-6))
POINTS = 120
BEYOND = 1e6
"""Multiple of the values at the start beyond which nothing is drawn. A run beyond it is on its way to divergence, and
an axis would have no ticks there."""
UNLIKE_SENDS, FAR_SENDS = 1.5, 3.0
"""Ratios of the bytes of the strategies' updates above which they are compared, and the axis of bytes is
logarithmic."""
STEEP_PART = 0.02
"""Part of a run, at its start, that the panels of curves leave out. It would flatten everything after it."""
VECTOR_DOTS = 600
"""Most dots of one figure that are vectors. More dots become a picture inside the SVG, so that its size stays small."""
WIDTH_IN = 10.5
LEGEND_ROW_IN = 0.2
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "fedmq", "font.size": 9.5, "axes.grid": True, "grid.alpha": 0.3,
    "grid.linewidth": 0.5, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "axes.titlesize": 9.5, "axes.titlelocation": "left", "legend.frameon": False, "legend.handlelength": 2.6,
    "font.family": "sans-serif", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "grid.color": GRID,
}  # fmt: skip

_DPI = {"svg": 150, "png": 96, "small png": 60}


def by_strategy(cells: Sequence[CellResult]) -> list[tuple[str, list[CellResult]]]:
    """Return the cells of each strategy, in the order of the study."""
    return [(s, [r for r in cells if r.strategy == s]) for s in dict.fromkeys(r.strategy for r in cells)]


def sends_differ(cells: Sequence[CellResult], by: float = UNLIKE_SENDS) -> bool:
    """Return True if updates of some strategies take `by` times the bytes of others', as codecs make them."""
    sizes = [r.bytes_up / r.updates for r in cells if r.updates]
    return bool(sizes) and max(sizes) > by * min(sizes)


def curves(cells: Sequence[CellResult], metric: str, look: Look, target: TargetMetric | None) -> tuple[str, str]:
    """Draw the metric against virtual time, updates and bytes, a panel for each.

    Return the figure, and a sentence that names what lies outside of the panels; "" if nothing does.
    """
    means: dict[str, Floats] = {}
    outside: list[str] = []

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(AXES), sharey=True)
        logarithmic = _spans_decades(cells, metric)
        ceiling = _ceiling(cells, metric)
        for ax, (key, label, unit) in zip(axes, AXES, strict=True):
            for strategy, runs in by_strategy(cells):
                sound = [r for r in runs if r.finished != "diverged"]
                x, rows = on_one_grid([series(r, key, metric) for r in sound or runs], POINTS)
                if not len(x):
                    continue
                mean, half = mean_and_half_width(np.clip(rows, -ceiling, ceiling))
                low, high = _possible(metric, rows, mean - half, mean + half)
                if logarithmic:  # a mean minus its half-width may be below 0, which this axis cannot show
                    low = np.maximum(low, 0.2 * mean)
                ax.plot(x * unit, mean, **look.line(strategy, POINTS))
                means.setdefault(strategy, mean)
                ax.fill_between(x * unit, low, high, color=look.colour(strategy), alpha=0.18, lw=0)
                if not sound:
                    ax.plot(x[-1:] * unit, mean[-1:], "X", color=look.colour(strategy), ms=7)
            ax.set_xlabel(label)
            _plain_large_numbers(ax.xaxis)
            if key == "bytes_up" and sends_differ(cells, FAR_SENDS):
                ax.set_xscale("log")
                ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
            if target is not None and target.name == metric:
                ax.axhline(target.value, color=INK, lw=0.9, ls=(0, (2, 2)), zorder=1)
        if logarithmic:
            axes[0].set_yscale("log")
        _within_reason(axes[0], cells, metric)
        outside.append(_outside(means, axes[0].get_ylim(), target if target and target.name == metric else None))
        write(axes[0].yaxis.label, f"test {metric}" if metric in {"accuracy", "loss"} else metric, 40)

    figure = _figure(draw, look, 3.1, cells)
    return figure, outside[0]


def _outside(means: Mapping[str, Floats], limits: tuple[float, float], target: TargetMetric | None) -> str:
    """Return a sentence that names the curves, apart from their steep start, and the target that are not drawn."""
    low, high = limits
    slack = 1e-6 * (high - low)
    found = []
    for strategy, mean in means.items():
        late = mean[math.ceil(STEEP_PART * len(mean)) :]
        beyond = late[(late < low - slack) | (late > high + slack)]
        if len(beyond):
            how = "all of it" if len(beyond) == len(late) else "in part"
            ends = dict.fromkeys(number_text(float(end)) for end in (beyond.min(), beyond.max()))
            found.append(f"{strategy} ({how}: {' to '.join(ends)})")
    if target is not None and not low <= target.value <= high:
        found.append(f"the target ({target.value:g})")
    return f"Outside of the panels: {', '.join(found)}." if found else ""


def dynamics(cells: Sequence[CellResult], look: Look) -> str:
    """Draw the staleness of accepted updates, and the number of tasks out."""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        longest = max((len(r.staleness) for r in cells), default=0)
        for strategy, runs in by_strategy(cells):
            if any(r.staleness for r in runs):
                counts = sum(np.pad(np.array(r.staleness, float), (0, longest - len(r.staleness))) for r in runs)
                shares = np.cumsum(counts) / max(np.sum(counts), 1)
                left.step(np.arange(longest), shares, where="post", **look.line(strategy, longest))
            # The last point is left out: a run that ends sends no more tasks out.
            out = [np.array(r.tasks_out, float).reshape(-1, 2)[:-1].T for r in runs]
            x, rows = on_one_grid([(a[0], a[1]) for a in out], POINTS)
            if len(x):
                mean, half = mean_and_half_width(rows)
                right.plot(x, mean, **look.line(strategy, POINTS))
                low = np.maximum(mean - half, 0)
                right.fill_between(x, low, mean + half, color=look.colour(strategy), alpha=0.18, lw=0)
        left.set(title="(a) staleness", xlabel="staleness τ (versions)", ylabel="share of updates with τ or less",
                 ylim=(0, 1.03))  # fmt: skip
        if longest > 30:
            left.set_xscale("symlog", linthresh=10)
            left.set_xlim(left=0)
            left.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        else:
            left.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.set(title="(b) concurrency", xlabel="virtual time (s)", ylabel="tasks out", ylim=(0, None))
        _plain_large_numbers(right.xaxis)

    return _figure(draw, look, 2.9, cells)


def weights(cells: Sequence[CellResult], look: Look) -> str:
    """Draw each participant's effective over its intended weight against the time of its tasks, for the first seed."""
    shown = [(strategy, runs[0]) for strategy, runs in by_strategy(cells)]
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    dots = sum(len(r.weight) for _, r in shown)

    def draw(figure: Any) -> None:
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        found = {strategy: favour(r) for strategy, r in shown}
        lowest = min((float(f[f > 0].min()) for f in found.values() if (f > 0).any()), default=0.1)
        floor = lowest / 3
        for ax, (strategy, result) in zip(axes.flat, shown, strict=False):
            ratio = np.maximum(found[strategy], floor)
            ax.scatter(
                result.task_s, ratio, s=9, color=look.colour(strategy), marker=look.marker(strategy), alpha=0.55, lw=0,
                rasterized=dots > VECTOR_DOTS,
            )  # fmt: skip
            ax.axhline(1, color=INK, lw=0.9)
            write(ax.set_title("", color=look.colour(strategy)), strategy, 34)
            ax.set_yscale("log")
            if max(result.task_s, default=1) > 8 * max(min(result.task_s, default=1), 1e-12):
                ax.set_xscale("log")
            for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
                if axis.get_scale() == "log" and high < 4 * low:  # too few of 0.5, 1, 2 are on it
                    axis.set_major_locator(MaxNLocator(5))
                elif axis.get_scale() == "log" and high < 100 * low:  # too few of 0.1, 1, 10 are on it
                    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
                axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        for ax in axes.flat[len(shown) :]:
            ax.set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel("effective / intended")
        for ax in axes[-1]:
            ax.set_xlabel("seconds a task takes")

    return _figure(draw, look, 0.5 + 2.3 * rows, cells, legended=False)


def overview(results: Sequence[CellResult], metric: str, look: Look) -> str:
    """Draw the final value of each strategy on each population."""
    populations = list(dict.fromkeys(r.population for r in results))

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        ceiling = _ceiling(results, metric)
        strategies = [s for s, _ in by_strategy(results)]
        for place, strategy in enumerate(strategies):
            offset = (place - (len(strategies) - 1) / 2) * min(0.12, 0.7 / len(strategies))
            for at, population in enumerate(populations):
                values = [
                    final_value(r, metric) for r in results if (r.strategy, r.population) == (strategy, population)
                ]
                finite = np.clip([v for v in values if math.isfinite(v)], -ceiling, ceiling)
                if not len(finite):
                    continue
                mean, half = mean_and_half_width(finite[:, None])
                low, high = _possible(metric, finite, mean - half, mean + half)
                ends = np.array([mean - low, high - mean]) if len(finite) > 1 else None
                ax.errorbar(at + offset, mean[0], yerr=ends, fmt=look.marker(strategy), ms=5, capsize=3,
                            color=look.colour(strategy), lw=1.4)  # fmt: skip
        ax.set_xticks(range(len(populations)), [""] * len(populations))
        for tick in ax.xaxis.get_major_ticks():
            tick.label1.set_parse_math(False)
        ax.xaxis.set_major_formatter(FixedFormatter([shortened(p, 28) for p in populations]))
        ax.set_xlim(-0.6, len(populations) - 0.4)
        write(ax.yaxis.label, f"final {metric}", 40)
        if _spans_decades(results, metric):
            ax.set_yscale("log")

    return _figure(draw, look, 3.0, results)


def _figure(
    draw: Callable[[Any], None], look: Look, height_in: float, cells: Sequence[CellResult], *, legended: bool = True
) -> str:
    """Return the figure as HTML. The same figure gives the same text."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a browser has it, or shows a box
        labels = [s for s, _ in by_strategy(cells)] if legended else []
        rows = math.ceil(len(labels) / _legend_columns(labels))
        height_in += LEGEND_ROW_IN * max(0, rows - 1)  # the panels keep their height for any legend
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure)
        if legended:
            lines = [Line2D([], [], **look.line(label)) for label in labels]
            names = ["?"] * len(labels)
            legend = figure.legend(lines, names, loc="outside lower center", ncols=_legend_columns(labels))
            for shown, label in zip(legend.get_texts(), labels, strict=True):
                write(shown, label, 60)
        if look.form == "svg":
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None}, dpi=_DPI["svg"], transparent=True)
            found = text.getvalue()
            return with_page_colours(found[found.index("<svg") :])
        raw = io.BytesIO()
        figure.savefig(raw, format="png", metadata={"Software": None}, dpi=_DPI[look.form])
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(raw.getvalue()).decode()}">'


def _legend_columns(labels: Sequence[str]) -> int:
    longest = max((len(label) for label in labels), default=1)
    return max(1, min(len(labels), 140 // (min(longest, 60) + 8)))


def _spans_decades(cells: Sequence[CellResult], metric: str) -> bool:
    found = [y for r in cells if r.finished != "diverged" and len(y := series(r, "time_s", metric)[1])]
    if not found:
        return False
    values = np.concatenate(found)
    return bool(values.min() > 0 and values.max() > 30 * values.min())


def off_scale(results: Sequence[CellResult], metric: str) -> bool:
    """Return True if the overview draws a value at the edge that lies beyond it."""
    ceiling = _ceiling(results, metric)
    return any(abs(final_value(r, metric)) > ceiling for r in results)


def _ceiling(cells: Sequence[CellResult], metric: str) -> float:
    """Return the largest distance from 0 at which a value is drawn."""
    starts = [abs(float(y[0])) for r in cells if len(y := series(r, "time_s", metric)[1])]
    return BEYOND * max(starts, default=1.0) or BEYOND


def _within_reason(ax: Any, cells: Sequence[CellResult], metric: str) -> None:
    """Cut off the part before the curves bend, and keep one run that blows up from flattening all others."""
    found = [(x, y) for r in cells if r.finished != "diverged" and len((x_y := series(r, "time_s", metric))[1]) > 20
             for x, y in [x_y]]  # fmt: skip
    if not found:
        return
    late = [y[x >= x[0] + STEEP_PART * (x[-1] - x[0])] for x, y in found]
    low, high = ax.get_ylim()
    worst, best = (np.min, np.max) if is_better_high(metric) else (np.max, np.min)
    edge, other = float(worst([worst(y[:1]) for y in late])), float(best([best(y) for y in late]))
    if edge == other:  # nothing became better than at the start
        return
    margin = 0.06 * (edge - other)
    if is_better_high(metric):
        ax.set_ylim(max(low, edge + margin, -0.02), min(high, 1.02) if other <= 1 else high)
    elif ax.get_yscale() == "linear":
        ax.set_ylim(max(low, other - margin), min(high, edge + margin))
    else:
        lowest, highest = min(float(y.min()) for _, y in found), max(float(y.max()) for _, y in found)
        start = max(float(y[0]) for _, y in found)
        ax.set_ylim(max(low, lowest / 3), min(high, 10 * highest, 100 * start))


def _possible(metric: str, values: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Limit a band to possible values.

    With few seeds an interval may reach below a loss of 0 or above an accuracy of 1, or of 100 %.
    """
    low = np.maximum(low, 0) if values.min() >= 0 else low
    if not is_better_high(metric) or values.min() < 0 or values.max() > 100:
        return low, high
    return low, np.minimum(high, 1 if values.max() <= 1 else 100)


def _plain_large_numbers(axis: Any) -> None:
    """Write 10,000 and not 1e4, and few enough numbers that they do not touch."""
    axis.set_major_locator(MaxNLocator(nbins=5))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
