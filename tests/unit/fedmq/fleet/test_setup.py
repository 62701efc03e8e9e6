"""The making of a fleet."""

from dataclasses import replace

import pytest

from fedmq.fleet import certificates, setup
from fedmq.fleet.folder import FleetFolder
from fedmq.fleet.inventory import Inventory
from fedmq.fleet.setup import OWN_LIFETIME_S
from fedmq.schemas.errors import ConfigError, FleetError
from tests.support.fleet import NOW_S, PLAN, made


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if "sqlite" not in path.name}


def test_a_fleet_is_for_its_owner_alone(tmp_path):
    folder = made(tmp_path)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.path.iterdir()} == {
        "ca.key", "ca.pem", "server.pem", "coordinator.pem", "signing.key", "inventory.sqlite",
    }  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in folder.path.iterdir()} == {0o600}


def test_a_fleet_that_is_there_keeps_all_its_keys(tmp_path):
    folder = made(tmp_path)
    before = contents(folder)
    assert setup.make(folder, PLAN, NOW_S + 1) == []
    assert contents(folder) == before
    told = setup.make(folder, replace(PLAN, max_message_bytes=1_000_000), NOW_S + 1)
    assert told == ["the inventory has the new settings"]
    with Inventory(folder.inventory) as inventory:
        assert setup.shared(inventory).max_message_bytes == 1_000_000
    assert contents(folder) == before


def test_a_new_name_of_the_broker_makes_a_new_certificate_for_it(tmp_path):
    folder = made(tmp_path)
    before = contents(folder)
    (told,) = setup.make(folder, replace(PLAN, server_names=("broker.test",)), NOW_S + 1)
    assert "for broker.test" in told
    changed = {name for name, content in contents(folder).items() if before[name] != content}
    assert changed == {"server.pem"}


def test_a_folder_is_one_fleets(tmp_path):
    folder = made(tmp_path)
    with pytest.raises(ConfigError, match="use another folder"):
        setup.make(folder, replace(PLAN, prefix="other"), NOW_S)


def test_the_authoritys_key_may_be_kept_elsewhere(tmp_path):
    folder, stick = FleetFolder(tmp_path / "fleet"), tmp_path / "stick.key"
    setup.make(folder, PLAN, NOW_S, stick)
    assert stick.stat().st_mode & 0o777 == 0o600
    assert not folder.ca_key.exists()
    assert folder.authority(stick).key == stick.read_text()
    with pytest.raises(FleetError, match="--ca-key"):
        folder.authority()


def test_own_certificates_are_renewed_after_a_third_of_their_lifetime(tmp_path):
    folder = made(tmp_path)
    before = contents(folder)
    with Inventory(folder.inventory) as inventory:
        assert setup.renew_own(folder, inventory, NOW_S + OWN_LIFETIME_S / 3 - 1) == []
        assert len(setup.renew_own(folder, inventory, NOW_S + OWN_LIFETIME_S / 3)) == 2
    changed = {name for name, content in contents(folder).items() if before[name] != content}
    assert changed == {"server.pem", "coordinator.pem"}
    facts = certificates.facts(folder.coordinator.read_text())
    assert (facts.common_name, facts.not_after_s) == ("coordinator", NOW_S + OWN_LIFETIME_S * 4 / 3)
