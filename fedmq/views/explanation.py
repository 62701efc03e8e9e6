"""Draw what `fedmq explain` found (rich)."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fedmq.coordinator.audit.audit import Explanation
from fedmq.schemas.texts import escaped


def explanation_view(found: Explanation) -> Iterator[RenderableType]:
    """Yield a title, a table with a row for each update, and lines on what else is known of the version.

    A screen that is too narrow for the table shortens the names of the tasks, and nothing else.
    """
    point = found.point
    how = ", by its buffer's timeout" if point.by_timeout else ""
    yield Text(
        f"Version {point.version}: {point.num_updates} updates, after {point.run_s:.1f} s of run time{how}", "bold"
    )
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("\nparticipant", no_wrap=True)
    table.add_column("\ntask", overflow="ellipsis")
    grouped = any(row.arrival_group is not None for row in found.updates)
    numbers = ("\nbase", "stale-\nness", "exam-\nples", "client\nweight", "\nweight", "\nloss")
    for heading in (*numbers, *["\ngroup"] * grouped):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.updates:
        loss = row.metrics.get("loss")
        table.add_row(
            Text(escaped(row.participant_id)), Text(escaped(row.task_id)), str(row.base_version), str(row.staleness),
            f"{row.num_examples:,}", f"{row.client_weight:.4g}", f"{row.weight:.4g}",
            "" if loss is None else f"{loss:.4g}",
            *["late" if row.arrival_group is None else str(row.arrival_group)] * grouped,
        )  # fmt: skip
    yield table
    for lost in found.lost:
        why = "the method began anew" if lost.anew else "their version failed"
        yield Text(f"Before it, {lost.count} accepted updates were discarded, because {why}: {escaped(lost.reason)}")
    if found.metrics:
        yield Text(
            "On the test data: " + "  ".join(f"{escaped(name)} {value:.4f}" for name, value in found.metrics.items())
        )
