"""A recorded deployment in the studies' engine: the same parameters bit for bit, the same staleness, and the results of
other strategies."""

import pytest

from fedmq.coordinator.settings import ArchiveSettings, StopSettings
from fedmq.coordinator.strategies import Area, Ca2fl, FedAsync, FedAvg, FedBuff, FedCompass, FedNova
from fedmq.coordinator.strategies.math.server_optimizers import Adam
from fedmq.coordinator.strategies.math.staleness_weights import Polynomial
from fedmq.schemas.errors import InputError, StateError
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.engine.replay import replay
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.population import Population
from fedmq.studies.population.recorded_runs import histories, lanes
from fedmq.studies.problems.quadratics import Quadratics
from fedmq.studies.simulate import simulate
from tests.integration.coordinator.federation import Federation, same_bits
from tests.integration.coordinator.test_crashes import Crashed, crash_at

FEDBUFF = FedBuff(buffer_size=3, staleness=Polynomial(0.5))
STRATEGIES = [FEDBUFF, FedAsync(), Ca2fl(num_participants=4, buffer_size=3), Area(num_participants=4, buffer_size=2)]
COMPASS = FedCompass(num_participants=4, min_steps=1, max_steps=4, latest_factor=1.2)
TRAINING = TrainingConfig(learning_rate=0.1)


@pytest.fixture
def record(tmp_path):
    """Give record(strategy), which returns the federation of a finished run. One of its four participants declines now
    and then."""
    federation = Federation(tmp_path / "run")

    def run(strategy, join=True, p1=None, **changed):
        federation.strategy, federation.archive = strategy, ArchiveSettings(max_bytes=2**30)
        federation.stop = StopSettings(max_updates=31)
        for i in range(4 if join else 0):
            federation.join(f"p{i}", p1 if i == 1 else None)
        federation.run(**changed)
        return federation

    yield run
    federation.close()


@pytest.mark.parametrize("strategy", [*STRATEGIES, COMPASS], ids=lambda strategy: strategy.name)
def test_a_recorded_deployment_replays_in_the_engine_to_the_same_parameters_bit_for_bit(record, strategy):
    federation = record(strategy)
    outcome = replay(federation.run_dir)
    assert same_bits(outcome.parameters, federation.final())
    with federation.ledger() as ledger:
        rows, points = ledger.updates(), ledger.versions()
    assert list(outcome.updates.staleness) == [row.staleness for row in rows]
    made = [row.weight or 0.0 for row in rows][: len(outcome.updates.weight)]
    assert (list(outcome.updates.weight), {row.version for row in rows[len(made) :]} - {None}) == (made, set())
    assert list(outcome.version_s) == [point.run_s for point in points]
    assert len(set(outcome.updates.staleness)) > 1, "a run without staleness shows little"


def answers_every_other(p, task):
    """Train every other task, and forget the rest."""
    if len(p.tasks) % 2:
        p.train(task)


ROUNDS = [
    FedAvg(cohort_size=2, over_selection=2.0),
    FedNova(cohort_size=4),
    FedAvg(cohort_size=4, round_deadline_s=0.3, min_updates=2, server_optimizer=Adam()),
]


@pytest.mark.parametrize("strategy", ROUNDS, ids=["over-selected", "fednova", "ended by its deadline"])
def test_recorded_rounds_replay_in_the_engine_to_the_same_parameters_bit_for_bit(record, strategy):
    by_deadline = strategy is ROUNDS[2]
    federation = record(strategy, p1=answers_every_other if by_deadline else None)
    with federation.ledger() as ledger:
        rows, points = ledger.updates(), ledger.versions()
    smallest = min(point.num_updates for point in points)
    assert (smallest < strategy.cohort.size) == by_deadline, "the rounds of this run were others"
    outcome = replay(federation.run_dir)
    assert same_bits(outcome.parameters, federation.final())
    assert list(outcome.updates.weight) == [row.weight for row in rows if row.version is not None]
    assert list(outcome.version_s) == [point.run_s for point in points]


def loses_its_first_task(p, task):
    """Lose the first task, get another one, and train both in the end, the second one first."""
    if len(p.tasks) == 1:
        p.session, p.accepting, p.held = 2, False, []
        p.hello()
        p.accepting = True
        p.hello()
        return
    p.train(task)
    if len(p.tasks) == 2:
        p.train(p.tasks[0])


@pytest.mark.parametrize("strategy", [FEDBUFF, *STRATEGIES[2:], COMPASS], ids=lambda strategy: strategy.name)
def test_a_crash_run_with_a_lapsed_task_of_a_participant_that_had_the_next_one_replays(record, monkeypatch, strategy):
    """Two tasks of one participant are in training at a time.

    To a strategy that remembers participants they are one's.
    """
    crash_at(monkeypatch, "before-acks", 6)
    with pytest.raises(Crashed):
        record(strategy, p1=loses_its_first_task)
    federation = record(strategy, join=False)
    two = [history for history in lanes(histories(str(federation.run_dir))) if history.participant_id == "p1"]
    assert len(two) == 2, "no two tasks of p1 were in training at a time"
    assert same_bits(replay(federation.run_dir).parameters, federation.final())


@pytest.mark.parametrize("strategy", STRATEGIES[:2], ids=lambda strategy: strategy.name)
def test_the_recorded_order_gives_the_recorded_staleness_whatever_is_trained(record, strategy):
    federation = record(strategy)
    with federation.ledger() as ledger:
        recorded = [row.staleness for row in ledger.updates()]
    population = Population(run=str(federation.run_dir), order="recorded")
    run = StudyRun(stop=StopSettings(max_updates=31), concurrency=1)
    outcome = simulate(strategy, Quadratics(dimension=4), population, run, TRAINING)
    assert list(outcome.updates.staleness) == recorded
    other = simulate(FedBuff(buffer_size=1), Quadratics(dimension=4), population, run, TRAINING)
    assert list(other.updates.time_s) == list(outcome.updates.time_s), "the same updates at the same moments"
    assert sum(other.updates.staleness) > sum(recorded) or strategy.name == "fedasync"
    longer = StudyRun(stop=StopSettings(max_updates=1000))
    assert simulate(strategy, Quadratics(dimension=4), population, longer, TRAINING).finished == "record_over"


def test_a_drawn_population_has_the_recorded_durations_and_as_many_participants_as_are_asked_for(record):
    federation = record(FEDBUFF)
    run = str(federation.run_dir)
    recorded = histories(run)
    assert [history.participant_id for history in recorded] == [f"p{i}" for i in range(4)]
    durations = {task.duration_s for history in recorded for task in history.tasks}
    assert all(duration > 0 for duration in durations)
    many = Population(run=run, participants=10)
    members = many.members(3)
    assert [m.history for m in members] == [recorded[i % 4] for i in range(10)]
    assert {m.examples for m in members} == {10}
    settings = StudyRun(stop=StopSettings(max_updates=50), concurrency=5)
    first, again = (simulate(FedAsync(), Quadratics(dimension=4), many, settings, TRAINING, seed=1) for _ in range(2))
    assert first.digest() == again.digest()
    rounds = simulate(FedAvg(cohort_size=4), Quadratics(dimension=4), many, settings, TRAINING)
    assert rounds.finished == "max_updates"


def test_what_a_run_tells_of_dropouts_is_in_the_population(record):
    federation = record(FEDBUFF)
    population = Population(run=str(federation.run_dir))
    before = simulate(
        FEDBUFF, Quadratics(dimension=4), population, StudyRun(stop=StopSettings(max_updates=30)), TRAINING
    )
    assert before.dropouts == 0
    with federation.ledger() as ledger:
        accepted = ledger.accepted_by_participant()["p0"]
    import sqlite3

    with sqlite3.connect(federation.run_dir / "ledger.sqlite") as db:
        db.executemany(
            "INSERT INTO tasks VALUES (?, ?, 'p0', 0, 0, 0, 'declined', '', 0, 0)",
            [(10_000 + i, f"x-{i}") for i in range(accepted)],
        )
    db.close()
    assert [history.declines for history in histories(str(federation.run_dir))] == [0.5, 0, 0, 0]
    after = simulate(
        FEDBUFF, Quadratics(dimension=4), population, StudyRun(stop=StopSettings(max_updates=30)), TRAINING
    )
    assert after.dropouts > 0


def test_what_cannot_be_replayed_in_the_engine_is_said(record, tmp_path):
    federation = record(FEDBUFF, archive=None)
    with pytest.raises(InputError, match="no archive of all its updates"):
        replay(federation.run_dir)
    with pytest.raises(ValueError, match="no ledger"):
        Population(run=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="leave it out"):
        Population(run=str(federation.run_dir), order="recorded", participants=3)


def test_a_ledger_that_was_altered_does_not_replay(record):
    import sqlite3

    federation = record(FEDBUFF)
    with sqlite3.connect(federation.run_dir / "ledger.sqlite") as db:
        db.execute("UPDATE updates SET client_weight = 0.5 WHERE accepted_order = 7")
        db.commit()
        with pytest.raises(StateError, match="another state"):
            replay(federation.run_dir)
        db.execute("UPDATE updates SET staleness = staleness + 1 WHERE accepted_order = 5")
    db.close()
    with pytest.raises(
        StateError, match=r"as update 5 it has p\d's with staleness \d, the ledger p\d's .*31 updates of 31"
    ):
        replay(federation.run_dir)
