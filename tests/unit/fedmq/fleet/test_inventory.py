"""The inventory's rows and rules."""

import sqlite3
import threading

import pytest

from fedmq.fleet.inventory import Inventory
from fedmq.fleet.rows import CertificateRow, Request
from fedmq.schemas.errors import ConfigError, FleetError

NOW_S = 1000.0


@pytest.fixture
def inventory(tmp_path):
    with Inventory.create(tmp_path / "inventory.sqlite") as made:
        yield made


def row(serial="1", device_id="sensor-1", key_id="k1", until_s=2000.0):
    return CertificateRow(serial, device_id, key_id, "PEM", NOW_S, until_s)


def test_the_file_is_for_its_owner_alone(inventory):
    assert inventory.path.stat().st_mode & 0o777 == 0o600


def test_a_commit_is_on_the_disk_before_it_returns(inventory):
    assert inventory._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_a_device_goes_from_enrolling_to_revoked_and_never_back(inventory):
    assert inventory.standing("sensor-1") == "unknown"
    assert inventory.begin_enrolment("sensor-1", NOW_S).state == "enrolling"
    assert inventory.standing("sensor-1") == "enrolled"
    inventory.enrolled("sensor-1")
    assert inventory.begin_enrolment("sensor-1", NOW_S + 5).state == "enrolled"
    inventory.begin_revocation("sensor-1", NOW_S + 9)
    assert inventory.standing("sensor-1") == "revoked"
    inventory.enrolled("sensor-1")  # a command that was slower
    assert inventory.device("sensor-1").state == "revoking"
    inventory.revoked("sensor-1")
    inventory.begin_revocation("sensor-1", NOW_S + 99)  # again
    device = inventory.device("sensor-1")
    assert (device.state, device.created_s, device.revoked_s) == ("revoked", NOW_S, NOW_S + 9)
    with pytest.raises(ConfigError, match=r"was revoked.*choose another id"):
        inventory.begin_enrolment("sensor-1", NOW_S + 100)


def test_an_id_that_differs_by_capitals_alone_is_refused(inventory):
    inventory.begin_enrolment("sensor-1", NOW_S)
    with pytest.raises(ConfigError, match='differs from the device "sensor-1" by capitals alone'):
        inventory.begin_enrolment("Sensor-1", NOW_S)
    assert [device.id for device in inventory.devices()] == ["sensor-1"]


def test_nobody_can_revoke_a_device_that_is_not_there(inventory):
    with pytest.raises(ConfigError, match="fleet list"):
        inventory.begin_revocation("sensor-1", NOW_S)


def test_another_process_sees_a_change_at_its_next_question(inventory):
    with Inventory(inventory.path) as other:
        assert other.standing("sensor-1") == "unknown"
        inventory.begin_enrolment("sensor-1", NOW_S, max_examples=60)
        assert (other.standing("sensor-1"), other.max_examples("sensor-1")) == ("enrolled", 60)
        inventory.begin_revocation("sensor-1", NOW_S)
        assert other.standing("sensor-1") == "revoked"
        assert (inventory.standing("sensor-1"), inventory.max_examples("nobody")) == ("revoked", None)


def test_a_look_at_the_file_comes_once_in_a_while_if_that_is_asked_for(inventory):
    with Inventory(inventory.path, look_s=3600.0) as other:
        assert other.standing("sensor-1") == "unknown"
        inventory.begin_enrolment("sensor-1", NOW_S)
        assert other.standing("sensor-1") == "unknown"
        other._look_at = float("-inf")  # an hour later
        assert other.standing("sensor-1") == "enrolled"
        other.begin_revocation("sensor-1", NOW_S)
        assert other.standing("sensor-1") == "revoked"  # what it has written itself it knows at once


def test_the_first_key_has_the_token_and_a_second_one_does_not(inventory):
    inventory.begin_enrolment("sensor-1", NOW_S)
    inventory.begin_token("join-1", "sensor-1", NOW_S, NOW_S + 60)
    assert inventory.bind_token("join-1", "k1", NOW_S).key_id is None  # its file is not written yet
    inventory.open_token("join-1")
    assert inventory.bind_token("join-1", "k1", NOW_S + 59).key_id == "k1"
    assert inventory.bind_token("join-1", "k2", NOW_S + 59).key_id == "k1"
    assert inventory.bind_token("join-1", "k1", NOW_S + 999).key_id == "k1"  # it asked in time
    assert inventory.bind_token("join-2", "k1", NOW_S) is None


def test_a_token_takes_no_key_once_it_has_expired(inventory):
    inventory.begin_enrolment("sensor-1", NOW_S)
    inventory.begin_token("join-1", "sensor-1", NOW_S, NOW_S + 60)
    inventory.open_token("join-1")
    assert inventory.bind_token("join-1", "k1", NOW_S + 60).key_id is None
    inventory.close_token("join-1")
    assert inventory.bind_token("join-1", "k1", NOW_S).state == "closed"


def test_of_two_keys_at_once_one_gets_the_token(inventory):
    inventory.begin_enrolment("sensor-1", NOW_S)
    inventory.begin_token("join-1", "sensor-1", NOW_S, NOW_S + 60)
    inventory.open_token("join-1")
    found, start = [], threading.Barrier(8)

    def ask(key_id):
        with Inventory(inventory.path) as own:
            start.wait()
            found.append(own.bind_token("join-1", key_id, NOW_S).key_id)

    threads = [threading.Thread(target=ask, args=(f"k{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_key_has_one_certificate_however_often_it_is_signed(inventory):
    inventory.begin_enrolment("sensor-1", NOW_S)
    assert inventory.add_certificate(row("1")).serial == "1"
    assert inventory.add_certificate(row("2")).serial == "1"
    inventory.add_certificate(row("3", key_id="k2", until_s=3000.0))
    assert [one.serial for one in inventory.certificates("sensor-1")] == ["1", "3"]
    inventory.installed("sensor-1", "k2", NOW_S + 5)
    inventory.installed("sensor-2", "k1", NOW_S + 5)  # not its own
    assert [one.installed_s for one in inventory.certificates("sensor-1")] == [None, NOW_S + 5]
    inventory.forget_certificates(2500.0)
    assert [one.serial for one in inventory.certificates("sensor-1")] == ["3"]


def test_requests_wait_until_their_certificate_is_there_and_a_device_has_few(inventory):
    inventory.begin_enrolment("sensor-1", NOW_S)
    assert [inventory.add_request(Request(f"k{n}", "sensor-1", "CSR", NOW_S), 2) for n in (1, 2, 2, 3)] == [
        True, True, True, False,
    ]  # fmt: skip
    inventory.add_certificate(row(key_id="k1"))
    assert [one.key_id for one in inventory.requests()] == ["k2"]
    inventory.begin_revocation("sensor-1", NOW_S)
    assert inventory.requests() == []


def test_a_file_that_is_no_inventory_is_our_own_error(tmp_path):
    with pytest.raises(FleetError, match="fedmq fleet init"):
        Inventory(tmp_path / "none.sqlite")
    (tmp_path / "text").write_text("no database at all, but long enough for a header" * 9)
    with pytest.raises(FleetError, match="cannot be used"):
        Inventory(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(FleetError, match="no inventory of this version"):
        Inventory(tmp_path / "other")
