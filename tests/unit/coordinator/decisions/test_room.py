"""A strategy that keeps something for each participant has room for a fixed number of them."""

from __future__ import annotations

from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.strategies import Ca2fl
from tests.unit.coordinator.decisions.harness import Bench, of


def test_participants_beyond_the_strategys_room_are_known_but_get_no_tasks():
    bench = Bench(Ca2fl(num_participants=2, buffer_size=2), concurrency=3)
    issued = of(IssueTask, bench.hello("a", "b", "c"))
    assert sorted(task.participant_id for task in issued) == ["a", "b"]
    issued += of(IssueTask, bench.update(issued[0], t=1.0))
    assert issued[-1].participant_id == issued[0].participant_id
    assert {task.participant_id for task in of(IssueTask, bench.restart())} <= {"a", "b"}
    assert "c" in bench.participants
    assert [bench.core.has_room_for(p) for p in ("a", "b", "c", "nobody")] == [True, True, False, True]
