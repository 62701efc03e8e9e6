"""Devices come into a fleet and train, on a real RabbitMQ, by the commands that an operator types."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from fedmq.fleet import bundle, certificates
from fedmq.fleet.bundle import Bundle
from tests.integration.fleet.fleets import Fleet, wait_until
from tests.support.full import in_full

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]
IN_FULL = in_full("the unit tests have the same without a broker")
FleetOf = Callable[..., Fleet]


@in_full("the test of a device that joins has the same broker, coordinator and device")
def test_two_commands_on_the_host_and_one_on_the_device_bring_a_device_in(fleet_of: FleetOf) -> None:
    fleet = fleet_of()
    name = fleet.name("a")
    init = fleet.command("init", "-c", "federation.toml", "--url", fleet.node.url, "--node", str(fleet.node.data_dir))
    assert init.ended() == 0, init.text
    enrol = fleet.command("enrol", name)
    assert enrol.ended() == 0, enrol.text
    assert (fleet.folder / f"{name}.bundle").stat().st_mode & 0o777 == 0o600
    coordinator, device = fleet.coordinator(), fleet.device("a")
    assert coordinator.ended() == 0, coordinator.text
    assert device.ended() == 0, device.text
    assert {row.participant_id for row in fleet.check()} == {name}
    assert fleet.users() == {fleet.coordinator_user, f"{fleet.prefix}-w", name}
    key = bundle.read(fleet.folder / f"{name}.bundle").key.splitlines()[1]
    for text in (init.text, enrol.text, coordinator.text, device.text):
        assert key not in text


@IN_FULL
def test_a_broker_that_lost_its_users_gets_them_again_by_init_in_the_middle_of_a_run(fleet_of: FleetOf) -> None:
    fleet = fleet_of()
    a, gone = fleet.name("a"), fleet.name("b")
    fleet.make()
    fleet.enrol("a")
    fleet.enrol("b")
    init = ["init", "-c", "federation.toml", "--url", fleet.node.url, "--node", str(fleet.node.data_dir)]
    assert fleet.command("revoke", gone).ended() == 0
    fleet.hold(a, wait=False)
    coordinator, device = fleet.coordinator(), fleet.device("a")
    fleet.hold(a)  # it is in a training now
    for user in (a, fleet.coordinator_user):
        fleet.admin.delete_user(user)
    fleet.admin.delete_exchange(f"{fleet.prefix}.up.{a}")
    for one in (coordinator, device):
        one.wait_for("has lost its users")
    again = fleet.command(*init)
    assert again.ended() == 0, again.text
    assert "The broker has the users of 1 device." in again.text
    assert fleet.users() == {fleet.coordinator_user, f"{fleet.prefix}-w", a}
    fleet.release(a)
    assert coordinator.ended() == 0, coordinator.text
    assert device.ended() == 0, device.text
    assert {row.participant_id for row in fleet.check()} == {a}


def test_a_device_joins_by_a_token_and_its_temporary_user_goes(fleet_of: FleetOf) -> None:
    fleet = fleet_of()
    fleet.make()
    token = fleet.token("a")
    assert token.user in fleet.users()
    coordinator, device = fleet.coordinator(), fleet.device("a", "token")
    assert coordinator.ended() == 0, coordinator.text
    assert device.ended() == 0, device.text
    assert {row.participant_id for row in fleet.check()} == {fleet.name("a")}
    found = bundle.read(fleet.folder / f"{fleet.name('a')}.bundle")
    assert isinstance(found, Bundle)
    assert certificates.facts(found.certificate).common_name == fleet.name("a")
    with fleet.inventory() as inventory:
        assert inventory.certificates(fleet.name("a"))[0].installed_s is not None
    wait_until(lambda: token.user not in fleet.users(), "the temporary user is deleted")
    assert token.password not in coordinator.text + device.text


@IN_FULL
def test_a_device_that_was_killed_while_it_joined_goes_on_with_the_same_key(fleet_of: FleetOf) -> None:
    fleet = fleet_of()
    fleet.make()
    fleet.token("a")
    fleet.coordinator()
    for point in ("joining-key", "joining-asked", "joining-bundle"):
        killed = fleet.device("a", "token", fault=point)
        assert killed.ended() == -9, killed.text
    device = fleet.device("a", "token")
    assert device.ended() == 0, device.text
    fleet.check()
    with fleet.inventory() as inventory:
        assert len(inventory.certificates(fleet.name("a"))) == 1


@IN_FULL
def test_a_token_lets_in_one_of_two_devices_at_once_and_nobody_later(fleet_of: FleetOf) -> None:
    fleet = fleet_of()
    fleet.make()
    token = fleet.token("a")
    copies = []
    for number in range(3):
        (fleet.folder / f"copy{number}").mkdir()
        shutil.copy(fleet.folder / f"{fleet.name('a')}.token", fleet.folder / f"copy{number}" / "a.token")
        copies.append(f"copy{number}/a.token")
    fleet.hold(fleet.name("a"), wait=False)  # the run lasts until all have been answered
    fleet.coordinator()
    two = [fleet.device("a", file=file) for file in copies[:2]]
    wait_until(lambda: sum(one.status is not None for one in two) == 1, "one of the two is refused")
    (refused,) = [one for one in two if one.status is not None]
    (joined,) = [one for one in two if one is not refused]
    assert refused.status in (2, 3), refused.text  # by the coordinator, or by the broker that has lost the user
    assert "has been used by another key" in refused.text or "fedmq fleet token" in refused.text
    joined.wait_for("event=joined")
    late = fleet.device("a", file=copies[2])
    assert late.ended() in (2, 3), late.text  # refused by the coordinator, or its user is gone already
    assert "has been used" in late.text or "fedmq fleet token" in late.text
    fleet.release(fleet.name("a"))
    assert joined.ended() == 0, joined.text
    assert {row.participant_id for row in fleet.check()} == {fleet.name("a")}
    with fleet.inventory() as inventory:
        assert len(inventory.certificates(fleet.name("a"))) == 1
        found = inventory.token(token.user)
        assert found is not None
        assert found.key_id == inventory.certificates(fleet.name("a"))[0].key_id


@IN_FULL
def test_a_token_that_is_out_of_time_lets_nobody_in(fleet_of: FleetOf) -> None:
    fleet = fleet_of()
    fleet.make()
    fleet.enrol("b")
    token = fleet.token("a", ttl_s=60.0, age_s=61.0)
    fleet.hold(fleet.name("b"), wait=False)
    fleet.coordinator()
    late = fleet.device("a", "token")
    assert late.ended() == 2, late.text
    assert "has expired" in late.text
    fleet.release(fleet.name("b"))
    honest = fleet.device("b")
    assert honest.ended() == 0, honest.text
    assert {row.participant_id for row in fleet.check()} == {fleet.name("b")}
    with fleet.inventory() as inventory:
        assert inventory.certificates(fleet.name("a")) == []
    assert json.loads((fleet.folder / f"{fleet.name('a')}.token").read_text())["user"] == token.user
