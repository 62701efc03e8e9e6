"""Findings on rights: which steps each role takes, and that advice is exactly the role's three expressions."""

from __future__ import annotations

import pytest

from fedmq.broker_config.amqp.address import BrokerAddress, declaration_refusal
from fedmq.broker_config.amqp.probe import Refusal
from fedmq.broker_config.topology import Topology
from fedmq.schemas.errors import BrokerError
from fedmq.views.finding import Finding
from fedmq.views.role_rights import Asked, asked, check, lacking, wider

ADDRESS = BrokerAddress.parse("amqp://sensor-1:x@h/field")
CONFIGURE = r"^fedmq\.(participant\.sensor-1|payload\.sensor-1\.[0-9a-f]{32})$"
WRITE = r"^fedmq\.(updates|control|up\.sensor-1|payload\.sensor-1\.[0-9a-f]{32})$"
READ = r"^fedmq\.(models|participant\.sensor-1|up\.sensor-1|payload\.sensor-1\.[0-9a-f]{32})$"
DEVICES = f"rabbitmqctl set_permissions -p field sensor-1 '{CONFIGURE}' '{WRITE}' '{READ}'"
COORDINATORS = r"rabbitmqctl set_permissions -p / boss '^fedmq\..*' '^(amq\.default|fedmq\..*)$' '^fedmq\..*'"


def devices() -> Asked:
    return asked(ADDRESS, "participant", "fedmq", "sensor-1")


def coordinators() -> Asked:
    return asked(BrokerAddress.parse("amqp://boss:x@h/"), "coordinator", "fedmq", "sensor-1")


def test_the_advice_for_a_device_names_the_expression_that_is_missing_and_the_devices_command() -> None:
    found = list(lacking(devices(), [("write", "publish to fedmq.updates")], "participant", "sensor-1"))
    assert found == [
        Finding(
            "wrong",
            "right to write: user 'sensor-1' may not publish to fedmq.updates",
            f"its write expression must be '{WRITE}': {DEVICES}",
        )
    ]


def test_the_advice_for_a_coordinator_is_the_coordinators_and_the_three_rights_are_told_in_order() -> None:
    acts = [("read", "read fedmq.dead"), ("configure", "declare fedmq.leader"), ("read", "read fedmq.leader")]
    found = list(lacking(coordinators(), acts, "coordinator", "sensor-1"))
    assert [(one.what, one.advice) for one in found] == [
        (
            "right to configure: user 'boss' may not declare fedmq.leader",
            rf"its configure expression must be '^fedmq\..*': {COORDINATORS}",
        ),
        (
            "right to read: user 'boss' may not read fedmq.dead, read fedmq.leader",
            rf"its read expression must be '^fedmq\..*': {COORDINATORS}",
        ),
    ]


def test_without_a_role_the_advice_names_the_devices_check_first() -> None:
    want = asked(BrokerAddress.parse("amqp://boss:x@h/"), None, "fedmq", "sensor-1")
    (found,) = lacking(want, [("write", "publish to fedmq.dead")], None, "sensor-1")
    assert found.advice.startswith(
        "fedmq doctor --role participant --id sensor-1 if this is a device's user, which needs less; "
    )
    assert found.advice.endswith(COORDINATORS)


@pytest.mark.parametrize("want", [devices(), coordinators()])
def test_no_advice_has_an_expression_for_everything(want: Asked) -> None:
    assert "'.*'" not in want.command()


def test_a_user_with_more_rights_is_told_the_roles_command() -> None:
    assert wider(devices(), ["read fedmq.updates", "read fedmq.dead"]) == Finding(
        "warning",
        "rights: user 'sensor-1' may do more than participant 'sensor-1' does: read fedmq.updates, read fedmq.dead",
        f"take that from it: {DEVICES}",
    )


class Broker:
    """A broker that refuses what it is told to, and notes what was asked."""

    def __init__(self, refused: dict[tuple[str, str], Refusal], there: set[str]) -> None:
        self.address = ADDRESS
        self.refused, self.there = refused, there
        self.acts: list[tuple[str, str]] = []

    def meaning(self, what: str, refused: Refusal) -> BrokerError:
        return declaration_refusal(self.address, what, refused.code, refused.text)

    def __getattr__(self, name: str):  # the methods of a Probe
        def act(item, *more):
            key = (name, getattr(item, "name", item))
            self.acts.append(key)
            if name == "look":
                return None if key[1] in self.there else Refusal(404, "NOT_FOUND - no queue 'q' in vhost 'v'")
            return next(
                (refusal for (what, of), refusal in self.refused.items() if what == name and of in key[1]), None
            )

        return act


SHARED = {"fedmq.updates", "fedmq.control"}
FOREIGN = Refusal(403, "ACCESS_REFUSED - access to queue 'q' in vhost 'field' refused for user 'sensor-1'")
NARROW = {
    ("read", "fedmq.dead"): FOREIGN, ("read", "fedmq.updates"): FOREIGN, ("read", "fedmq.control"): FOREIGN,
    ("read", "fedmq.leader"): FOREIGN, ("read", "participant.doctor"): FOREIGN, ("delete_exchange", ""): FOREIGN,
    ("delete_queue", "doctor"): FOREIGN, ("publish", "fedmq.dead"): FOREIGN,
}  # fmt: skip


class NoDefault(Broker):
    def publish(self, exchange: str, _routing_key: str) -> Refusal | None:
        return FOREIGN if exchange in ("", "fedmq.dead") else None


def test_a_participant_deletes_what_it_made_and_leaves_the_queue_of_one_that_runs() -> None:
    own = "fedmq.participant.sensor-1"
    fresh, running = NoDefault(NARROW, SHARED), NoDefault(NARROW, {*SHARED, own})
    for broker in (fresh, running):
        found = list(check(broker, Topology(), "participant", "sensor-1"))  # type: ignore[arg-type]
        assert {one.level for one in found} == {"ok"}, found
        uploads = [name for act, name in broker.acts if act == "delete_queue" and ".payload." in name]
        assert len(uploads) == 1
    assert ("delete_queue", own) in fresh.acts
    assert ("delete_queue", own) not in running.acts


def test_what_only_the_coordinator_makes_is_a_wait_and_no_failure() -> None:
    found = list(check(NoDefault(NARROW, set()), Topology(), "participant", "sensor-1"))  # type: ignore[arg-type]
    assert [one.level for one in found] == ["warning", "ok", "ok"]
    assert found[0].what == "shared objects: the coordinator has not made fedmq.control and fedmq.updates yet"


def test_a_queue_with_other_arguments_is_no_matter_of_rights() -> None:
    conflict = Refusal(406, "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q'")
    broker = NoDefault({**NARROW, ("declare", "fedmq.participant"): conflict}, SHARED)
    found = [one for one in check(broker, Topology(), "participant", "sensor-1") if one.level != "ok"]  # type: ignore[arg-type]
    assert [one.level for one in found] == ["wrong"]
    assert "set_permissions" not in found[0].what + found[0].advice


def test_what_was_missing_and_is_declared_again_is_told_and_a_first_start_is_no_warning() -> None:
    class Declaring(Broker):
        def declare(self, item) -> None:
            self.there.add(item.name)

    topology = Topology()
    all_there = {one.name for one in (*topology.exchanges, *topology.coordinator_queues)}

    def told(there: set[str]) -> list[tuple[str, str]]:
        found = check(Declaring({}, there), topology, None, "sensor-1")  # type: ignore[arg-type]
        return [(one.level, one.what) for one in found if one.what.startswith("shared objects")]

    assert told(set(all_there)) == []
    assert told(all_there - {"fedmq.leader"}) == [
        ("warning", "shared objects: queue fedmq.leader was missing, and made again now")
    ]
    assert told(all_there - {"fedmq.updates"}) == [
        ("warning", "shared objects: exchange fedmq.updates, queue fedmq.updates were missing, and made again now")
    ]
    assert [level for level, _ in told(set())] == ["ok"]
