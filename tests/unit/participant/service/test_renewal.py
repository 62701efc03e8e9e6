"""The renewal of a certificate, in a clock of the test's own."""

import itertools
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from fedmq.broker_config.topology import Topology
from fedmq.participant.service.renewal import LOOK_S, MOST_WAIT_S, Renewal
from fedmq.schemas.codec import decode
from fedmq.schemas.errors import FleetError
from fedmq.schemas.messages import Certificate, CertificateInstalled, CertificateRequest

REQUEST = CertificateRequest(participant_id="sensor-1", request="CSR")
INSTALLED = CertificateInstalled(participant_id="sensor-1", key_id="0" * 64)
ISSUED = Certificate(participant_id="sensor-1", verdict="issued", certificate="PEM")


class Disk:
    """Credentials that are due when the test says so."""

    due = False
    fits = True
    broken = False

    def request(self) -> CertificateRequest | None:
        if self.broken:
            raise FleetError("the disk is full")
        return REQUEST if self.due else None

    def install(self, answer: Certificate) -> CertificateInstalled | None:
        assert answer == ISSUED
        if self.broken:
            raise FleetError("the disk is full")
        return INSTALLED if self.fits else None


class World:
    """A renewal and a transport that remembers."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.reconnects = 0
        self.disk = Disk()
        transport = SimpleNamespace(publish=self.publish, reconnect=self.reconnect)
        context: Any = SimpleNamespace(
            participant_id="sensor-1", transport=transport, topology=Topology(), publish_timeout_s=1.0
        )
        self.renewal = Renewal(context, self.disk)

    def publish(self, message: Any, _timeout_s: float) -> Future[None]:
        assert message.exchange == "fedmq.control"
        self.sent.append(decode(message.body).message)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def reconnect(self, _why: str) -> None:
        self.reconnects += 1

    def ticks(self, until_s: float) -> int:
        """Tick every half second from now on; return the number of requests."""
        before = len(self.sent)
        for half in range(int(2 * until_s)):
            self.renewal.tick(half / 2, connected=True)
        return len(self.sent) - before


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_is_sent_before_the_certificate_is_due(world: World) -> None:
    assert world.ticks(1000.0) == 0


def test_a_request_is_sent_again_at_longer_and_longer_intervals(world: World) -> None:
    world.disk.due = True
    assert world.ticks(LOOK_S) == 1
    times = []
    for half in range(2 * 24 * 3600):
        before = len(world.sent)
        world.renewal.tick(LOOK_S + half / 2, connected=True)
        if len(world.sent) > before:
            times.append(half / 2)
    waits = [late - early for early, late in itertools.pairwise(times)]
    assert waits[:4] == [60.0, 120.0, 240.0, 480.0]
    assert max(waits) == MOST_WAIT_S


def test_nothing_is_sent_while_the_broker_is_away(world: World) -> None:
    world.disk.due = True
    world.renewal.tick(0.0, connected=False)
    assert world.sent == []
    world.renewal.tick(0.5, connected=True)
    assert world.sent == [REQUEST]


def test_a_new_certificate_is_told_and_used_once_nothing_is_in_hand(world: World) -> None:
    world.renewal.when_idle()
    assert world.reconnects == 0
    world.renewal.on_answer(ISSUED)
    assert world.sent == [INSTALLED]
    assert world.reconnects == 0  # a task may be in hand
    world.renewal.when_idle()
    world.renewal.when_idle()
    assert world.reconnects == 1


@pytest.mark.parametrize("verdict", ["waiting", "refused"])
def test_an_answer_without_a_certificate_changes_nothing(world: World, verdict: Any) -> None:
    world.renewal.on_answer(Certificate(participant_id="sensor-1", verdict=verdict))
    world.renewal.when_idle()
    assert (world.sent, world.reconnects) == ([], 0)


def test_a_certificate_that_does_not_fit_is_ignored(world: World) -> None:
    world.disk.fits = False
    world.renewal.on_answer(ISSUED)
    world.renewal.when_idle()
    assert (world.sent, world.reconnects) == ([], 0)


def test_a_disk_that_refuses_is_tried_again_and_ends_nothing(world: World) -> None:
    world.disk.due, world.disk.broken = True, True
    world.renewal.on_answer(ISSUED)
    assert world.ticks(10 * LOOK_S) == 0
    world.disk.broken = False
    world.renewal.tick(11 * LOOK_S, connected=True)
    world.renewal.on_answer(ISSUED)
    assert world.sent == [REQUEST, INSTALLED]
