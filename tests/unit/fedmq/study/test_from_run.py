"""The study that a run's federation file gives."""

import pytest

from fedmq.config.file import FederationConfig
from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.strategies import FedAsync, FedAvg, FedBuff
from fedmq.study.from_run import _contenders, _study_run


def config(strategy, **run):
    run = {"run_id": "r", "stop": {"max_versions": 99}} | run
    return FederationConfig.model_validate({"run": run, "strategy": strategy})


def test_the_run_is_as_it_was_until_as_many_updates_are_in():
    file = config(
        {"name": "fedbuff"}, concurrency=7, selection="least_used", lease_s=5, client_weights="log", max_staleness=1,
        steps={"target_s": 30, "min_steps": 1, "max_steps": 9},
    )  # fmt: skip
    found = _study_run(file, {"client_weights": "sqrt", "max_staleness": 4}, 31)
    assert found.stop == StopSettings(max_updates=31)
    assert (found.concurrency, found.selection, found.lease_s) == (7, "least_used", 5)
    assert found.steps == file.run.steps
    assert (found.client_weights, found.max_staleness) == ("sqrt", 4), "as the ledger has them, whatever the file says"


@pytest.mark.parametrize(
    ("own", "labels"),
    [
        ({"name": "fedbuff", "buffer_size": 2}, ["as it ran: fedbuff", "FedAsync", "FedBuff, K = 3", "FedAvg of 3"]),
        ({"name": "fedbuff", "buffer_size": 3}, ["as it ran: fedbuff", "FedAsync", "FedAvg of 3"]),
        ({"name": "fedasync"}, ["as it ran: fedasync", "FedBuff, K = 3", "FedAvg of 3"]),
        ({"name": "fedavg", "cohort_size": 3}, ["as it ran: fedavg", "FedAsync", "FedBuff, K = 3"]),
    ],
)
def test_its_strategy_stands_first_and_others_beside_it_of_which_none_is_the_same(own, labels):
    found = _contenders(config(own), 7)
    assert [c.label for c in found] == labels
    assert found[0].strategy == config(own).strategy
    known = {"FedAsync": FedAsync(), "FedBuff, K = 3": FedBuff(buffer_size=3), "FedAvg of 3": FedAvg(cohort_size=3)}
    assert [c.strategy for c in found[1:]] == [known[label] for label in labels[1:]]


def test_a_single_participant_is_half_of_one():
    assert [c.label for c in _contenders(config({"name": "port"}), 1)][2:] == ["FedBuff, K = 1", "FedAvg of 1"]
