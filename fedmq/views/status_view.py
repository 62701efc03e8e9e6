"""Draw a RunStatus in a terminal (rich)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from fedmq.schemas.texts import escaped
from fedmq.views.durations import duration
from fedmq.views.forms import forms_text
from fedmq.views.participants_view import participants_table
from fedmq.views.sizes import models_text, traffic_text
from fedmq.views.status import RunStatus

BAR_WIDTH = 30
BROKER_TROUBLES = {
    "disconnected": "The coordinator lost its broker {since} ago, and tries to reach it again",
    "blocked": "The broker has taken no messages from the coordinator for {since}",
}
MOST_BARS = 12
FEW_BARS = 4
SMALL_SCREEN_LINES = 40
"""A terminal with fewer lines gets fewer bars."""
MOST_REASON_CHARS = 300
"""Characters of a decline's reason that are shown."""
BLOCKS = " ▏▎▍▌▋▊▉█"
SPARKS = "▁▂▃▄▅▆▇█"


def status_view(status: RunStatus, *, everybody: bool = False) -> RenderableType:
    """Return the whole screen of `fedmq status`. `everybody`: all participants, also if the screen has no room."""
    return _Screen(status, everybody)


@dataclass(frozen=True)
class _Screen:
    """The whole screen of `fedmq status`. In a terminal it has as many participants as there is room for."""

    status: RunStatus
    everybody: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield its parts, from the top to the bottom."""
        whole = self.everybody or not console.is_terminal
        small = not whole and options.size.height < SMALL_SCREEN_LINES
        before, after = _before(self.status), _after(self.status, small=small)
        taken = len(console.render_lines(Group(*before, *after), options, pad=False))
        room = None if whole else options.size.height - taken - 1  # a line is left for the prompt
        yield from (*before, *participants_table(self.status.participants, room), *after)


def _before(status: RunStatus) -> list[RenderableType]:
    parts: list[RenderableType] = [headline(status), *(Text(line, style="bold red") for line in troubles(status))]
    if status.evaluation_problem:
        parts.append(Text(f"The last evaluation failed: {escaped(status.evaluation_problem)}", style="red"))
    if status.plain_versions[0]:
        count, why = status.plain_versions
        parts.append(Text(f"{count} versions are the plain mean, and were not distilled: {escaped(why)}", style="red"))
    parts += [Text(f"Set back: {escaped(told)}", style="red") for told in status.set_backs]
    return parts


def _after(status: RunStatus, *, small: bool) -> list[RenderableType]:
    bars = FEW_BARS if small else MOST_BARS
    parts: list[RenderableType] = []
    if any(one.decline for one in status.participants):
        declines = {one.participant_id: one.decline for one in status.participants if one.decline}
        parts += [Text("\nLast answer: declined", style="bold"), reasons_view(declines)]
    if any(one.lacks for one in status.participants):
        lacking = {one.participant_id: f"has no {one.lacks}" for one in status.participants if one.lacks}
        parts += [Text("\nAsked for plain updates", style="bold"), reasons_view(lacking)]
    if status.staleness:
        parts += [Text("\nStaleness of accepted updates", style="bold"), histogram(status.staleness, rows=bars)]
    if status.discarded:
        parts += _counts("Discarded updates", status.discarded, "red", in_a_line=small)
    if status.clamped:
        parts += _counts("Accepted updates with a clamped claim", status.clamped, "yellow", in_a_line=small)
    return parts


def troubles(status: RunStatus) -> list[str]:
    """Return a sentence on each thing that keeps a running coordinator from its work, as far as it can be seen."""
    if status.state != "running":
        return []
    if status.coordinator_paused and status.coordinator is not None:
        pid = status.coordinator.pid
        return [f"The coordinator's process is paused: kill -CONT {pid} lets it go on."]
    broker = status.broker
    if broker is not None and broker.state != "connected":
        told = BROKER_TROUBLES[broker.state].format(since=duration(broker.since_s))
        return [f"{told}: {escaped(broker.detail)}" if broker.detail else f"{told}."]
    if status.participants and status.committed_ago_s > status.silence_s:
        return [
            f"Nothing was committed for {duration(status.committed_ago_s)}: no message has come, or the coordinator's "
            "disk takes nothing. Its log says more."
        ]
    return []


def _counts(title: str, counts: Mapping[str, int], style: str, *, in_a_line: bool) -> list[RenderableType]:
    if in_a_line:
        line = ", ".join(f"{count} {name}" for name, count in counts.items())
        return [Text.assemble((f"\n{title}: ", "bold"), (line, style))]
    rows = Table.grid(padding=(0, 2))
    for name, count in counts.items():
        rows.add_row(Text(f"  {name}"), Text(str(count), style=style))
    return [Text(f"\n{title}", style="bold"), rows]


def headline(status: RunStatus) -> Text:
    """Return a line on the run and a line on its numbers."""
    text = Text.assemble(("run ", "dim"), (status.run_id, "bold"), "  ")
    if status.state == "finished":
        text.append(f"finished: {status.finished}", "bold green")
    elif status.state == "running":
        lost = status.broker is not None and status.broker.state == "disconnected"
        text.append("running, without its broker" if lost else "running", "bold red" if lost else "bold green")
    elif status.state == "waiting":
        who = ", ".join(map(str, status.waiting_pids))
        text.append(f"waiting for its broker, or for its turn (coordinator: pid {who})", "bold yellow")
    elif status.coordinator_elsewhere:
        text.append("not heard of (its coordinator is on another host)", "bold yellow")
    else:
        text.append("stopped (the same coordinator command continues it)", "bold yellow")
    text.append(f", {status.strategy}, up for {duration(status.elapsed_s)}")
    text.append(f", last commit {duration(status.committed_ago_s)} ago\n", "dim")
    if status.state == "running" and status.coordinator is not None:
        one = status.coordinator
        text.append(f"active coordinator: pid {one.pid} on {one.host}, epoch {one.epoch}\n", "dim")
    text.append(f"version {status.version}", "bold")
    if status.versions_by_timeout:
        text.append(f" ({status.versions_by_timeout} by the buffer's timeout)")
    text.append(f"  accepted {status.accepted}  discarded {sum(status.discarded.values())}")
    text.append(f"  tasks out {status.tasks_out}")
    if status.state == "running":
        text.append(f"  {status.updates_per_s:.1f} updates/s")
    if status.mean_staleness is not None:
        text.append(f"  mean staleness {status.mean_staleness:.2f}")
    if status.bytes_up.messages:
        rest = status.accepted - status.bytes_up.messages
        text.append(f"\nbytes up {traffic_text(status.bytes_up)}  bytes down {traffic_text(status.bytes_down)}")
        text.append(f"  {rest} updates were not counted" if rest else "", "dim")
    if told := models_text(status.models):
        text.append(f"\n{told}")
    if told := forms_text(status.forms):
        text.append(f"\n{told}")
    if status.metrics:
        text.append(f"\nversion {status.evaluated_version} on the test data: {_values(status.metrics)}")
    if status.federated_metrics:
        shown = _values(status.federated_metrics)
        text.append(f"\nversion {status.version} on the participants' data: {shown}")
    return text


def _values(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{escaped(name)} {value:.4f}" for name, value in metrics.items())


def reasons_view(reasons: Mapping[str, str], most: int = 5) -> RenderableType:
    """Return a line for each reason, with those who have it; the most frequent ones first. `reasons` is by
    participant."""
    who: dict[str, list[str]] = {}
    for name, given in reasons.items():
        who.setdefault(given, []).append(name)
    text = Text()
    for given, names in sorted(who.items(), key=lambda pair: -len(pair[1]))[:most]:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        text.append(f"  {', '.join(names[:3])}{more}: ", "yellow")
        reason = escaped(given)
        text.append(f"{reason if len(reason) <= MOST_REASON_CHARS else reason[:MOST_REASON_CHARS] + '…'}\n")
    if len(who) > most:
        text.append(f"  and {len(who) - most} more reasons\n", "dim")
    text.rstrip()
    return text


def histogram(counts: Mapping[int, int], width: int = BAR_WIDTH, rows: int = MOST_BARS) -> RenderableType:
    """Return a bar for each staleness. The last row sums up all that lies beyond it."""
    last = max(counts)
    folded = {tau: counts.get(tau, 0) for tau in range(min(last + 1, rows))}
    if last >= rows:
        folded[rows - 1] = sum(count for tau, count in counts.items() if tau >= rows - 1)
    most, total = max(folded.values()), sum(counts.values())
    table = Table.grid(padding=(0, 1))
    for tau, count in folded.items():
        name = f"{tau}+" if tau == rows - 1 and last >= rows else str(tau)
        table.add_row(f"  {name:>4}", Text(bar(count / most, width), "blue"), f"{count}", f"{count / total:.0%}")
    return table


def bar(fraction: float, width: int) -> str:
    """Return a bar, drawn to an eighth of a character."""
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + BLOCKS[eighths % 8].strip()


def sparkline(values: list[float], width: int, low: float = 0.0, high: float = 1.0) -> str:
    """Return a curve of `width` characters: all values if they fit, else evenly chosen ones."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    span = (high - low) or 1.0
    return "".join(SPARKS[min(int(max(value - low, 0.0) / span * len(SPARKS)), len(SPARKS) - 1)] for value in values)
