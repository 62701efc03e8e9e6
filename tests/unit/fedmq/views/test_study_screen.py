"""The text that `fedmq study` prints at its end."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from fedmq.coordinator.settings import TargetMetric
from fedmq.views.study_screen import failures, summary
from fedmq.views.uncut import print_uncut
from tests.unit.studies.report.test_report import CELL


def shown(results, target):
    console = Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(*summary(results, target))
    return captured.get()


def test_the_time_to_the_target_is_shown_where_there_is_one():
    slower = replace(CELL, strategy="B", evaluations=[CELL.evaluations[0], CELL.evaluations[2]])
    never = replace(slower, seed=1, evaluations=CELL.evaluations[:1])
    text = shown([CELL, slower, never], TargetMetric(name="accuracy", value=0.35))
    head, first, second = (line.split() for line in text.splitlines() if "accuracy" in line or "0.5" in line)
    assert head[-4:] == ["s", "to", "accuracy", "0.35"]
    assert first[-2:] == ["0.7", "1"]
    assert second[-5:] == ["1", "of", "2", "got", "there"]
    assert "got there" not in shown([CELL, slower, never], None)


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_table_is_never_cut_however_narrow_its_output_is(width):
    label = "a strategy with a label that is longer than any column" * 2
    printed = io.StringIO()
    console = Console(file=printed, width=width, color_system=None)
    print_uncut(console, summary([replace(CELL, strategy=label)], label_width=None))
    assert label in printed.getvalue()
    assert "…" not in printed.getvalue()
    assert printed.getvalue().splitlines()[-2].split()[-3:] == ["2", "0.5", "0.7"]


def test_labels_reach_no_terminal_as_commands():
    text = shown([replace(CELL, strategy="red \x1b[31m [bold]x[/bold]")], None)
    assert r"red \u001b[31m" in text
    assert "[bold]x[/bold]" in text
    (line,) = failures([replace(CELL, strategy="\x1b[2J", finished="stuck", detail="no\nway")])
    assert line == r"\u001b[2J, phones, seed 0 stuck at 2 s: no\nway"
    (line,) = failures([replace(CELL, finished="diverged", diverged_s=1.25)])
    assert line.endswith("seed 0 diverged at 1.25 s")
