"""The text that `fedmq study` prints at its end."""

from dataclasses import replace

from rich.console import Console

from fedmq.coordinator.settings import TargetMetric
from fedmq.views.study_screen import summary
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
