"""Attacks of a device beside a run: each is refused or harmless, and the run loses nothing (attacks.py has them)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from fedmq.coordinator.audit import audit
from fedmq.coordinator.service.summary import RunSummary
from fedmq.coordinator.state.ledger.reader import LedgerReader, open_if_made
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.schemas.messages import TrainingConfig
from tests.integration.chunks.federation import Federation, Result, Trainer, added
from tests.security.attacks import HARMLESS, REFUSED, Attacker, codes_of
from tests.security.site import COORDINATOR, Site, until

pytestmark = pytest.mark.broker
HONEST = ("sensor", "a.b")
REFUSALS = {403, 405, 406}
"""Codes of RabbitMQ for an act that is not allowed: no right, another's exclusive queue, another user's name."""
PAUSE_S = 0.1


class Steady(Trainer):
    """A trainer that takes a moment for each training, so that a run lasts as long as the attacks."""

    def __init__(self) -> None:
        super().__init__()
        self._pause = threading.Event()

    def train(self, parameters: Any, config: TrainingConfig) -> Any:
        self._pause.wait(PAUSE_S)
        self.trainings += 1
        return Result({name: array + 0.001 * added(config.seed, name, array) for name, array in parameters.items()})


class Beside:
    """A run of two honest devices, in chunks both ways, for as long as the attacks last."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.ended: dict[str, Future[Any]] = {}
        self.trainers = {name: Steady() for name in HONEST}
        self.run: Future[RunSummary] = federation.coordinator(versions=100_000, buffer_size=2, identity="user")
        for name, trainer in self.trainers.items():
            self.ended[name] = federation.participant(name, trainer, coordinator_user=COORDINATOR)

    def accepted(self) -> dict[str, int]:
        """Return the number of accepted updates of each honest device."""
        found: dict[str, int] = {}
        reader = open_if_made(self.federation.run_dir / "ledger.sqlite")
        if reader is not None:
            with reader as ledger:
                found = ledger.accepted_by_participant()
        return {name: found.get(name, 0) for name in HONEST}

    def open_tasks(self) -> list[str]:
        with LedgerReader(self.federation.run_dir / "ledger.sqlite") as ledger:
            return [task.task_id for task in ledger.open_tasks()]

    def goes_on(self) -> None:
        """Wait until two more updates of each honest device count: the second began after the attack."""
        before = self.accepted()
        until(lambda: all(count >= before[name] + 2 for name, count in self.accepted().items()))
        assert not self.run.done()
        assert not any(ended.done() for ended in self.ended.values())


@pytest.fixture(scope="module")
def beside(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    federation = Federation(tmp_path_factory.mktemp("beside"), site.topology, site.transport)
    try:
        one = Beside(federation)
        until(lambda: all(one.accepted().values()))
        yield one
    finally:
        federation.close()
    site.clear()


@pytest.fixture(scope="module")
def attacker(site: Site, beside: Beside) -> Attacker:
    """A device that is enrolled: it has the exchange of its uploads."""
    with site.raw(COORDINATOR) as channel:
        channel.exchange_declare(site.topology.upload_exchange("sensor-2").name, "direct", durable=True)
    return Attacker(site, "sensor-2", "sensor", beside.open_tasks)


@pytest.mark.parametrize("attack", REFUSED)
def test_the_broker_refuses_every_act_of_this_kind(beside: Beside, attacker: Attacker, attack: str) -> None:
    acts = REFUSED[attack](attacker)
    found = codes_of(attacker, acts)
    assert found
    assert {what: code for what, code in found.items() if code not in REFUSALS} == {}
    beside.goes_on()


@pytest.mark.parametrize("attack", HARMLESS)
def test_a_run_goes_on_beside_what_a_device_can_do(beside: Beside, attacker: Attacker, attack: str) -> None:
    assert HARMLESS[attack](attacker) > 0, "the broker took nothing over: the attack was not made"
    beside.goes_on()


def test_the_run_beside_all_attacks_lost_nothing_and_counted_nothing_twice(beside: Beside) -> None:
    """The last test of the file: the ledger and the model follow from the honest updates alone, bit for bit."""
    beside.federation.stop_coordinator()
    assert [check for check in audit.verify(RunFolder(beside.federation.run_dir)) if not check.holds] == []
    with LedgerReader(beside.federation.run_dir / "ledger.sqlite") as ledger:
        participants = {row.record.participant_id: row.record for row in ledger.participants()}
        accepted = ledger.updates()
    assert {row.participant_id for row in accepted} == set(HONEST)
    assert len({row.update_id for row in accepted}) == len(accepted)
    for name in HONEST:
        record = participants[name]
        assert (record.discarded, record.declined) == (0, 0)
        # All that was trained counts, but for the tasks that were on their way when the run was stopped.
        assert beside.trainers[name].trainings - record.accepted in (0, 1, 2)
