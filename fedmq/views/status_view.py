"""Draw a RunStatus in a terminal (rich)."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedmq.schemas.texts import escaped
from fedmq.views.status import ParticipantStatus, RunStatus

STATE_STYLES = {
    "training": "green", "done": "green", "idle": "cyan", "busy": "yellow", "declined": "yellow", "late": "red",
    "away": "red", "unreachable": "red", "ended": "bold red", "starting": "dim",
}  # fmt: skip
BAR_WIDTH = 30
BLOCKS = " ▏▎▍▌▋▊▉█"
SPARKS = "▁▂▃▄▅▆▇█"


def status_view(status: RunStatus) -> RenderableType:
    """Return the whole screen of `fedmq status`."""
    parts: list[RenderableType] = [headline(status)]
    if status.evaluation_problem:
        parts.append(Text(f"The last evaluation failed: {escaped(status.evaluation_problem)}", style="red"))
    parts.append(participants_table(status.participants))
    if any(one.decline for one in status.participants):
        parts += [Text("\nLast answer: declined", style="bold"), declines_view(status.participants)]
    if status.staleness:
        parts += [Text("\nStaleness of accepted updates", style="bold"), histogram(status.staleness)]
    if status.discarded:
        parts += [Text("\nDiscarded updates", style="bold"), _counts(status.discarded, "red")]
    if status.clamped:
        parts += [Text("\nAccepted updates with a clamped claim", style="bold"), _counts(status.clamped, "yellow")]
    return Group(*parts)


def _counts(counts: Mapping[str, int], style: str) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    for name, count in counts.items():
        rows.add_row(Text(f"  {name}"), Text(str(count), style=style))
    return rows


def headline(status: RunStatus) -> Text:
    """Return a line on the run and a line on its numbers."""
    text = Text.assemble(("run ", "dim"), (status.run_id, "bold"), "  ")
    if status.state == "finished":
        text.append(f"finished: {status.finished}", "bold green")
    elif status.state == "running":
        text.append("running", "bold green")
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
    if status.metrics:
        text.append(f"\nversion {status.evaluated_version} on the test data: {_values(status.metrics)}")
    if status.federated_metrics:
        shown = _values(status.federated_metrics)
        text.append(f"\nversion {status.version} on the participants' data: {shown}")
    return text


def _values(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{escaped(name)} {value:.4f}" for name, value in metrics.items())


def participants_table(participants: tuple[ParticipantStatus, ...]) -> RenderableType:
    """Return a table with a row for each participant. A count that is 0 for all of them has no column."""
    if not participants:
        return Text("\nNo participant has said hello yet.", style="yellow")
    counts = {
        "accepted": [one.accepted for one in participants],
        "discarded": [one.discarded for one in participants],
        "declined": [one.declined for one in participants],
    }
    counts = {name: column for name, column in counts.items() if name == "accepted" or any(column)}
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("\nparticipant", no_wrap=True)
    table.add_column("\nstate", no_wrap=True)
    for column in ("last\nseen ago", "\nexamples", *(f"\n{name}" for name in counts), "last\nstaleness"):
        table.add_column(column, justify="right", no_wrap=True)
    for index, one in enumerate(participants):
        table.add_row(
            Text(one.participant_id),
            state_text(one),
            duration(one.last_seen_ago_s),
            f"{one.num_examples:,}",
            *(str(column[index]) for column in counts.values()),
            "–" if one.last_staleness is None else str(one.last_staleness),
        )
    return table


def declines_view(participants: tuple[ParticipantStatus, ...], most: int = 5) -> RenderableType:
    """Return a line for each reason for which participants declined their last task, the most frequent ones first."""
    who: dict[str, list[str]] = {}
    for one in participants:
        if one.decline:
            who.setdefault(one.decline, []).append(one.participant_id)
    text = Text()
    for decline, names in sorted(who.items(), key=lambda pair: -len(pair[1]))[:most]:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        text.append(f"  {', '.join(names[:3])}{more}: ", "yellow")
        text.append(f"{escaped(decline)}\n")
    if len(who) > most:
        text.append(f"  and {len(who) - most} more reasons\n", "dim")
    text.rstrip()
    return text


def state_text(one: ParticipantStatus) -> Text:
    """Return the state, with the task's base version and age if there is a task."""
    text = Text(one.state, style=STATE_STYLES.get(one.state, ""))
    if one.base_version is not None and one.task_age_s is not None:
        text.append(f" v{one.base_version} {duration(one.task_age_s)}", "dim")
    return text


def histogram(counts: Mapping[int, int], width: int = BAR_WIDTH, rows: int = 12) -> RenderableType:
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
