"""The thread between the loop and the fleet's registrar."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from fedmq.coordinator.service.outgoing.certificates import MOST_WAITING, CertificateAnswered, CertificateDesk
from fedmq.schemas.errors import FleetError
from fedmq.schemas.messages import Certificate, CertificateInstalled, CertificateRequest

WAIT_S = 10.0
REFUSED = Certificate(participant_id="sensor-1", verdict="refused")


def request(text: str = "CSR") -> CertificateRequest:
    return CertificateRequest(participant_id="sensor-1", request=text)


class Fleet:
    """A registrar that the test holds and breaks."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.asked: SimpleQueue[Any] = SimpleQueue()
        self.error: Exception | None = None

    def on_request(self, message: CertificateRequest, user: str | None) -> Certificate | None:
        self.asked.put((message.request, user))
        assert self.go_on.wait(WAIT_S)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return None if user is None else REFUSED

    def on_installed(self, message: CertificateInstalled, user: str | None) -> None:
        self.asked.put((message.key_id, user))

    def tidy(self) -> None:
        pass


class World:
    def __init__(self) -> None:
        self.fleet = Fleet()
        self.answers: SimpleQueue[CertificateAnswered] = SimpleQueue()
        self.desk = CertificateDesk(self.fleet, self.answers.put)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.fleet.go_on.set()
    made.desk.close()


def test_an_answer_goes_to_the_user_that_asked(world: World) -> None:
    world.desk.hand_over(request(), "join-1")
    assert world.answers.get(timeout=WAIT_S) == CertificateAnswered("join-1", REFUSED)
    world.desk.hand_over(CertificateInstalled(participant_id="sensor-1", key_id="0" * 64), "join-1")
    assert world.fleet.asked.get(timeout=WAIT_S) == ("CSR", "join-1")
    assert world.fleet.asked.get(timeout=WAIT_S) == ("0" * 64, "join-1")


def test_nobody_is_answered_without_a_user(world: World) -> None:
    world.desk.hand_over(request(), None)
    world.desk.hand_over(request(), "join-1")
    assert world.answers.get(timeout=WAIT_S).user == "join-1"


@pytest.mark.parametrize("error", [FleetError("locked"), ValueError("a mistake")])
def test_a_registrar_that_raises_ends_no_thread(world: World, error: Exception) -> None:
    world.fleet.error = error
    world.desk.hand_over(request(), "join-1")
    world.desk.hand_over(request(), "join-2")
    assert world.answers.get(timeout=WAIT_S).user == "join-2"


def test_the_loop_never_waits_and_a_flood_is_dropped(world: World) -> None:
    world.fleet.go_on.clear()
    world.desk.hand_over(request("first"), "join-1")
    assert world.fleet.asked.get(timeout=WAIT_S) == ("first", "join-1")  # it is in the registrar's hands
    for number in range(10 * MOST_WAITING):
        world.desk.hand_over(request(str(number)), "join-1")
    world.fleet.go_on.set()
    for _ in range(1 + MOST_WAITING):
        world.answers.get(timeout=WAIT_S)
    world.desk.hand_over(request("last"), "join-2")
    assert world.answers.get(timeout=WAIT_S).user == "join-2"


def test_what_is_decided_after_the_end_is_told_to_nobody(world: World) -> None:
    world.fleet.go_on.clear()
    world.desk.hand_over(request(), "join-1")
    world.fleet.asked.get(timeout=WAIT_S)
    closing = threading.Thread(target=world.desk.close)
    closing.start()
    while not world.desk._closed.is_set():
        pass
    world.fleet.go_on.set()
    closing.join(WAIT_S)
    assert world.answers.empty()
