"""Partial work: FedProx's stragglers."""

from collections import Counter

import numpy as np
import pytest

import fedmq
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.population.partial_work import Effort, PartialWork
from fedmq.studies.problems.quadratics import QuadraticFederation
from fedmq.studies.sweep.cell_identity import plain
from tests.scenario.studies.federations import Given, fedbuff, population, until

FOUR = TrainingConfig(epochs=4, learning_rate=0.1)


def drawn(settings, training=FOUR, tasks=4000):
    effort = Effort(settings, np.random.default_rng(3))
    return [effort.of(training) for _ in range(tasks)]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_stragglers_do_a_uniform_number_of_epochs_from_one_to_all(share):
    done = Counter(training.epochs for training in drawn(PartialWork(share=share)))
    assert done[4] / 4000 == pytest.approx(1 - share + share / 4, abs=0.03)
    assert [done[e] / 4000 for e in (1, 2, 3)] == pytest.approx([share / 4] * 3, abs=0.03)


def test_a_task_that_is_asked_for_steps_does_fewer_steps():
    asked = FOUR.model_copy(update={"max_steps": 3})
    done = drawn(PartialWork(share=1), asked)
    assert Counter(t.max_steps for t in done).keys() == {1, 2, 3}
    assert {t.epochs for t in done} == {4}


def test_stragglers_may_be_the_same_participants_in_all_tasks():
    settings = PartialWork(share=0.5, of="participants")
    efforts = [Effort(settings, np.random.default_rng(seed)) for seed in range(200)]
    done = [frozenset(effort.of(FOUR).epochs for _ in range(60)) for effort in efforts]
    assert set(done) == {frozenset({4}), frozenset({1, 2, 3, 4})}
    assert done.count(frozenset({4})) == pytest.approx(100, abs=20)


def ran(settings, updates=60):
    people = population(4, task_s={"name": "constant", "value": 0}, partial_work=settings, examples=TEN)
    people = people.model_copy(update={"compute": PER_EXAMPLE})
    steps = []
    federation = QuadraticFederation(np.ones(4), np.zeros((4, 1)), [10] * 4, start=1.0)
    train = federation.backend.train

    class Noted:
        name = "noted"

        def train(self, jobs):
            trained = train(jobs)
            steps.extend(t.num_steps for t in trained)
            return trained

    federation.backend = Noted()
    return fedmq.simulate(fedbuff(2), Given(federation), people, until(updates, concurrency=2), FOUR), steps


TEN = {"name": "constant", "value": 10}
PER_EXAMPLE = fedmq.Population(
    participants=1,
    compute={"example_s": {"name": "constant", "value": 0.1}, "task_s": {"name": "constant", "value": 0}},
).compute


def test_partial_tasks_take_less_time_and_send_the_steps_that_they_did():
    outcome, steps = ran({"share": 1}, updates=800)
    assert set(steps) == {1, 2, 3, 4}
    waits = np.diff(np.array(outcome.updates.time_s))
    assert np.allclose(waits, np.round(waits)), "an epoch takes a second"
    assert np.mean(outcome.mean_task_s) == pytest.approx(2.5, abs=0.15)
    whole, all_steps = ran(None)
    assert (set(all_steps), whole.mean_task_s) == ({4}, [4.0] * 4)


def test_a_share_of_none_changes_no_bit():
    assert ran({"share": 0})[0].digest() == ran(None)[0].digest()


def test_how_much_tasks_do_changes_no_other_draw():
    people = population(5, task_s={"name": "exponential", "mean": 1})
    slow = people.model_copy(update={"partial_work": PartialWork(share=0.9)})
    runs = [fedmq.simulate(fedbuff(2), fedmq.Quadratics(), p, until(40), FOUR, seed=2) for p in (people, slow)]
    assert runs[0].updates.time_s == runs[1].updates.time_s
    assert runs[0].digest() != runs[1].digest()


def test_partial_work_of_a_single_epoch_is_refused():
    people = population(2, partial_work={"share": 0.5})
    with pytest.raises(fedmq.ConfigError, match="has no effect: a task asks for one epoch"):
        fedmq.simulate(fedbuff(1), fedmq.Quadratics(), people, until(4), TrainingConfig(learning_rate=0.1))


def test_shares_beyond_the_whole_are_refused():
    with pytest.raises(ValueError, match="less than or equal to 1"):
        population(2, partial_work={"share": 50})


def test_a_population_without_partial_work_is_known_by_what_it_was_known_by_before():
    assert "partial_work" not in plain(population(2))[2]
    assert "partial_work" in plain(population(2, partial_work={"share": 0.5}))[2]
