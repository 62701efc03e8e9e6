"""The table of participants in `fedmq status`: all of them, or as many as a screen has room for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fedmq.views.durations import age
from fedmq.views.status import ParticipantStatus

STATE_STYLES = {
    "training": "green", "done": "green", "idle": "cyan", "busy": "yellow", "declined": "yellow", "late": "red",
    "away": "red", "unreachable": "red", "ended": "bold red", "starting": "dim",
}  # fmt: skip
ORDER = ("unreachable", "late", "declined", "training", "busy", "idle", "away", "done")
"""States in the order in which a screen that has no room for all participants shows them."""
HEADING_LINES = 2
LEFT_OUT_LINES = 2
LEAST_ROWS = 4
"""Rows that are shown on the smallest screen."""


def participants_table(
    participants: Sequence[ParticipantStatus], most_lines: int | None = None
) -> list[RenderableType]:
    """Return a table with a row for each participant; a count that is 0 for all of them has no column.

    Beyond `most_lines` lines it has the first rows by ORDER, and a line says how many are left out. None means all
    rows.
    """
    if not participants:
        return [Text("\nNo participant has said hello yet.", style="yellow")]
    shown = participants
    if most_lines is not None and len(participants) > most_lines - HEADING_LINES:
        room = max(LEAST_ROWS, most_lines - HEADING_LINES - LEFT_OUT_LINES)
        shown = sorted(participants, key=lambda one: _rank(one.state))[:room]
    counts = {
        "accepted": "ac-\ncepted",
        "discarded": "dis-\ncarded",
        "declined": "de-\nclined",
    }
    names = [name for name in counts if name == "accepted" or any(getattr(one, name) for one in participants)]
    # At a width of 80 columns no column is cut.
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("\nparticipant", no_wrap=True)
    table.add_column("\nstate", no_wrap=True)
    for column in ("seen\nago", "exam-\nples", *(counts[name] for name in names), "stale-\nness"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in shown:
        table.add_row(
            Text(one.participant_id),
            state_text(one),
            age(one.last_seen_ago_s),
            f"{one.num_examples:,}",
            *(str(getattr(one, name)) for name in names),
            "–" if one.last_staleness is None else str(one.last_staleness),
        )
    left_out = len(participants) - len(shown)
    if not left_out:
        return [table]
    missing = Counter(one.state for one in participants) - Counter(one.state for one in shown)
    states = ", ".join(f"{missing[state]:,} {state}" for state in sorted(missing, key=_rank))
    return [table, Text(f"and {left_out:,} more ({states}): fedmq status --all shows them", style="bold")]


def _rank(state: str) -> int:
    return ORDER.index(state) if state in ORDER else len(ORDER)


def state_text(one: ParticipantStatus) -> Text:
    """Return the state, with the reason of an absence, a mark if it lacks the run's codec, and the task's base version
    and age if there is a task."""
    text = Text(one.state, style=STATE_STYLES.get(one.state, ""))
    if one.why_away in {"left", "revoked"}:
        text.append(f" ({one.why_away})", "dim")
    if one.lacks:
        text.append(" plain", "yellow")
    if one.base_version is not None and one.task_age_s is not None:
        text.append(f" v{one.base_version} {age(one.task_age_s)}", "dim")
    return text
