"""Draw what `fedmq explain` found (rich)."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fedmq.coordinator.audit.audit import Explanation
from fedmq.coordinator.state.ledger.traffic import Traffic
from fedmq.schemas.texts import escaped
from fedmq.views.forms import forms_text
from fedmq.views.sizes import models_text, size, traffic_text


def explanation_view(found: Explanation) -> Iterator[RenderableType]:
    """Yield a title, a table with a row for each update, and lines on what else is known of the version.

    A screen that is too narrow for the table shortens the names of the tasks, and nothing else.
    """
    point = found.point
    how = ", by its buffer's timeout" if point.by_timeout else ""
    yield Text(
        f"Version {point.version}: {point.num_updates} updates, after {point.run_s:.1f} s of run time{how}", "bold"
    )
    if point.plain is not None:
        yield Text(
            f"It is the plain mean, and was not distilled: {escaped(point.plain)}"
            if point.plain
            else "It was distilled from the models of these updates"
        )
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("\nparticipant", no_wrap=True)
    table.add_column("\ntask", overflow="ellipsis")
    grouped = any(row.arrival_group is not None for row in found.updates)
    numbers = ("\nbase", "stale-\nness", "exam-\nples", "client\nweight", "\nweight", "\nloss")
    sizes = any(row.wire_bytes is not None for row in found.updates)
    for heading in (*numbers, *["\ngroup"] * grouped, *["\nsent"] * sizes):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.updates:
        loss = row.metrics.get("loss")
        table.add_row(
            Text(escaped(row.participant_id)), Text(escaped(row.task_id)), str(row.base_version), str(row.staleness),
            f"{row.num_examples:,}", f"{row.client_weight:.4g}", f"{row.weight:.4g}",
            "" if loss is None else f"{loss:.4g}",
            *["late" if row.arrival_group is None else str(row.arrival_group)] * grouped,
            *["" if row.wire_bytes is None else size(row.wire_bytes)] * sizes,
        )  # fmt: skip
    yield table
    counted = [row for row in found.updates if row.wire_bytes is not None]
    if counted:
        total = Traffic(
            len(counted), sum(row.wire_bytes or 0 for row in counted), sum(row.decoded_bytes or 0 for row in counted)
        )
        which = "" if len(counted) == len(found.updates) else f" of {len(counted)} of the updates"
        yield Text(f"Bytes up{which}: {traffic_text(total)}")
    if told := models_text(found.models):
        yield Text(f"Of tasks from version {point.version}, {told}")
    if told := forms_text(found.forms):
        yield Text(f"Since the coordinator's last start: {told}")
    for lost in found.lost:
        why = "the method began anew" if lost.anew else "their version failed"
        yield Text(f"Before it, {lost.count} accepted updates were discarded, because {why}: {escaped(lost.reason)}")
    if found.metrics:
        yield Text(
            "On the test data: " + "  ".join(f"{escaped(name)} {value:.4f}" for name, value in found.metrics.items())
        )
