"""Each number that a participant reports, in the extreme, with each strategy: the model stays finite, and one liar in
ten moves it by no more than its share allows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedmq.coordinator.audit import audit
from fedmq.coordinator.decisions.failures import StrategyFailed
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import AnyStrategy, Distillation, FedNova, ParticipationCorrection
from fedmq.coordinator.strategies.protocol import ClientUpdate
from fedmq.schemas.messages import Task
from fedmq.schemas.parameters import Parameters
from tests.integration.coordinator.federation import Federation, Participant, delta, update_for
from tests.security import liars

NAMES = list(liars.STRATEGIES)


def test_every_strategy_is_tried() -> None:
    built_in = {kind.__name__ for kind in AnyStrategy.__origin__.__args__}  # type: ignore[attr-defined]
    assert {type(strategy).__name__ for strategy in liars.STRATEGIES.values()} == built_in - {"Distillation"}


def test_a_liar_among_distributions_has_its_weight_and_no_more_whatever_it_sends() -> None:
    """Distillation's updates are rows of probabilities, so the liars' directions mean nothing there."""
    honest = np.full((2, 2), 0.5, np.float32)
    for told in ([[0, 0], [0, 0]], [[1e15, 0], [0, 1e15]], [[-1e15, 1], [1, -1e15]], [[1e-38, 0], [0, 1e-38]]):
        strategy = Distillation(buffer_size=10)
        initial = Parameters({"public": honest})
        state = strategy.init(initial)
        for i in range(10):
            sent = Parameters({"public": np.float32(told) if i == 9 else honest})
            state = strategy.accumulate(state, ClientUpdate(str(i), str(i), 0, sent, 64), 0)
        _, made = strategy.aggregate(state, initial)
        assert np.abs(made["public"] - honest).max() <= 0.1 * 0.5 + 1e-6
        assert made["public"].sum(axis=1) == pytest.approx([1, 1], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_no_number_makes_the_model_infinite_or_ends_the_core(name: str) -> None:
    for kind in liars.kinds_of(liars.STRATEGIES[name]):
        for lie in liars.lies_about(kind):
            story = liars.told(name, kind, lie.name)
            assert story.finite, (kind, lie.name)
            reason = liars.REFUSED.get(lie.name)
            waits = reason is not None and liars.STRATEGIES[name].cohort is not None
            assert story.versions >= 1 or waits, f"{kind}, {lie.name}: only a round of all ten waits for its deadline"
            if reason is None:
                assert story.accepted_of_liar >= 1, f"{kind}, {lie.name}: an update is not discarded for a bound"
                assert story.discarded == {}, (kind, lie.name)
            else:
                assert story.accepted_of_liar == 0, (kind, lie.name)
                assert set(story.discarded) == {reason}, (kind, lie.name)


@pytest.mark.parametrize("name", NAMES)
def test_one_liar_in_ten_has_no_more_than_its_share_and_takes_nobody_elses_away(name: str) -> None:
    strategy = liars.STRATEGIES[name]
    for kind in liars.kinds_of(strategy):
        worst = liars.worst(name, kind)
        assert worst.share <= liars.allowed(name, kind) + 0.01, kind
        truth = liars.told(name, kind, liars.TRUTH.name)
        most = 10.0 if name == "participation, duration" or name.startswith("fednova") else 1.5
        for lie in liars.lies_about(kind):
            if lie.tensors is None and lie.name not in liars.REFUSED and (name != "fedasync" or kind == "equal"):
                ratio = liars.told(name, kind, lie.name).honest / truth.honest
                assert 0.25 <= ratio <= most, f"{kind}, {lie.name}: the others' part is {ratio:.3g} times as large"


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_the_page_is_what_was_measured(name: str) -> None:
    ((_, cells),) = liars.rows([name])
    found = [line for line in liars.written().splitlines() if line.startswith(f"| {name} |")]
    assert len(found) == 1, "python -m tests.security.liars --write"
    for mine, theirs in zip(cells, found[0].strip("| ").split(" | ")[1:], strict=True):
        if mine == "–":
            assert theirs == mine
        else:
            assert float(theirs) == pytest.approx(float(mine), abs=0.011)


@pytest.mark.parametrize("name", NAMES)
def test_four_updates_of_the_largest_float_make_no_version_even_if_nobody_looks_at_their_size(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the size is off: the core refuses the version, or the updates one by one."""
    monkeypatch.setattr("fedmq.schemas.codec.check_magnitudes", lambda _: None)
    lie = liars.Lie("everybody", tensors=3.4e38)
    world = liars.World(liars.STRATEGIES[name], "equal", lie)
    monkeypatch.setattr(liars, "LIAR", "p0")
    reasons = set()
    try:
        for liar in ("p0", "p1", "p2", "p3"):
            monkeypatch.setattr(liars, "LIAR", liar)
            world.run(20)
            world.core.check_finite()
    except StrategyFailed as failed:
        reasons.add(failed.failure.reason)
    assert reasons <= {"overflow"}
    assert np.isfinite(world.core.parameters["w"]).all()


# The service


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path / "run")
    made.concurrency = 10
    yield made
    made.close()


def lying(numbers: dict[str, object], p: Participant, task: Task) -> None:
    p.send_update(update_for(task, **{"num_steps": 1, "train_s": 0.0} | numbers), delta(task.task_id))


@pytest.mark.parametrize("numbers", [{"num_steps": 0}, {"num_steps": 2**53, "train_s": 1.7e308, "num_examples": 2**53}])
@pytest.mark.parametrize(
    "strategy", [FedNova(buffer_size=3), ParticipationCorrection(buffer_size=3, measure="duration")],
    ids=["fednova", "participation"],
)  # fmt: skip
def test_what_is_clamped_is_recorded_as_it_was_used_and_told_in_the_status(
    federation: Federation, strategy: object, numbers: dict[str, object]
) -> None:
    federation.strategy = strategy
    liar = federation.join("liar", partial(lying, numbers))
    for name in ("a", "b"):
        federation.join(name, partial(lying, {}))
    summary = federation.run()
    assert liar.tasks
    assert (summary.finished, summary.version) == ("max_versions", 5)
    with federation.ledger() as ledger:
        rows = [row for row in ledger.updates() if row.participant_id == "liar"]
        assert rows
        assert {row.num_steps for row in rows} <= ({1} if numbers["num_steps"] == 0 else {312_500})
        assert all(0 <= row.train_s < 60 for row in rows), "no task is older than the run"
        assert all(row.num_examples <= 10_000_000 for row in rows)
        assert ledger.clamped()["num_steps"] == len(rows)
    assert [check for check in audit.verify(RunFolder(federation.run_dir)) if not check.holds] == []
    assert np.isfinite(federation.final()["000/w"]).all()


def test_a_training_that_outlasts_the_coordinators_downtime_is_believed(federation: Federation) -> None:
    """Run time stands still while no coordinator is up, and participants train on."""
    waiting: list[tuple[Participant, Task]] = []
    federation.stop = federation.stop.model_copy(update={"max_versions": 1})
    late = federation.join("late", lambda p, task: waiting.append((p, task)))
    service = federation.service()
    running = federation.start(service)
    late.wait_until(lambda: len(late.tasks) == 1)
    service.stop()
    running.result(30)
    with federation.ledger() as ledger:
        elapsed_s = ledger.run().elapsed_s
    _age(federation, 3600.0)
    p, task = waiting[0]
    p.send_update(update_for(task, num_steps=1, train_s=1800.0), delta(task.task_id))
    for name in ("a", "b"):
        federation.join(name, partial(lying, {}))
    federation.run(initial_parameters=lambda: Parameters({}))
    with federation.ledger() as ledger:
        (row,) = [row for row in ledger.updates() if row.participant_id == "late"]
        assert elapsed_s < 60
        assert row.train_s == 1800.0
        assert "train_s" not in ledger.clamped()


def _age(federation: Federation, seconds: float) -> None:
    """Let the last commit be so many seconds older."""
    import sqlite3

    with sqlite3.connect(federation.run_dir / "ledger.sqlite") as db:
        db.execute("UPDATE run SET committed_wall_s = committed_wall_s - ?", (seconds,))
    db.close()


def test_largest_numbers_are_the_largest_that_the_types_allow() -> None:
    assert math.nextafter(liars.FAR, math.inf) == math.inf
    assert liars.LARGEST == 2**53
