"""A federation of devices on a RabbitMQ that lets in certificates, with the chaos tests' witness and checks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedmq.broker_config.admin.documents import User
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.rights import Rights, coordinator_rights
from fedmq.fleet import bundle, certificates, enrolment, setup
from fedmq.fleet.backend import BackendChoice, backend
from fedmq.fleet.bundle import TokenFile
from fedmq.fleet.certificates import DAY_S
from fedmq.fleet.folder import FleetFolder
from fedmq.fleet.inventory import Inventory
from tests.chaos.harness import DEADLINE_S, Federation
from tests.integration.front.terminal import Terminal
from tests.support.fleet import PLAN

EVERYTHING = Rights(".*", ".*", ".*")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Ask until it is so."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


class Fleet(Federation):
    """One federation whose participants are devices of a fleet. Users are the broker's, so their names begin with the
    federation's prefix."""

    def __init__(self, folder: Path, node: PrivateNode, authority: FleetFolder, prefix: str, **more: float) -> None:
        """Make the fleet's folder with the authority that the node knows, and the witness's user."""
        self.node = node
        self.prefix = prefix
        self.coordinator_user = f"{prefix}-c"
        self.fleet = FleetFolder(folder / "fleet")
        self.fleet.path.mkdir(parents=True)
        for path in (authority.ca, authority.ca_key, authority.server):
            shutil.copy(path, self.fleet.path / path.name)
        self.admin = backend(BackendChoice("node", str(node.data_dir)), self.fleet, "/")
        witness = f"{prefix}-w"
        own = certificates.client_certificate(self.fleet.authority(), witness, time.time(), DAY_S)
        (folder / "witness.pem").write_text(own.pem)
        coordinator = User(self.coordinator_user, coordinator_rights(prefix))
        self.admin.add_devices([User(witness, EVERYTHING), coordinator], [])  # one call: each takes a second
        super().__init__(
            folder,
            node.url,
            prefix,
            more=f'[security]\ncoordinator_user = "{self.coordinator_user}"\n',
            auth="external",
            ca_file=str(self.fleet.ca),
            cert_file=str(folder / "witness.pem"),
            **more,
        )

    def make(self, **limits: int) -> None:
        """Make the fleet as `fedmq fleet init` does, in this process."""
        plan = replace(
            PLAN, urls=(self.node.url,), prefix=self.prefix, coordinator_user=self.coordinator_user, **limits
        )
        setup.make(self.fleet, plan, time.time())
        with self.inventory() as inventory:
            BackendChoice("node", str(self.node.data_dir)).note(inventory)
            inventory.set_fact("broker_prepared", "yes")  # the coordinator's user is there

    def inventory(self) -> Inventory:
        return Inventory(self.fleet.inventory)

    def name(self, letter: str) -> str:
        """Return a device's id."""
        return f"{self.prefix}-{letter}"

    def enrol(self, letter: str, age_s: float = 0.0) -> None:
        """Enrol a device as `fedmq fleet enrol` does, in this process. Its certificate is `age_s` old."""
        name = self.name(letter)
        (self.folder / "calls").mkdir(exist_ok=True)
        (self.folder / "calls" / name).touch()
        with self.inventory() as inventory:
            enrolment.enrol(
                name, self.folder / f"{name}.bundle", folder=self.fleet, inventory=inventory, admin=self.admin,
                now_s=time.time() - age_s,
            )  # fmt: skip

    def token(self, letter: str, ttl_s: float = 3600.0, age_s: float = 0.0) -> TokenFile:
        """Write a token as `fedmq fleet token` does, in this process."""
        path = self.folder / f"{self.name(letter)}.token"
        with self.inventory() as inventory:
            enrolment.token(
                self.name(letter), path, ttl_s, inventory=inventory, admin=self.admin, now_s=time.time() - age_s
            )
        found = bundle.read(path)
        assert isinstance(found, TokenFile)
        return found

    def command(self, *arguments: str, fault: str = "") -> Terminal:
        """Run `fedmq fleet …`."""
        return self._start("fleet", *arguments, fault=fault)

    def device(self, letter: str, kind: str = "bundle", fault: str = "", file: str | None = None) -> Terminal:
        """Run `fedmq participant --bundle …`."""
        return self._start("participant", "--bundle", file or f"{self.name(letter)}.{kind}", fault=fault)

    def users(self) -> set[str]:
        """Return the broker's users of this federation."""
        return {name for name in self.admin.users() if name.startswith((self.prefix, "join-"))}
