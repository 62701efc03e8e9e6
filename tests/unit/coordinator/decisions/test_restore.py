"""A restored core goes on exactly as the one that wrote the snapshot: commands, rows and parameters, to the byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.decisions.events import (
    EvaluationArrived,
    Event,
    ParticipantSeen,
    PoisonArrived,
    TaskDeclined,
    TaskUndeliverable,
    Tick,
    UpdateArrived,
)
from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.strategies.area import Area
from fedmq.coordinator.strategies.ca2fl import Ca2fl
from fedmq.coordinator.strategies.fedasync import FedAsync
from fedmq.coordinator.strategies.fedavg import FedAvg
from fedmq.coordinator.strategies.fedbuff import FedBuff
from fedmq.coordinator.strategies.fedcompass import FedCompass
from fedmq.coordinator.strategies.participation import ParticipationCorrection
from fedmq.schemas.messages import Hello, Update, update_id
from fedmq.schemas.parameters import Parameters
from tests.unit.coordinator.decisions.harness import Bench

STRATEGIES = [
    FedBuff(buffer_size=3), FedAsync(), FedAvg(cohort_size=3, over_selection=1.5, round_deadline_s=40.0),
    ParticipationCorrection(buffer_size=3), Ca2fl(num_participants=5, buffer_size=3),
    Area(num_participants=6, buffer_size=2),
    FedCompass(num_participants=5, min_steps=2, max_steps=6, latest_factor=1.2),
]  # fmt: skip


USERS = ["many", "many", "one", "two", None]


def some_event(
    rng: np.random.Generator, tasks: list[IssueTask], reply: Any, delivery: int, version: int, users: bool
) -> Event:
    """Return an event of any kind, more often one that makes progress."""
    name = f"p{rng.integers(12)}"
    task = tasks[-1 - int(rng.integers(min(len(tasks), 12)))] if tasks else None
    kind = rng.choice(["hello", "update", "decline", "undeliverable", "evaluation", "tick", "poison"],
                      p=[0.25, 0.45, 0.08, 0.04, 0.08, 0.08, 0.02])  # fmt: skip
    if kind == "hello" or (task is None and kind in ("update", "decline", "undeliverable", "poison")):
        held = tuple(t.task_id for t in tasks[-8:] if t.participant_id == name and rng.random() < 0.7)
        hello = Hello(
            participant_id=name, session_id=f"s{rng.integers(2)}", num_examples=int(rng.integers(0, 50)),
            accepting=bool(rng.random() < 0.8), task_ids=held,
        )  # fmt: skip
        return ParticipantSeen(hello, USERS[int(rng.integers(len(USERS)))] if users else "")
    if kind == "update":
        update = Update(
            update_id=update_id("run", task.task_id, task.participant_id), task_id=task.task_id, run_id="run",
            participant_id=task.participant_id, base_version=task.base_version + int(rng.random() < 0.02),
            payload=reply, num_examples=int(rng.integers(1, 50)), num_steps=1, train_s=1.0,
            metrics={"loss": float(rng.exponential())},
        )  # fmt: skip
        size = 3 if rng.random() < 0.97 else 2
        return UpdateArrived(delivery, update, Parameters({"w": rng.standard_normal(size).astype(np.float32)}))
    if kind == "decline":
        reason = str(rng.choice(["busy", "trainer_error", "lease_over"]))
        return TaskDeclined(task.participant_id, task.task_id, "run", reason, retry_after_s=float(rng.uniform(0, 20)))
    if kind == "undeliverable":
        return TaskUndeliverable(task.task_id, "no queue")
    if kind == "poison":
        return PoisonArrived(delivery, "not_finite", "NaN", task.task_id)
    if kind == "evaluation":
        return EvaluationArrived(max(0, version - int(rng.integers(2))), {"accuracy": float(rng.random())})
    return Tick()


def with_closed(bench: Bench, event: Event) -> Event:
    if isinstance(event, UpdateArrived):
        return UpdateArrived(event.delivery, event.update, event.payload, bench.closed(event.update.task_id))
    return event


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    strategy=st.sampled_from(STRATEGIES),
    before=st.integers(0, 120),
    selection=st.sampled_from(["uniform", "least_used"]),
    max_staleness=st.sampled_from([None, 2]),
    client_weights=st.sampled_from(["equal", "examples", "quality"]),
    users=st.booleans(),
    most=st.sampled_from([(10_000, None), (5, None), (8, 3)]),
)
def test_a_restored_core_goes_on_as_if_nothing_had_happened(
    seed, strategy, before, selection, max_staleness, client_weights, users, most
):
    run = {
        "selection": selection, "max_staleness": max_staleness, "client_weights": client_weights, "concurrency": 3,
        "lease_s": 30.0, "seed": 5, "stop": StopSettings(max_updates=100), "min_participants": 2,
        "evaluate_interval_s": 5.0, "max_participants": most[0], "max_per_user": most[1], "participant_timeout_s": 40.0,
    }  # fmt: skip
    model = Parameters({"w": np.zeros(3, np.float32), "steps": np.ones((2,), np.int64)}, {"steps"})
    one = Bench(strategy, evaluates=True, model=model, **run)
    two: Bench | None = None
    rng = np.random.default_rng(seed)
    tasks: list[IssueTask] = []
    t = 0.0
    for i in range(before + 60):
        if i == before:
            two = Bench(strategy, evaluates=True, model=model, **run).restore(one.save())
        t += float(rng.exponential(3.0))
        event = some_event(rng, tasks, strategy.reply, i, one.core.version, users)
        commands = one.step(with_closed(one, event), t)
        tasks += [c for c in commands if isinstance(c, IssueTask)]
        commit = rng.random() < 0.3
        changes = one.commit() if commit else None
        if two is not None:
            assert two.step(with_closed(two, event), t) == commands
            if commit:
                assert two.commit() == changes
    ours, theirs = one.save().snapshot, two.save().snapshot
    assert ours.scalars == theirs.scalars
    assert {n: a.tobytes() for n, a in ours.arrays.items()} == {n: a.tobytes() for n, a in theirs.arrays.items()}


def test_records_that_do_not_fit_together_are_refused():
    bench = Bench()
    bench.hello("a", "b")
    saved = bench.save()
    del saved.participants["a"]
    with pytest.raises(ValueError, match="seq"):
        bench.restore(saved)


def test_forgotten_changes_are_no_rows_of_the_next_ones():
    bench = Bench()
    bench.hello("a", "b")
    bench.core.forget_changes()
    changes = bench.core.changes()
    assert (changes.participants, changes.tasks, changes.memories) == ({}, {}, {})
    bench.hello("b")
    assert list(bench.core.changes().participants) == ["b"]
