"""The demo's live view: a screen that renews itself in a terminal; elsewhere, a line every two seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fedmq.views.durations import duration
from fedmq.views.participants_view import state_text
from fedmq.views.status import ParticipantStatus, RunStatus
from fedmq.views.status_view import bar, sparkline

LINE_INTERVAL_S = 2.0
CURVE_WIDTH = 42
MAX_NEWS = 5
STARTING = "starting: TensorFlow is being loaded"
FINISHING = "over, finishing up"


@dataclass(frozen=True, slots=True)
class Frame:
    """The values to show at one moment."""

    elapsed_s: float
    """Seconds since the demo began."""
    run: RunStatus | None
    """Status of the run; None before the coordinator's first commit."""
    curve: Sequence[tuple[float, float]]
    """Seconds of run time and accuracy of each central evaluation."""
    participants: tuple[ParticipantStatus, ...]
    speeds: Mapping[str, str]
    news: tuple[str, ...]
    """Lines on what went wrong, newest last."""
    finishing: bool = False
    """True if the run is over, and its coordinator waits for updates on their way and saves the model."""


def with_everybody(
    run: RunStatus | None, names: Sequence[str], ended: Mapping[str, str]
) -> tuple[ParticipantStatus, ...]:
    """Return a row for each name: the run's participants, those without a hello yet, and those that have ended."""
    known = {one.participant_id: one for one in (run.participants if run else ())}
    rows = []
    for name in names:
        row = known.get(name) or ParticipantStatus(name, "starting", 0, 0.0, None, None, None, 0, 0, 0)
        if name in ended:
            row = replace(row, state=ended[name], why_away="", base_version=None, task_age_s=None)
        rows.append(row)
    return tuple(rows)


class LiveView:
    """Shows frames as they come. As a context manager, it gives the terminal back."""

    def __init__(self, console: Console, title: str, goal: float) -> None:
        self._console = console
        self._title = title
        self._goal = goal
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self._last_line_s = -LINE_INTERVAL_S
        self._news_shown = 0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, frame: Frame, *, last: bool = False) -> None:
        """Draw a frame. If it is the `last`, its line is printed before it is due."""
        if self._live is not None:
            self._live.update(self.screen(frame), refresh=True)
            return
        for news in frame.news[self._news_shown :]:
            self._console.print(Text(f"{frame.elapsed_s:6.1f} s  {news}"))
        self._news_shown = len(frame.news)
        if last or frame.elapsed_s - self._last_line_s >= LINE_INTERVAL_S:
            self._last_line_s = frame.elapsed_s
            self._console.print(Text(line(frame)), soft_wrap=True)

    def screen(self, frame: Frame) -> RenderableType:
        """Return the whole view."""
        parts: list[RenderableType] = [self._numbers(frame), self._curve(frame), _participants(frame)]
        parts += [Text(news, style="bold red") for news in frame.news[-MAX_NEWS:]]
        return Panel(Group(*parts), title=self._title, title_align="left", border_style="blue", width=94)

    def _numbers(self, frame: Frame) -> Text:
        text = Text(f"{frame.elapsed_s:5.1f} s   ", "bold")
        run = frame.run
        if run is None:
            return text.append(STARTING, "dim")
        text.append(f"version {run.version}   ", "bold")
        text.append(f"{run.updates_per_s:4.1f} updates/s   {run.accepted} accepted")
        if run.discarded:
            text.append(f"   {sum(run.discarded.values())} discarded", "yellow")
        if frame.finishing:
            text.append(f"   {FINISHING}", "bold")
        elif run.mean_staleness is not None:
            text.append(f"   mean staleness {run.mean_staleness:.2f}")
        return text

    def _curve(self, frame: Frame) -> Text:
        if not frame.curve:
            return Text("\naccuracy      not evaluated yet\n", style="dim")
        values = [value for _, value in frame.curve]
        style = "bold green" if values[-1] >= self._goal else "bold"
        text = Text.assemble(("\naccuracy ", ""), (f"{values[-1]:7.2%} ", style))
        text.append(
            bar(values[-1], CURVE_WIDTH).ljust(CURVE_WIDTH, "·"), "green" if values[-1] >= self._goal else "blue"
        )
        text.append(f" goal {self._goal:.0%}\n", "dim")
        text.append(f"{'so far':>16} ", "dim").append(sparkline(values, CURVE_WIDTH), "blue").append("\n")
        return text


def _participants(frame: Frame) -> RenderableType:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("participant", no_wrap=True)
    table.add_column("slower by", justify="right", no_wrap=True)
    table.add_column("examples", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=19)
    table.add_column("accepted", justify="right", no_wrap=True)
    table.add_column("staleness", no_wrap=True, min_width=9)
    for one in frame.participants:
        tau = one.last_staleness
        stale = Text("–", "dim") if tau is None else Text.assemble(f"{tau:>2} ", (bar(tau / 10, 6), "yellow"))
        examples = f"{one.num_examples:,}" if one.num_examples else "–"
        table.add_row(
            Text(one.participant_id),
            frame.speeds.get(one.participant_id, ""),
            examples,
            state_text(one),
            str(one.accepted),
            stale,
        )
    return table


def line(frame: Frame) -> str:
    """Return one line for a log."""
    run = frame.run
    if run is None:
        return f"{frame.elapsed_s:6.1f} s  {STARTING}"
    accuracy = f"{frame.curve[-1][1]:.2%}" if frame.curve else "not evaluated"
    states: dict[str, int] = {}
    for one in frame.participants:
        states[one.state] = states.get(one.state, 0) + 1
    shown = FINISHING if frame.finishing else ", ".join(f"{count} {state}" for state, count in states.items())
    return (
        f"{frame.elapsed_s:6.1f} s  version {run.version:3d}  accuracy {accuracy}  "
        f"{run.updates_per_s:4.1f} updates/s  {run.accepted} accepted  {shown}"
    )


def summary_table(frame: Frame, why_over: str) -> RenderableType:
    """Return the table at the end of the demo."""
    table = Table(title="Summary", title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    run = frame.run
    if run is None:
        return Text("The run never started.", style="bold red")
    rows = {
        "ended": why_over,
        "test accuracy": _accuracy([value for _, value in frame.curve]),
        "versions": f"{run.version} in {duration(run.elapsed_s)} of run time",
        "updates accepted": str(run.accepted),
        "updates discarded": ", ".join(f"{n} {reason}" for reason, n in run.discarded.items()) or "none",
        "mean staleness": "–" if run.mean_staleness is None else f"{run.mean_staleness:.2f}",
        "took": f"{duration(frame.elapsed_s)} with all start-up",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value, style="bold"))
    return table


def _accuracy(values: Sequence[float]) -> str:
    """Return the last accuracy, after the best one if that is another."""
    if not values:
        return "not evaluated"
    last = f"{values[-1]:.2%}"
    return last if max(values) == values[-1] else f"{max(values):.2%} at its best, {last} at the end"
