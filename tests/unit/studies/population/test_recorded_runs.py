"""The participants that a study takes from a run's ledger, and the order in which its tasks went out."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace as Row

import pytest

from fedmq.schemas.errors import ConfigError
from fedmq.studies.population import recorded_runs as recorded
from fedmq.studies.population.recorded_runs import History, RecordedTask, lanes, offers


def task(order, issued_s, arrived_s, seq=None):
    return RecordedTask(order, order if seq is None else seq, issued_s, arrived_s, 1.0)


class Ledger:
    """Make a run of two participants with accepted updates and one without."""

    updates_of = ("a-1", "b-1", "a-2")

    def __init__(self, _path):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def at_one_moment(self):
        return nullcontext()

    def updates(self):
        rows = enumerate(self.updates_of, 1)
        return [Row(task_id=t, accepted_order=i, run_s=10.0 * i, train_s=0.5 * i) for i, t in rows]

    def participants(self):
        found = [("c", 2, 7), ("b", 1, 6), ("a", 0, 5)]
        return [Row(record=Row(participant_id=p, seq=seq, num_examples=n)) for p, seq, n in found]

    def tasks_without_update(self):
        return {"a": {"declined": 1, "lapsed": 5, "withdrawn": 9}, "c": {"lapsed": 3}}

    def accepted_tasks(self):
        return [Row(task_id=t, participant_id=t[0], seq=i, issued_s=float(i)) for i, t in enumerate(self.updates_of, 1)]


def test_dropouts_are_parts_of_the_tasks_that_say_something_of_their_participant(monkeypatch):
    monkeypatch.setattr(recorded, "LedgerReader", Ledger)
    a, b = recorded._histories.__wrapped__("run")
    assert (a.participant_id, a.num_examples, a.declines, a.vanishes) == ("a", 5, 1 / 8, 5 / 8)
    assert (b.participant_id, b.num_examples, b.declines, b.vanishes) == ("b", 6, 0, 0)
    assert a.tasks == (RecordedTask(1, 1, 1.0, 10.0, 0.5), RecordedTask(3, 3, 3.0, 30.0, 1.5))
    assert [t.duration_s for t in a.tasks] == [9.0, 27.0]
    monkeypatch.setattr(Ledger, "updates_of", ())
    with pytest.raises(ConfigError, match="accepted no update"):
        recorded._histories.__wrapped__("run")


def test_each_task_is_drawn_equally_often():
    history = History("a", 1, (task(1, 0.0, 1.0), task(2, 1.0, 2.0), task(3, 2.0, 3.0), task(4, 3.0, 4.0)))
    assert [history.drawn(u).order for u in (0.0, 0.24, 0.25, 0.5, 0.75, 0.99)] == [1, 1, 2, 3, 4, 4]


def test_tasks_that_overlap_are_in_lanes_of_their_own():
    first, second, third, fourth = task(1, 0.0, 5.0), task(2, 3.0, 4.0), task(3, 4.0, 9.0), task(4, 5.0, 6.0)
    found = lanes([History("a", 7, (first, second, third, fourth)), History("b", 8, (first,))])
    assert [(h.participant_id, h.num_examples, h.tasks) for h in found] == [
        ("a", 7, (first, fourth)),
        ("a", 7, (second, third)),
        ("b", 8, (first,)),
    ]


def test_tasks_go_out_by_their_moments_and_at_one_moment_by_their_numbers():
    a = History("a", 1, (task(1, 0.0, 1.0, seq=3), task(2, 2.0, 3.0, seq=4)))
    b = History("b", 1, (task(3, 0.0, 1.0, seq=1), task(4, 1.0, 3.0, seq=5)))
    assert [(lane, t.seq) for lane, t in offers([a, b])] == [(1, 1), (0, 3), (1, 5), (0, 4)]
