"""The picture of a run: accuracy against time, and how stale the accepted updates were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.trust import believed
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.schemas.local.extras import require

BLUE, ORANGE, GREY = "#2563a8", "#d9762b", "#6b7280"
WIDTH_IN, HEIGHT_IN, DPI = 11.0, 4.4, 150


def plot_run(run_dir: Path, target: Path, *, metric: str = "accuracy", goal: float | None = None) -> None:
    """Write a PNG from the run's ledger. Raises MissingExtra."""
    path = RunFolder(run_dir).ledger
    with believed(path), LedgerReader(path) as ledger:
        points = [(row.run_s, row.metrics[metric]) for row in ledger.evaluations() if metric in row.metrics]
        plot(points, ledger.staleness(), target, metric=metric, goal=goal, title=_title(ledger))


def plot(
    points: Sequence[tuple[float, float]],
    staleness: Mapping[int, int],
    target: Path,
    *,
    metric: str,
    goal: float | None,
    title: str,
) -> None:
    """Write a PNG of (seconds, value) points and a histogram of staleness counts. Raises MissingExtra."""
    require("matplotlib", "the picture of a run")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", fontweight="bold")
    _curve(left, points, metric, goal)
    _histogram(right, staleness)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(11)
    figure.savefig(target)


def _title(ledger: LedgerReader) -> str:
    updates, participants = ledger.accepted(), len(ledger.accepted_by_participant())
    return (
        f"Run {ledger.run().run_id}: {ledger.version()} versions from {updates} updates of {participants} participants"
    )


def _curve(axes: Any, points: Sequence[tuple[float, float]], metric: str, goal: float | None) -> None:
    axes.set_title(f"Test {metric} against time", loc="left")
    axes.set_xlabel("time since the coordinator started (s)")
    axes.set_ylabel(f"test {metric} (%)")
    axes.grid(alpha=0.25)
    if not points:
        axes.text(0.5, 0.5, "no central evaluation", transform=axes.transAxes, ha="center", color=GREY)
        return
    times, values = [at_s for at_s, _ in points], [100 * value for _, value in points]
    axes.plot(times, values, color=BLUE, marker="o", markersize=3, linewidth=1.6)
    axes.set_xlim(left=0, right=times[-1] * 1.06)
    axes.set_ylim(min(90.0, *values) - 3 if min(values) > 5 else 0, 101)
    if goal is not None:
        axes.axhline(100 * goal, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(f"goal {100 * goal:g} %", (0, 100 * goal), xytext=(4, 3), textcoords="offset points", color=GREY)
    axes.text(
        0.98,
        0.05,
        f"{values[-1]:.1f} % after {times[-1]:.0f} s",
        transform=axes.transAxes,
        ha="right",
        color=BLUE,
        fontweight="bold",
    )


def _histogram(axes: Any, staleness: Mapping[int, int]) -> None:
    axes.set_title("Staleness of updates", loc="left")
    axes.set_xlabel("staleness (versions behind)")
    axes.set_ylabel("accepted updates")
    if not staleness:
        axes.text(0.5, 0.5, "no accepted update", transform=axes.transAxes, ha="center", color=GREY)
        return
    from matplotlib.ticker import MaxNLocator

    total = sum(staleness.values())
    mean = sum(tau * count for tau, count in staleness.items()) / total
    bars = axes.bar(list(staleness), list(staleness.values()), width=0.85, color=ORANGE)
    if len(staleness) <= 12:
        axes.bar_label(bars, fontsize=8, color=GREY, padding=2)
    axes.set_title(f"Staleness of updates (mean {mean:.2f})", loc="left")
    axes.margins(y=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
