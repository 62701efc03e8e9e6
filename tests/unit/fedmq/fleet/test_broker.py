"""The fleet's part of a broker, which a broker that lost its users gets again."""

import pytest

from fedmq.broker_config.rights import device_rights
from fedmq.fleet import broker, enrolment
from fedmq.fleet.inventory import Inventory
from fedmq.fleet.revocation import revoke
from fedmq.schemas.errors import BrokerUnavailable
from tests.support.fleet import NOW_S, FakeAdmin, made


def test_the_broker_is_prepared_once_unless_asked_for_again(tmp_path):
    folder, admin = made(tmp_path), FakeAdmin()
    with Inventory(folder.inventory) as inventory:
        broker.prepare(admin, inventory, max_queues=500)
        assert admin.rights["coordinator"].write == r"^(amq\.default|fedmq\..*)$"
        assert admin.passwords["coordinator"] is None
        assert admin.vhost_limits == {"max-queues": 500}
        pattern, bounds = admin.policies["fedmq-payloads"]
        assert pattern == r"^fedmq\.payload\."
        assert bounds == {"max-length-bytes": 4 * 1024**3 + 256 * 1024**2, "expires": 14 * 24 * 3600 * 1000}
        admin.rights.clear()
        broker.prepare(admin, inventory, max_queues=500)
        assert admin.rights == {}
        broker.prepare_again(inventory)
        broker.prepare(admin, inventory, max_queues=500)
        assert set(admin.rights) == {"coordinator"}


def test_a_broker_that_is_not_there_is_prepared_by_the_next_command(tmp_path):
    folder, admin = made(tmp_path), FakeAdmin()

    def away(_what):
        raise BrokerUnavailable("away")

    admin.before = away
    with Inventory(folder.inventory) as inventory:
        with pytest.raises(BrokerUnavailable):
            broker.prepare(admin, inventory, max_queues=500)
        admin.before = lambda _what: None
        broker.prepare(admin, inventory, max_queues=500)
    assert set(admin.rights) == {"coordinator"}


@pytest.fixture
def fleet(tmp_path):
    """A function: fleet(work) does work(inventory, admin) with a fleet whose sensors 1 and 2 have bundles, sensor-3 a
    token, and sensor-4 was revoked."""
    folder, admin = made(tmp_path), FakeAdmin()
    with Inventory(folder.inventory) as inventory:
        more = {"inventory": inventory, "admin": admin, "now_s": NOW_S}
        broker.prepare(admin, inventory, max_queues=500)
        for number in (1, 2, 4):
            enrolment.enrol(f"sensor-{number}", tmp_path / f"{number}.bundle", folder=folder, **more)
        enrolment.token("sensor-3", tmp_path / "3.token", 60.0, **more)
        revoke("sensor-4", **more)
        yield inventory, admin


def test_a_broker_that_lost_its_users_gets_all_of_them_in_one_call_and_no_revoked_one(fleet):
    inventory, before = fleet
    (token,) = [one for one in inventory.tokens() if one.state == "open"]
    calls, after = [], FakeAdmin()
    after.before = calls.append
    broker.prepare_again(inventory)
    told = broker.prepare(after, inventory, max_queues=500)
    assert told == [
        "the user coordinator with the coordinator's rights",
        "the users of 3 devices",
        "no user for the token of sensor-3 any more: if it has not joined, make another one",
    ]
    assert calls == ["add_user", "add_devices"]
    assert {**after.rights, token.user: before.rights[token.user]} == before.rights
    assert set(after.rights) == {"coordinator", "sensor-1", "sensor-2", "sensor-3"}
    assert set(after.passwords.values()) == {None}
    assert after.limits == {name: before.limits[name] for name in after.rights}
    assert after.exchanges == before.exchanges == {"fedmq.up.sensor-1", "fedmq.up.sensor-2", "fedmq.up.sensor-3"}
    assert inventory.token(token.user).state == "closed"


def test_a_broker_that_kept_its_users_keeps_them_and_its_tokens(fleet):
    inventory, admin = fleet
    rights, passwords = dict(admin.rights), dict(admin.passwords)
    broker.prepare_again(inventory)
    told = broker.prepare(admin, inventory, max_queues=500)
    assert told == ["the user coordinator with the coordinator's rights", "the users of 3 devices"]
    assert (admin.rights, admin.passwords) == (rights, passwords)
    assert [one.state for one in inventory.tokens()] == ["open"]


def test_a_revoked_user_that_an_old_backup_brought_back_is_deleted(fleet):
    inventory, admin = fleet
    admin.rights["sensor-4"] = device_rights("fedmq", "sensor-4")
    broker.prepare_again(inventory)
    told = broker.prepare(admin, inventory, max_queues=500)
    assert told[-1] == "no user sensor-4 any more, because that device is revoked"
    assert "sensor-4" not in admin.rights


def test_a_device_that_is_revoked_while_the_users_come_back_stays_out(fleet):
    inventory, admin = fleet

    def revoked_by_another_process(what):
        if what == "add_devices":
            inventory.begin_revocation("sensor-2", NOW_S)
            admin.rights.pop("sensor-2")

    admin.before = revoked_by_another_process
    broker.prepare_again(inventory)
    broker.prepare(admin, inventory, max_queues=500)
    assert set(admin.rights) >= {"sensor-1", "sensor-3"}
    assert "sensor-2" not in admin.rights


def test_a_lost_broker_that_is_away_gets_its_users_by_the_next_command(fleet):
    inventory, _ = fleet
    after = FakeAdmin()

    def away(_what):
        raise BrokerUnavailable("away")

    after.before = away
    broker.prepare_again(inventory)
    with pytest.raises(BrokerUnavailable):
        broker.prepare(after, inventory, max_queues=500)
    after.before = lambda _what: None
    broker.prepare(after, inventory, max_queues=500)
    assert set(after.rights) == {"coordinator", "sensor-1", "sensor-2", "sensor-3"}


def test_many_devices_come_back_in_few_calls(fleet, monkeypatch):
    inventory, _ = fleet
    monkeypatch.setattr(broker, "AT_ONCE", 2)
    calls, after = [], FakeAdmin()
    after.before = calls.append
    broker.prepare_again(inventory)
    broker.prepare(after, inventory, max_queues=500)
    assert calls == ["add_user", "add_devices", "add_devices"]
    assert len(after.exchanges) == 3
