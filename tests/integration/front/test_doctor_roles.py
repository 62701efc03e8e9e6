"""The doctor as a device and as a coordinator, on a real broker, with exactly the rights of each and with one missing.

`site` is the security tests' virtual host, with a user for the coordinators and one for each device.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from fedmq.broker_config.amqp.probe import Probe
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.rights import Rights, coordinator_rights, device_rights
from fedmq.broker_config.settings import BrokerSettings
from fedmq.views.doctor import _broker
from fedmq.views.finding import Finding, Role
from fedmq.views.role_rights import asked, check
from tests.integration.front.test_commands import APP, FEDERATION
from tests.security.site import COORDINATOR, PASSWORD, WAIT_S, Site
from tests.support.full import FULL

pytestmark = pytest.mark.broker
USERS: dict[Role, str] = {"participant": "a.b", "coordinator": COORDINATOR}
EXACT: dict[Role, Rights] = {
    "participant": device_rights("fed.mq", "a.b"),
    "coordinator": coordinator_rights("fed.mq"),
}


@pytest.fixture(scope="module")
def site(rabbitmq_node: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    one = Site(rabbitmq_node, f"v{uuid.uuid4().hex[:10]}", tmp_path_factory.mktemp("site"))
    topology, coordinator = one.topology, one.transport(COORDINATOR)
    coordinator.open(topology.exchanges, topology.coordinator_queues, timeout_s=WAIT_S)
    coordinator.declare_exchange(topology.upload_exchange("a.b")).result(WAIT_S)
    coordinator.close()
    yield one
    one.close()


def queues(site: Site) -> set[str]:
    return set(site.node.ctl("list_queues", "-q", "--no-table-headers", "-p", site.vhost, "name").split())


def findings(site: Site, role: Role, user: str | None = None) -> list[Finding]:
    with Probe(site.url(user or USERS[role])) as probe:
        return list(check(probe, site.topology, role, "a.b"))


@pytest.mark.parametrize("role", USERS)
def test_exactly_the_rights_of_a_role_are_enough_and_leave_nothing_behind(site: Site, role: Role) -> None:
    before = queues(site)
    found = findings(site, role)
    assert {one.level for one in found} == {"ok"}, found
    assert f"rights: user '{USERS[role]}' may do all that" in found[-1].what
    assert queues(site) == before


@pytest.mark.parametrize(
    ("role", "right", "less", "acts"),
    [
        ("participant", "configure", r"^fed\.mq\.participant\.a\.b$", "declare fed.mq.payload.a.b.*"),
        ("participant", "write", r"^fed\.mq\.(control|up\.a\.b|payload\.a\.b\..*)$", "publish to fed.mq.updates"),
        (
            "participant", "write", r"^fed\.mq\.(control|up\.a\.b|updates)$",
            "bind fed.mq.payload.a.b.* to fed.mq.up.a.b",
        ),
        (
            "participant", "read", r"^fed\.mq\.(models|(participant|payload)\.a\.b(\..*)?)$",
            "bind fed.mq.payload.a.b.* to fed.mq.up.a.b",
        ),
        ("participant", "read", r"^fed\.mq\.(models|(up|payload)\.a\.b(\..*)?)$", "read fed.mq.participant.a.b"),
        ("coordinator", "configure", r"^fed\.mq\.(updates|control|dead|leader)$",
         "make exchanges for uploads, make queues for downloads, make a stream of models"),
        ("coordinator", "write", r"^fed\.mq\..*", "publish to the default exchange (amq.default)"),
        ("coordinator", "read", r"^fed\.mq\.(updates|control|dead|models|payload\..*)$", "read fed.mq.leader"),
    ][:: 1 if FULL else 5],
)  # fmt: skip
def test_a_missing_right_is_named_and_the_advice_is_enough_and_no_wider(
    site: Site, role: Role, right: str, less: str, acts: str
) -> None:
    user = USERS[role]
    site.grant({user: replace(EXACT[role], **{right: less})})
    try:
        wrong = [one for one in findings(site, role) if one.level != "ok"]
        assert [one.what for one in wrong] == [f"right to {right}: user '{user}' may not {acts}"]
        expression = shlex.quote(getattr(EXACT[role], right))
        command = wrong[0].advice.removeprefix(f"its {right} expression must be {expression}: ")
        with Probe(site.url(user)) as probe:
            assert command == asked(probe.address, role, "fed.mq", "a.b").command()
        program, *words = shlex.split(command)
        assert (program, words[-3:]) == ("rabbitmqctl", [getattr(EXACT[role], its) for its in Rights.__slots__])
        site.node.ctl(*words)
        assert {one.level for one in findings(site, role)} == {"ok"}
    finally:
        site.grant({user: EXACT[role]})


def test_rights_that_are_too_wide_are_told_and_nothing_is_taken_with_them(site: Site) -> None:
    site.grant({"anybody": Rights(".*", ".*", ".*")})
    before = site.depths()
    wide = [one for one in findings(site, "participant", "anybody") if one.level != "ok"]
    assert len(wide) == 1
    assert "may do more than participant 'a.b' does: read fed.mq.dead, read fed.mq.updates, read" in wide[0].what
    assert wide[0].advice.endswith(asked(_address(site), "participant", "fed.mq", "a.b").command())
    assert [one.level for one in findings(site, "coordinator", "anybody") if one.level != "ok"] == ["warning"]
    assert site.depths() == before


def test_a_virtual_host_that_is_closed_to_a_device_is_told_with_the_devices_command(site: Site) -> None:
    settings = BrokerSettings(url=site.node.url_for(user="a.b", password=PASSWORD, vhost="/"), prefix="fed.mq")
    (refused,) = [one for one in _broker(settings, 0, "participant", "a.b") if one.level != "ok"]
    assert "refused virtual host '/' to user 'a.b'" in refused.what
    words = [EXACT["participant"].configure, EXACT["participant"].write, EXACT["participant"].read]
    assert shlex.split(refused.advice) == ["rabbitmqctl", "set_permissions", "-p", "/", "a.b", *words]
    assert PASSWORD not in refused.what


def _address(site: Site):
    with Probe(site.url("anybody")) as probe:
        return probe.address


def test_the_command_checks_as_the_role_that_the_user_has(site: Site, terminal, tmp_path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "federation.toml").write_text(f'{FEDERATION}\n[security]\nidentity = "user"\n')
    common = {"FEDMQ_BROKER__PREFIX": "fed.mq"}
    doctors = [
        terminal("doctor", "-c", "federation.toml", **common, FEDMQ_BROKER_URL=site.url("a.b")),
        terminal("doctor", "-c", "federation.toml", **common, FEDMQ_BROKER_URL=site.url(COORDINATOR)),
        terminal(
            "doctor", "-c", "federation.toml", "--role", "participant", "--id", "sensor", **common,
            FEDMQ_BROKER_URL=site.url("a.b"),
        ),
    ]  # fmt: skip
    device, coordinator, mixed = doctors
    assert device.ended() == 0, device.text
    assert "✓ identity: user." in device.text
    assert f"✓ login: user 'a.b' by password, virtual host '{site.vhost}'" in device.text
    assert "✓ rights: user 'a.b' may do all that participant 'a.b' does" in device.text
    assert coordinator.ended() == 0, coordinator.text
    assert "✓ rights: user 'coordinator' may do all that the coordinator does" in coordinator.text
    assert mixed.ended() == 1
    assert "✗ login: the participant (--id) is 'sensor' and its user on the broker is 'a.b'" in mixed.text
    assert PASSWORD not in device.text + coordinator.text + mixed.text
