"""A run of two participants, written down by hand, in the engine in its own order."""

from __future__ import annotations

from dataclasses import replace

from fedmq.coordinator.strategies import FedAvg
from fedmq.studies.population.population import Population
from fedmq.studies.population.recorded_runs import History, RecordedTask
from tests.scenario.studies.federations import STEP, Quadratics, fedbuff, population, simulate, until


class Recorded:
    """A population in the recorded order, with histories given in place of a run's."""

    order = "recorded"
    takes_time = True

    def __init__(self, **tasks):
        """Set participant -> (issued_s, arrived_s) of its tasks."""
        issued = sorted((issued, name, i) for name, own in tasks.items() for i, (issued, _) in enumerate(own))
        arrived = sorted((arrived, name, i) for name, own in tasks.items() for i, (_, arrived) in enumerate(own))
        seqs = {(name, i): seq for seq, (_, name, i) in enumerate(issued, 1)}
        orders = {(name, i): order for order, (_, name, i) in enumerate(arrived, 1)}
        self._histories = [
            History(name, 1, tuple(RecordedTask(orders[name, i], seqs[name, i], *t, 1.0) for i, t in enumerate(own)))
            for name, own in tasks.items()
        ]
        self._inner: Population = population(len(tasks))

    def members(self, seed):
        return [replace(m, history=h) for m, h in zip(self._inner.members(seed), self._histories, strict=True)]

    def __getattr__(self, name):
        return getattr(self._inner, name)


def played(strategy, **tasks):
    outcome = simulate(strategy, Quadratics(), Recorded(**tasks), until(100, concurrency=2), STEP)
    updates = list(zip(outcome.updates.time_s, outcome.updates.participant, outcome.updates.staleness, strict=True))
    return updates, outcome.missed_arrivals, outcome.finished


def test_an_asynchronous_strategy_meets_the_runs_own_moments_and_staleness():
    updates, missed, finished = played(fedbuff(1), a=[(0.0, 4.0), (4.0, 6.0)], b=[(1.0, 3.0), (3.0, 9.0)])
    assert updates == [(3.0, 1, 0), (4.0, 0, 1), (6.0, 0, 0), (9.0, 1, 2)]
    assert (missed, finished) == (0, "record_over")


def test_a_synchronous_one_takes_offers_when_a_round_opens_and_counts_those_that_it_missed():
    """The round waits for a while b offers itself at 3 and at 3.5. At 4 b begins the first of these tasks, which takes
    its recorded time."""
    updates, missed, finished = played(
        FedAvg(cohort_size=2), a=[(0.0, 4.0), (4.0, 6.0)], b=[(1.0, 3.0), (3.0, 3.5), (3.5, 9.0)]
    )
    assert updates == [(3.0, 1, 0), (4.0, 0, 0), (4.5, 1, 0), (6.0, 0, 0)]
    assert (missed, finished) == (1, "record_over")
