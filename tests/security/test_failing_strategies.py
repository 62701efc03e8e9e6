"""A strategy that raises, and versions that would not be finite, in the real service: the run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest

import fedmq
from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.coordinator.audit import audit
from fedmq.coordinator.service.commits.failures import Failures
from fedmq.coordinator.service.leading import leadership
from fedmq.coordinator.settings import ArchiveSettings, CommitSettings, StopSettings
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import FedAvg, FedBuff, FedCompass
from fedmq.coordinator.strategies.math.server_optimizers import SgdMomentum
from fedmq.schemas.errors import StrategyError
from fedmq.schemas.messages import Task
from fedmq.schemas.parameters import Parameters
from tests.integration.chunks import federation as chunked
from tests.integration.coordinator.federation import (
    DEADLINE_S,
    TOPOLOGY,
    Federation,
    Participant,
    delta,
    update_for,
)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path / "run")
    made.concurrency = 10
    made.archive = ArchiveSettings(max_bytes=2**24)
    yield made
    made.close()


@dataclass(frozen=True)
class ByPerplexity(fedmq.WeightedMean):
    """A weight that a missing or a zero metric makes raise."""

    def weight(self, update: Any, staleness: int) -> float:
        return 1.0 / update.metrics["perplexity"]


def with_perplexity(value: float, p: Participant, task: Task) -> None:
    p.send_update(update_for(task, metrics={"perplexity": value}, num_steps=1), delta(task.task_id))


def half() -> Parameters:
    """Return a model that overflows at 65504."""
    return Parameters({"w": np.zeros(4, np.float16)})


def sends(value: float, p: Participant, task: Task) -> None:
    p.send_update(update_for(task, num_steps=1), Parameters({"w": np.full(4, value, np.float16)}))


def first_dead_letter(federation: Federation) -> str:
    """Return the headers of the first message in the dead-letter queue."""
    found: Queue[str] = Queue()
    transport = EmbeddedTransport(federation.broker)
    transport.open(TOPOLOGY.exchanges, TOPOLOGY.shared_queues)
    transport.consume(TOPOLOGY.dead.name, lambda d: found.put(str(dict(d.headers))), 100)
    try:
        return found.get(timeout=DEADLINE_S)
    finally:
        transport.close()


def verified(federation: Federation, strategy: Any = None) -> list[str]:
    checks = audit.verify(RunFolder(federation.run_dir), strategy)
    assert [check for check in checks if not check.holds] == []
    return [check.name for check in checks if not check.left_out]


def test_an_update_that_makes_the_strategy_raise_is_discarded_and_the_run_goes_on(federation: Federation) -> None:
    federation.strategy = ByPerplexity(buffer_size=3)
    liar = federation.join("liar", partial(with_perplexity, 0.0))
    for name in ("a", "b", "c"):
        federation.join(name, partial(with_perplexity, 2.0))
    summary = federation.run()
    assert liar.tasks, "the attack was made"
    assert (summary.finished, summary.version) == ("max_versions", 5)
    assert summary.discarded["strategy_error"] >= 1
    liar.wait_until(lambda: any(r.reason == "strategy_error" for r in liar.receipts))
    with federation.ledger() as ledger:
        assert {row.participant_id for row in ledger.updates()} == {"a", "b", "c"}
        assert [row.accepted_order for row in ledger.updates()] == list(range(1, summary.accepted + 1))
    assert verified(federation, federation.strategy)
    letter = first_dead_letter(federation)
    assert "strategy_error" in letter
    assert "test_failing_strategies.py:" in letter, "it has the strategy's line"
    assert "ZeroDivisionError: float division by zero" in letter


def test_a_process_that_ends_at_the_failure_is_healed_by_the_next_one(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation.strategy = ByPerplexity(buffer_size=3)
    liar = federation.join("liar", partial(with_perplexity, 0.0))
    for name in ("a", "b", "c"):
        federation.join(name, partial(with_perplexity, 2.0))
    with monkeypatch.context() as patched:

        def ends(*_: object, **__: object) -> None:
            raise RuntimeError("the process ends here")

        patched.setattr(Failures, "note", ends)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="ends here"):
                federation.run()
    assert liar.receipts == [], "it is still at the broker"
    summary = federation.run()
    assert (summary.finished, summary.version) == ("max_versions", 5)
    assert summary.discarded["strategy_error"] >= 1


def test_a_strategy_that_always_raises_stops_the_run_which_goes_on_once_it_is_mended(federation: Federation) -> None:
    federation.strategy = ByPerplexity(buffer_size=2)
    for name in ("a", "b", "c", "d"):
        federation.join(name, partial(with_perplexity, 0.0))
    with pytest.raises(StrategyError, match=r"3 times in a row, so the run stops. Mend the strategy") as caught:
        federation.run()
    assert "test_failing_strategies.py:" in str(caught.value)

    @dataclass(frozen=True)
    class Mended(fedmq.WeightedMean):
        def weight(self, update: Any, staleness: int) -> float:
            return 1.0

    Mended.__qualname__ = ByPerplexity.__qualname__
    federation.strategy = Mended(buffer_size=2)
    summary = federation.run(initial_parameters=None)
    assert (summary.finished, summary.version, summary.accepted) == ("max_versions", 5, 10)
    assert summary.discarded.get("strategy_error", 0) <= 2, "what was not committed as discarded has waited"


@pytest.mark.parametrize(
    "strategy",
    [FedBuff(buffer_size=3, server_learning_rate=3.0), FedAvg(cohort_size=3, min_updates=3)],
    ids=["fedbuff", "fedavg"],
)
def test_a_version_that_would_not_be_finite_loses_its_buffer_and_the_run_goes_on(
    federation: Federation, strategy: Any
) -> None:
    """Updates are committed one by one, so some of the lost ones were accepted before."""
    federation.strategy = strategy
    federation.commit = CommitSettings(commit_interval_s=0.001, commit_every_updates=1)
    rounds = isinstance(strategy, FedAvg)
    told = 65_504.0
    lies = iter([told, told])

    def liar(p: Participant, task: Task) -> None:
        sends(next(lies, 1.0), p, task)

    def optimistic(p: Participant, task: Task) -> None:
        sends(2.0, p, task)

    if rounds:  # a mean of parameters overflows nowhere, so a server step makes it do so
        federation.strategy = FedAvg(
            cohort_size=3, min_updates=3, server_optimizer=SgdMomentum(learning_rate=4.0, momentum=0.0)
        )
    federation.join("liar", liar)
    federation.join("a", optimistic)
    federation.join("b", optimistic)
    summary = federation.run(initial_parameters=half)
    assert next(lies, None) is None, "the attack was made"
    assert (summary.finished, summary.version) == ("max_versions", 5)
    assert summary.discarded["overflow"] >= 3
    with federation.ledger() as ledger:
        lost = [row for row in ledger.updates() if row.version is None]
        assert ledger.discarded()["overflow"] >= 3
        told = [drop for version in range(1, 6) for drop in audit.explain(ledger, version).lost]
    assert np.isfinite(federation.final()["w"].astype(np.float64)).all()
    names = verified(federation)
    if lost:
        assert any("accepted updates up to number" in name and "overflow" in name for name in names)
        assert sum(drop.count for drop in told) == len(lost)
    assert any("were replayed" not in name and "bit for bit" in name for name in names)


def test_an_arrival_group_that_fails_leaves_the_run_going(federation: Federation) -> None:
    federation.strategy = FedCompass(num_participants=3, min_steps=1, max_steps=4, server_learning_rate=6.0)
    federation.commit = CommitSettings(commit_interval_s=0.001, commit_every_updates=1)
    federation.stop = StopSettings(max_versions=8)
    lies = iter([65_504.0] * 3)
    federation.join("liar", lambda p, task: sends(next(lies, 1.0), p, task))
    for name in ("a", "b"):
        federation.join(name, partial(sends, 2.0))
    summary = federation.run(initial_parameters=half)
    assert next(lies, None) is None
    assert (summary.finished, summary.version) == ("max_versions", 8)
    assert summary.discarded["overflow"] >= 1
    assert np.isfinite(federation.final()["w"].astype(np.float64)).all()
    assert verified(federation)


def test_four_updates_of_the_largest_float_are_refused_one_by_one(federation: Federation) -> None:
    def liar(p: Participant, task: Task) -> None:
        w = Parameters({"000/w": np.full(5, 3.4e38, np.float32)})
        p.send_update(update_for(task), w)

    liars = [federation.join(f"liar-{i}", liar) for i in range(4)]
    for name in ("a", "b"):
        federation.join(name)
    summary = federation.run()
    assert all(one.tasks for one in liars)
    assert (summary.finished, summary.version) == ("max_versions", 5)
    assert summary.discarded["overflow"] >= 4
    assert verified(federation)


def test_a_checkpoint_after_a_lost_buffer_can_be_made_again_from_the_archive(federation: Federation) -> None:
    federation.strategy = FedBuff(buffer_size=3, server_learning_rate=3.0)
    federation.commit = CommitSettings(commit_interval_s=0.001, commit_every_updates=1, checkpoint_copies=1)
    lies = iter([65_504.0, 65_504.0])
    federation.join("liar", lambda p, task: sends(next(lies, 1.0), p, task))
    for name in ("a", "b"):
        federation.join(name, partial(sends, 2.0))
    service = federation.service(initial_parameters=half)
    running = federation.start(service)
    federation.participants[1].wait_until(lambda: len(federation.participants[1].receipts) >= 4)
    service.stop()
    running.result(DEADLINE_S)
    with federation.ledger() as ledger:
        newest = ledger.checkpoints()[0]
        finished = ledger.run().finished
    if finished is None:
        (federation.run_dir / "checkpoints" / newest.file).write_bytes(b"torn")
        summary = federation.run(initial_parameters=half)
        assert summary.version == 5
    assert verified(federation)


@dataclass(frozen=True)
class NotOfTheLiar(fedmq.WeightedMean):
    """A strategy that one participant's updates make raise."""

    def weight(self, update: Any, staleness: int) -> float:
        if update.participant_id == "liar":
            raise LookupError("no weight for the liar")
        return 1.0


def test_with_a_standby_each_new_discard_costs_nothing_but_its_update(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator that fails gives the lead away. The other one meets the same failure, or the discard."""
    monkeypatch.setattr(leadership, "ANSWER_S", 0.05)
    federation.strategy = NotOfTheLiar(buffer_size=3)
    first, second = federation.start(federation.service()), federation.start(federation.service())
    liar = federation.join("liar")
    large = Parameters({"000/w": np.full(5, 1e20, np.float32)})
    giant = federation.join("giant", lambda p, task: p.send_update(update_for(task), large))
    for name in ("a", "b", "c"):
        federation.join(name)
    summaries = [running.result(DEADLINE_S) for running in (first, second)]
    assert liar.tasks
    assert giant.tasks
    for summary in summaries:
        assert (summary.finished, summary.version) == ("max_versions", 5)
        assert summary.discarded["strategy_error"] >= 1
        assert summary.discarded["overflow"] >= 1
    assert verified(federation, federation.strategy)


def test_in_chunks_each_new_discard_costs_nothing_but_its_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The participant's own check of its training's size is off, as a liar's would be."""
    monkeypatch.setattr("fedmq.participant.training.task_work.check_magnitudes", lambda _: None)

    class Giant(chunked.Trainer):
        def train(self, parameters: Any, config: Any) -> Any:
            self.trainings += 1
            return chunked.Result({name: array + np.float32(1e20) for name, array in parameters.items()})

    broker = EmbeddedBroker()
    federation = chunked.Federation(tmp_path, TOPOLOGY, lambda name: EmbeddedTransport(broker, name))
    try:
        giant = Giant()
        ended = federation.coordinator(versions=3, strategy=NotOfTheLiar(buffer_size=2))
        for name in ("liar", "a", "b"):
            federation.participant(name)
        federation.participant("giant", giant)
        summary = ended.result(chunked.DEADLINE_S)
    finally:
        federation.close()
    assert giant.trainings
    assert (summary.finished, summary.version) == ("max_versions", 3)
    assert summary.discarded["strategy_error"] >= 1
    assert summary.discarded["overflow"] >= 1
    checks = audit.verify(RunFolder(federation.run_dir), NotOfTheLiar(buffer_size=2))
    assert [check for check in checks if not check.holds] == []
