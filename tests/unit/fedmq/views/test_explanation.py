"""The text that `fedmq explain` prints, and tables in pipes."""

import io

from rich.console import Console

from fedmq.coordinator.audit.audit import Explanation
from fedmq.coordinator.state.ledger.rows import UpdateRow, VersionRow
from fedmq.views.explanation import explanation_view
from fedmq.views.status_view import status_view
from fedmq.views.uncut import print_uncut
from tests.unit.fedmq.views.test_views import participant, run

TASK = "8d285b37-120.11.c510b0185a7501822761"
ROW = UpdateRow(4, "u", TASK, "sensor-1", 119, 12, 1.19054, 0.28061, 3, 1234567, 9, {"loss": 0.046432}, 1.0, 2.0, 3.0)
FOUND = Explanation(VersionRow(3, 1, 27.66, 9.0, by_timeout=True), (ROW,), {"accuracy": 0.5})


def test_a_narrow_screen_shortens_the_names_of_tasks_and_nothing_else():
    screen = Console(file=io.StringIO(), width=80, color_system=None)
    screen.print(*explanation_view(FOUND))
    title, _, heading, row, last = screen.file.getvalue().splitlines()
    assert title == "Version 3: 1 updates, after 27.7 s of run time, by its buffer's timeout"
    assert heading.split() == ["participant", "task", "base", "ness", "ples", "weight", "weight", "loss"]
    values = row.split()
    assert values[1].startswith("8d285b37-120")
    assert values[1].endswith("…")
    assert [values[0], *values[2:]] == ["sensor-1", "119", "12", "1,234,567", "1.191", "0.2806", "0.04643"]
    assert last == "On the test data: accuracy 0.5000"


def test_a_pipe_has_every_table_as_wide_as_it_is():
    pipe = Console(file=io.StringIO(), width=80)
    print_uncut(pipe, explanation_view(FOUND))
    assert TASK in pipe.file.getvalue()
    pipe = Console(file=io.StringIO(), width=80)
    print_uncut(pipe, [status_view(run(participants=(participant("p" * 64, declined=1, discarded=3),)))])
    (row,) = (line for line in pipe.file.getvalue().splitlines() if line.startswith("pp"))
    assert row.split() == ["p" * 64, "training", "v4", "0.5", "s", "3.0", "s", "1,200", "7", "3", "1", "2"]
