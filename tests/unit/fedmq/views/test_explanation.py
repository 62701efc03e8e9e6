"""The text that `fedmq explain` prints, and tables in pipes."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from fedmq.coordinator.audit.audit import Explanation
from fedmq.coordinator.state.ledger.rows import UpdateRow, VersionRow
from fedmq.views.explanation import explanation_view
from fedmq.views.sizes import size
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


def test_the_bytes_of_a_versions_updates_are_shown_as_far_as_they_were_counted():
    screen = Console(file=io.StringIO(), width=120, color_system=None)
    sent = replace(ROW, wire_bytes=51_250, decoded_bytes=203_560)
    screen.print(*explanation_view(replace(FOUND, updates=(ROW, sent))), sep="\n")
    _, _, heading, first, second, total, *_ = screen.file.getvalue().splitlines()
    assert heading.split()[-2:] == ["loss", "sent"]
    assert [line.split()[-1] for line in (first, second)] == ["0.04643", "kB"]
    assert total == "Bytes up of 1 of the updates: 51.2 kB (decoded 204 kB, 3.97 times as much)"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (99_960, "100 kB"), (3_760_000, "3.76 MB")],
)
def test_sizes_have_three_digits_and_a_unit(num_bytes, text):
    assert size(num_bytes) == text


def test_a_pipe_has_every_table_as_wide_as_it_is():
    pipe = Console(file=io.StringIO(), width=80)
    print_uncut(pipe, explanation_view(FOUND))
    assert TASK in pipe.file.getvalue()
    pipe = Console(file=io.StringIO(), width=80)
    print_uncut(pipe, [status_view(run(participants=(participant("p" * 64, declined=1, discarded=3),)))])
    (row,) = (line for line in pipe.file.getvalue().splitlines() if line.startswith("pp"))
    assert row.split() == ["p" * 64, "training", "v4", "0.5", "s", "3.0", "s", "1,200", "7", "3", "1", "2"]
