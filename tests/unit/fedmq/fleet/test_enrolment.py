"""Devices that come in, with a broker's administration that only remembers."""

import pytest

from fedmq.broker_config.rights import device_rights, joining_rights
from fedmq.fleet import bundle, certificates, enrolment
from fedmq.fleet.certificates import DAY_S, Credential
from fedmq.fleet.inventory import Inventory
from fedmq.fleet.revocation import revoke
from fedmq.schemas.errors import BrokerError, BrokerUnavailable, ConfigError, FleetError
from tests.support.fleet import NOW_S, FakeAdmin, made


class World:
    """A fleet, its inventory and its broker."""

    def __init__(self, path):
        self.path = path
        self.folder = made(path)
        self.inventory = Inventory(self.folder.inventory)
        self.admin = FakeAdmin()
        self.now_s = NOW_S

    def enrol(self, device_id="sensor-1", **more):
        return enrolment.enrol(
            device_id, self.path / f"{device_id}.bundle", folder=self.folder, inventory=self.inventory,
            admin=self.admin, now_s=self.now_s, **more,
        )  # fmt: skip

    def token(self, device_id="sensor-1", ttl_s=60.0, **more):
        path = self.path / f"{device_id}.token"
        enrolment.token(
            device_id, path, ttl_s, inventory=self.inventory, admin=self.admin, now_s=self.now_s, **more
        )  # fmt: skip
        return bundle.read(path)

    def revoke(self, device_id="sensor-1", **more):
        return revoke(device_id, inventory=self.inventory, admin=self.admin, now_s=self.now_s, **more)


@pytest.fixture
def world(tmp_path):
    made_here = World(tmp_path)
    yield made_here
    made_here.inventory.close()


def test_an_enrolled_device_has_a_user_an_exchange_and_a_bundle(world):
    world.enrol(max_examples=600)
    assert world.admin.rights == {"sensor-1": device_rights("fedmq", "sensor-1")}
    assert world.admin.passwords == {"sensor-1": None}
    assert world.admin.limits == {"sensor-1": {"max-connections": 6, "max-channels": 16}}
    assert world.admin.exchanges == {"fedmq.up.sensor-1"}
    found = bundle.read(world.path / "sensor-1.bundle")
    assert found.participant_id == "sensor-1"
    facts = certificates.facts(found.certificate)
    assert (facts.common_name, facts.not_after_s) == ("sensor-1", NOW_S + 90 * DAY_S)
    assert certificates.fits(Credential(found.certificate, found.key))
    assert certificates.is_issued_by(found.certificate, found.ca)
    assert found.coordinator_key == certificates.public_signing_key(world.folder.signing_key.read_text())
    assert (world.inventory.device("sensor-1").state, world.inventory.max_examples("sensor-1")) == ("enrolled", 600)
    assert [row.key_id for row in world.inventory.certificates("sensor-1")] == [facts.key_id]


@pytest.mark.parametrize("step", ["add_devices"])
def test_a_step_that_failed_is_made_by_the_same_command(world, step):
    def fail(what):
        if what == step:
            raise BrokerUnavailable("away")

    world.admin.before = fail
    with pytest.raises(BrokerUnavailable):
        world.enrol()
    assert world.inventory.device("sensor-1").state == "enrolling"
    assert not (world.path / "sensor-1.bundle").exists()
    world.admin.before = lambda _what: None
    world.enrol()
    assert world.inventory.device("sensor-1").state == "enrolled"
    assert world.admin.exchanges == {"fedmq.up.sensor-1"}


def test_a_device_gets_a_second_bundle_only_if_asked_for(world):
    world.enrol()
    first = bundle.read(world.path / "sensor-1.bundle")
    assert "enrolled already" in world.enrol()
    assert bundle.read(world.path / "sensor-1.bundle") == first
    (world.path / "sensor-1.bundle").unlink()
    with pytest.raises(ConfigError, match=r"--again.*revoke the device"):
        world.enrol()
    world.enrol(again=True)
    assert bundle.read(world.path / "sensor-1.bundle").key != first.key


@pytest.mark.parametrize("name", ["coordinator", "Coordinator", "join-1", "JOIN-abc"])
def test_names_of_others_are_no_devices(world, name):
    with pytest.raises(ConfigError, match="choose an"):
        world.enrol(name)
    assert world.inventory.devices() == []
    assert world.admin.rights == {}


def test_a_user_of_the_broker_that_is_no_device_keeps_its_rights(world):
    world.admin.rights["administrator"] = everything = device_rights("fedmq", "x")
    with pytest.raises(ConfigError, match="no device of this fleet"):
        world.enrol("administrator")
    assert world.admin.rights == {"administrator": everything}
    assert world.inventory.devices() == []


def test_nothing_is_begun_if_the_authoritys_key_is_away(world):
    world.folder.ca_key.rename(world.path / "stick.key")
    with pytest.raises(FleetError, match="--ca-key"):
        world.enrol()
    assert world.inventory.devices() == []
    world.enrol(ca_key=world.path / "stick.key")
    assert world.inventory.device("sensor-1").state == "enrolled"


def test_a_token_has_a_temporary_user_that_may_ask_and_nothing_else(world):
    found = world.token(ttl_s=60.0)
    assert found.user.startswith("join-")
    assert world.admin.passwords == {"sensor-1": None, found.user: found.password}
    assert world.admin.rights[found.user] == joining_rights("fedmq", found.user)
    assert (found.participant_id, found.expires_s) == ("sensor-1", NOW_S + 60)
    assert world.inventory.token(found.user).state == "open"
    assert world.inventory.device("sensor-1").state == "enrolled"


def test_a_new_token_ends_the_one_before(world):
    first, second = world.token(), world.token()
    assert world.inventory.token(first.user).state == "closed"
    assert set(world.admin.rights) == {"sensor-1", second.user}


def test_a_device_with_a_certificate_gets_a_token_only_if_asked_for(world):
    world.enrol()
    with pytest.raises(ConfigError, match="--again"):
        world.token()
    assert world.token(again=True).participant_id == "sensor-1"


def test_tokens_that_are_over_lose_their_users(world):
    first, second = world.token("a", 60.0), world.token("b", 600.0)
    world.admin.names = {f"fedmq.participant.{first.user}", f"fedmq.participant.{second.user}"}
    enrolment.sweep(world.inventory, world.admin, NOW_S + 59)
    assert {first.user, second.user} <= set(world.admin.rights)
    enrolment.sweep(world.inventory, world.admin, NOW_S + 60)
    assert set(world.admin.rights) == {"a", "b", second.user}
    assert world.admin.names == {f"fedmq.participant.{second.user}"}
    assert world.inventory.token(first.user).state == "closed"


def test_a_broker_that_refuses_a_sweep_is_asked_again(world):
    found = world.token()

    def fail(_what):
        raise BrokerError("no")

    world.admin.before = fail
    enrolment.sweep(world.inventory, world.admin, NOW_S + 60)
    assert world.inventory.token(found.user).state == "open"
    world.admin.before = lambda _what: None
    enrolment.sweep(world.inventory, world.admin, NOW_S + 60)
    assert world.inventory.token(found.user).state == "closed"


# Revocation


def test_a_revoked_device_leaves_nothing_on_the_broker_and_others_lose_nothing(world):
    world.enrol("sensor")
    world.enrol("sensor-2")
    world.token("sensor", again=True)
    key = "0123456789abcdef" * 2
    others = {
        "fedmq.updates", "fedmq.participant.sensor-2", f"fedmq.payload.sensor-2.{key}",
        f"fedmq.payload.sensor.{key}.{key}",  # of the device "sensor.0123..."
    }  # fmt: skip
    world.admin.names = {*others, "fedmq.participant.sensor", f"fedmq.payload.sensor.{key}"}
    assert "is revoked" in world.revoke("sensor")
    assert set(world.admin.rights) == {"sensor-2"}
    assert world.admin.exchanges == {"fedmq.up.sensor-2"}
    assert world.admin.names == others
    assert world.inventory.device("sensor").state == "revoked"
    with pytest.raises(ConfigError, match="never enrolled again"):
        world.enrol("sensor")
    with pytest.raises(ConfigError, match="never enrolled again"):
        world.token("sensor")
    assert set(world.admin.rights) == {"sensor-2"}


@pytest.mark.parametrize("step", ["delete_user", "delete_queues", "delete_exchange"])
def test_a_device_is_revoked_before_the_broker_hears_of_it(world, step):
    world.enrol()

    def fail(what):
        if what == step:
            raise BrokerUnavailable("away")

    world.admin.before = fail
    with pytest.raises(BrokerUnavailable):
        world.revoke()
    assert world.inventory.standing("sensor-1") == "revoked"
    world.admin.before = lambda _what: None
    world.revoke()
    assert (world.inventory.device("sensor-1").state, world.admin.rights) == ("revoked", {})


def test_queues_are_deleted_once_the_connections_are_closed(world):
    world.enrol()
    world.admin.connections["sensor-1"] = ["one", "two"]
    waits = []
    world.revoke(sleep=waits.append, monotonic=lambda: 0.0)
    assert waits == [0.25, 0.25]


def test_a_connection_that_stays_holds_the_revocation_up_for_a_while_only(world):
    world.enrol()
    world.admin.connections["sensor-1"] = ["one"] * 1000
    clock = iter(range(1000))
    world.revoke(sleep=lambda _s: None, monotonic=lambda: next(clock))
    assert world.inventory.device("sensor-1").state == "revoked"
