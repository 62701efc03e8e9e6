"""`kill -9` of the operator's commands, on a real RabbitMQ. The same command goes on, and the device trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos.harness import died_at
from tests.integration.fleet.fleets import Fleet
from tests.support.full import in_full

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]
FleetOf = Callable[..., Fleet]
ENROL = ["fleet-row", "fleet-user", "fleet-certificate", "fleet-bundle", "fleet-enrolled"]
TOKEN = ["fleet-old-tokens", "fleet-token-row", "fleet-token-user", "fleet-token", "fleet-token-open"]
REVOKE = ["fleet-revoking", "fleet-user-deleted", "fleet-queues-deleted", "fleet-exchange-deleted"]


def check_it_trains(fleet: Fleet, kind: str) -> None:
    coordinator, device = fleet.coordinator(), fleet.device("a", kind)
    assert coordinator.ended() == 0, coordinator.text
    assert device.ended() == 0, device.text
    assert {row.participant_id for row in fleet.check()} == {fleet.name("a")}


def killed_and_again(fleet: Fleet, point: str, *command: str) -> None:
    """Kill a command at this point, and then let the same command end well."""
    killed = fleet.command(*command, fault=point)
    assert died_at(killed, point), killed.text
    again = fleet.command(*command)
    assert again.ended() == 0, again.text


@in_full("the unit tests kill at each step")
@pytest.mark.parametrize("points", [[point] for point in ENROL], ids=str)
def test_an_enrolment_that_was_killed_goes_on(fleet_of: FleetOf, points: list[str]) -> None:
    fleet = fleet_of()
    fleet.make()
    for point in points:
        killed = fleet.command("enrol", fleet.name("a"), fault=point)
        assert died_at(killed, point), killed.text
    again = fleet.command("enrol", fleet.name("a"))
    assert again.ended() == 0, again.text
    check_it_trains(fleet, "bundle")


@in_full("the unit tests kill at each step")
@pytest.mark.parametrize("point", TOKEN)
def test_a_token_whose_making_was_killed_is_made(fleet_of: FleetOf, point: str) -> None:
    fleet = fleet_of()
    fleet.make()
    killed_and_again(fleet, point, "token", fleet.name("a"))
    check_it_trains(fleet, "token")


@in_full("the unit tests kill at each step")
@pytest.mark.parametrize("point", REVOKE)
def test_a_revocation_that_was_killed_goes_on_and_others_train(fleet_of: FleetOf, point: str) -> None:
    fleet = fleet_of()
    fleet.make()
    fleet.enrol("a")
    fleet.enrol("b")
    killed_and_again(fleet, point, "revoke", fleet.name("b"))
    assert fleet.name("b") not in fleet.users()
    check_it_trains(fleet, "bundle")
