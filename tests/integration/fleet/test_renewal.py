"""A device renews its certificate while it trains, and after a kill at each step."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedmq.fleet import bundle, certificates
from fedmq.fleet.bundle import Bundle
from fedmq.fleet.certificates import DAY_S
from tests.integration.fleet.fleets import Fleet
from tests.support.full import in_full

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]
FleetOf = Callable[..., Fleet]


def bundle_of(fleet: Fleet) -> Bundle:
    found = bundle.read(fleet.folder / f"{fleet.name('a')}.bundle")
    assert isinstance(found, Bundle)
    return found


def test_a_device_renews_its_certificate_and_nothing_is_lost_or_doubled(fleet_of: FleetOf) -> None:
    fleet = fleet_of(pause_s=0.2)
    fleet.make()
    fleet.enrol("a", age_s=45 * DAY_S)
    before = bundle_of(fleet)
    coordinator, device = fleet.coordinator(), fleet.device("a")
    device.wait_for("event=certificate_renewed")
    device.wait_for("event=broker_connected", times=2)  # at the first idle moment
    assert coordinator.ended() == 0, coordinator.text
    assert device.ended() == 0, device.text
    assert {row.participant_id for row in fleet.check()} == {fleet.name("a")}
    after = bundle_of(fleet)
    old, new = certificates.facts(before.certificate), certificates.facts(after.certificate)
    assert new.not_after_s > old.not_after_s + 44 * DAY_S
    assert (new.common_name, new.key_id != old.key_id) == (fleet.name("a"), True)
    with fleet.inventory() as inventory:
        rows = inventory.certificates(fleet.name("a"))
    assert [row.installed_s is not None for row in rows] == [False, True]
    assert "event=identity" in device.text


@in_full("the unit tests have the same without a broker")
@pytest.mark.parametrize("point", ["renewal-key", "renewal-bundle", "renewal-file"])
def test_a_device_that_is_killed_while_it_renews_has_one_whole_certificate(fleet_of: FleetOf, point: str) -> None:
    fleet = fleet_of(pause_s=0.2)
    fleet.make()
    fleet.enrol("a", age_s=45 * DAY_S)
    before = bundle_of(fleet)
    coordinator = fleet.coordinator()
    killed = fleet.device("a", fault=point)
    assert killed.ended() == -9, killed.text
    device = fleet.device("a")
    assert coordinator.ended() == 0, coordinator.text
    assert device.ended() == 0, device.text
    fleet.check()
    assert bundle_of(fleet).certificate != before.certificate
    with fleet.inventory() as inventory:
        assert len(inventory.certificates(fleet.name("a"))) == 2
