"""A strategy of the user's own that fails in the middle of a run, and its correction."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import fedmq
from tests.integration.coordinator.federation import same_bits


def first_to_halve(*, mistaken):
    """Return the strategy of one of two editions of the same file."""

    @dataclass(frozen=True)
    class FirstToHalve(fedmq.WeightedMean):
        """The first update of a buffer counts double."""

        def weight(self, update, staleness, state):
            if mistaken and update.base_version == 1:
                return float("nan")
            return 1.0 if state.count == 0 else 0.5

    return FirstToHalve(buffer_size=2)


@dataclass(frozen=True)
class ByPerplexity(fedmq.WeightedMean):
    def weight(self, update, staleness):
        return 1 / update.metrics["perplexity"]


def test_a_weight_that_raises_ends_the_run_with_the_strategys_name_and_what_was_raised(federation):
    federation.strategy = ByPerplexity(buffer_size=2)
    federation.join("p0")
    with pytest.raises(fedmq.AppError, match=r"strategy ByPerplexity: weight\(\) raised KeyError: 'perplexity'"):
        federation.run()
    with federation.ledger() as ledger:
        assert ledger.accepted() == 0


def test_after_the_correction_the_run_goes_on_and_its_model_is_the_one_of_its_ledger(federation):
    federation.concurrency = 1
    federation.strategy = first_to_halve(mistaken=True)
    federation.join("p0")
    with pytest.raises(fedmq.AppError, match=r"FirstToHalve: weight\(\) gave nan, expected a finite number"):
        federation.run()
    with federation.ledger() as ledger:
        assert ledger.accepted() <= 2
    federation.strategy = first_to_halve(mistaken=False)
    summary = federation.run(initial_parameters=None)
    assert (summary.finished, summary.version, summary.accepted) == ("max_versions", 5, 10)
    assert same_bits(federation.final(), federation.replayed())
    with federation.ledger() as ledger:
        assert [row.accepted_order for row in ledger.updates()] == list(range(1, 11))
