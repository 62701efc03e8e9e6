"""`kill -9` of a fleet's command at each of its steps: the same command, run again, comes to the same end.

The command runs in a forked process, which a fault point kills. The broker's administration is a file, so that what was
done before the kill is still there.
"""

import json
import os
import signal
import traceback

import pytest

from fedmq.broker_config import faults
from fedmq.fleet import broker, bundle, certificates, enrolment, registrar, setup
from fedmq.fleet.certificates import Credential
from fedmq.fleet.folder import FleetFolder
from fedmq.fleet.inventory import Inventory
from fedmq.fleet.revocation import revoke
from fedmq.schemas.messages import CertificateRequest
from tests.support.fleet import NOW_S, PLAN, FakeAdmin, made

KILLED = -signal.SIGKILL
INIT = [
    "fleet-ca-key",
    "fleet-signing-key",
    "fleet-credentials",
    "fleet-inventory",
    "fleet-coordinator-user",
    "fleet-limits",
    "fleet-devices",
]
ENROL = ["fleet-row", "fleet-user", "fleet-certificate", "fleet-bundle", "fleet-enrolled"]
TOKEN = [*ENROL[:2], "fleet-old-tokens", "fleet-token-row", "fleet-token-user", "fleet-token", "fleet-token-open"]
REVOKE = ["fleet-revoking", "fleet-user-deleted", "fleet-queues-deleted", "fleet-exchange-deleted"]


class World:
    """A folder, and a broker whose users, exchanges and queues are in a file."""

    def __init__(self, path):
        self.path = path
        self.folder = FleetFolder(path / "fleet")
        self._broker = path / "broker.json"

    def in_a_process(self, work, point=""):
        """Do `work(inventory, admin)` in a forked process that dies at the fault point. Return its exit status."""
        pid = os.fork()
        if pid == 0:
            try:
                faults._armed, faults._left = point, 1
                admin = self.admin()
                admin.after = lambda: self._keep(admin)
                work(admin)
                os._exit(0)
            except BaseException:  # noqa: BLE001  a forked process goes no further
                traceback.print_exc()
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def admin(self):
        found = Kept()
        if self._broker.exists():
            found.users_, found.exchanges, found.names = (set(one) for one in json.loads(self._broker.read_text()))
            found.rights = dict.fromkeys(found.users_)
        return found

    def _keep(self, admin):
        self._broker.write_text(json.dumps([sorted(admin.rights), sorted(admin.exchanges), sorted(admin.names)]))


class Kept(FakeAdmin):
    """An administration that is kept after each change, before the next fault point."""

    after = staticmethod(lambda: None)

    def add_user(self, *arguments, **more):
        super().add_user(*arguments, **more)
        self.after()

    def add_devices(self, *arguments):
        super().add_devices(*arguments)
        self.after()

    def delete_user(self, name):
        super().delete_user(name)
        self.after()

    def declare_exchange(self, name):
        super().declare_exchange(name)
        self.after()

    def delete_exchange(self, name):
        super().delete_exchange(name)
        self.after()

    def delete_queues(self, names):
        super().delete_queues(names)
        self.after()


def init(world):
    def work(admin):
        setup.make(world.folder, PLAN, NOW_S)
        with Inventory(world.folder.inventory) as inventory:
            broker.prepare_again(inventory)
            broker.prepare(admin, inventory, max_queues=500)

    return work


def enrol(world):
    def work(admin):
        with Inventory(world.folder.inventory) as inventory:
            enrolment.enrol(
                "sensor-1", world.path / "sensor-1.bundle", folder=world.folder, inventory=inventory, admin=admin,
                now_s=NOW_S,
            )  # fmt: skip

    return work


def token(world):
    def work(admin):
        with Inventory(world.folder.inventory) as inventory:
            enrolment.token(
                "sensor-1", world.path / "sensor-1.token", 60.0, inventory=inventory, admin=admin, now_s=NOW_S
            )

    return work


def revocation(world):
    def work(admin):
        with Inventory(world.folder.inventory) as inventory:
            revoke("sensor-1", inventory=inventory, admin=admin, now_s=NOW_S)

    return work


@pytest.mark.parametrize("point", INIT)
def test_a_fleet_whose_making_was_killed_is_made(tmp_path, point):
    world = World(tmp_path)
    assert world.in_a_process(init(world), point) == KILLED
    assert world.in_a_process(init(world)) == 0
    authority = world.folder.authority()
    assert certificates.fits(authority)
    for path, name in ((world.folder.server, "127.0.0.1"), (world.folder.coordinator, "coordinator")):
        assert certificates.is_issued_by(path.read_text(), authority.certificate)
        assert certificates.facts(path.read_text()).common_name == name
    with Inventory(world.folder.inventory) as inventory:
        assert setup.shared(inventory).ca == authority.certificate
        assert inventory.fact("broker_prepared") == "yes"
    assert set(world.admin().rights) == {"coordinator"}
    assert list(world.folder.path.glob("*.tmp")) == []


@pytest.mark.parametrize("point", ["fleet-coordinator-user", "fleet-devices"])
def test_a_lost_brokers_users_come_back_by_the_same_command_after_a_kill(tmp_path, point):
    world = World(tmp_path)
    assert world.in_a_process(init(world)) == 0
    assert world.in_a_process(enrol(world)) == 0
    (tmp_path / "broker.json").unlink()
    assert world.in_a_process(init(world), point) == KILLED
    assert world.in_a_process(init(world)) == 0
    assert set(world.admin().rights) == {"coordinator", "sensor-1"}
    assert world.admin().exchanges == {"fedmq.up.sensor-1"}


@pytest.mark.parametrize("point", ENROL)
def test_a_device_whose_enrolment_was_killed_is_enrolled_by_the_same_command(tmp_path, point):
    world = World(tmp_path)
    made(tmp_path)
    assert world.in_a_process(enrol(world), point) == KILLED
    assert world.in_a_process(enrol(world)) == 0
    found = bundle.read(tmp_path / "sensor-1.bundle")
    assert certificates.fits(Credential(found.certificate, found.key))
    with Inventory(world.folder.inventory) as inventory:
        assert inventory.device("sensor-1").state == "enrolled"
        keys = [row.key_id for row in inventory.certificates("sensor-1")]
        assert certificates.key_id(found.key) in keys
    assert (set(world.admin().rights), world.admin().exchanges) == ({"sensor-1"}, {"fedmq.up.sensor-1"})


@pytest.mark.parametrize("point", TOKEN)
def test_a_token_whose_making_was_killed_is_made_by_the_same_command(tmp_path, point):
    world = World(tmp_path)
    made(tmp_path)
    assert world.in_a_process(token(world), point) == KILLED
    assert world.in_a_process(token(world)) == 0
    found = bundle.read(tmp_path / "sensor-1.token")
    with Inventory(world.folder.inventory) as inventory:
        assert inventory.device("sensor-1").state == "enrolled"
        assert inventory.token(found.user).state == "open"
        assert [one.user for one in inventory.tokens() if one.state != "closed"] == [found.user]
    assert set(world.admin().rights) == {"sensor-1", found.user}  # the user of a token before is gone


@pytest.mark.parametrize("point", REVOKE)
def test_a_device_whose_revocation_was_killed_is_revoked_by_the_same_command(tmp_path, point):
    world = World(tmp_path)
    made(tmp_path)
    assert world.in_a_process(enrol(world)) == 0
    assert world.in_a_process(revocation(world), point) == KILLED
    with Inventory(world.folder.inventory) as inventory:
        assert inventory.standing("sensor-1") == "revoked"  # from the first step on
    assert world.in_a_process(revocation(world)) == 0
    with Inventory(world.folder.inventory) as inventory:
        assert inventory.device("sensor-1").state == "revoked"
    assert (set(world.admin().rights), world.admin().exchanges) == (set(), set())


def test_a_certificate_that_was_signed_before_a_kill_is_the_one_that_the_device_gets(tmp_path):
    world = World(tmp_path)
    made(tmp_path)
    assert world.in_a_process(token(world)) == 0
    user = bundle.read(tmp_path / "sensor-1.token").user
    request = CertificateRequest(
        participant_id="sensor-1", request=certificates.request(certificates.new_key(), "sensor-1")
    )

    def ask(_admin):
        with Inventory(world.folder.inventory) as inventory:
            registrar.Registrar(world.folder, inventory, wall_s=lambda: NOW_S).on_request(request, user)

    assert world.in_a_process(ask, "fleet-signed") == KILLED
    with Inventory(world.folder.inventory) as inventory:
        (row,) = inventory.certificates("sensor-1")
        answer = registrar.Registrar(world.folder, inventory, wall_s=lambda: NOW_S).on_request(request, user)
        assert answer.certificate == row.certificate
