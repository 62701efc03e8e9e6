"""The expressions of rights: exact texts, and the names that they match."""

import re

import pytest

from fedmq.broker_config.rights import Rights, coordinator_rights, device_rights, joining_rights
from fedmq.schemas.errors import ConfigError

KEY = "0123456789abcdef" * 2


def allowed(expression: str, name: str) -> bool:
    """Match as RabbitMQ does: it searches, so that only the anchors bind both ends."""
    return re.search(expression, name) is not None


def test_the_rights_of_a_device_are_these_texts() -> None:
    assert device_rights("fedmq", "sensor-2") == Rights(
        configure=r"^fedmq\.(participant\.sensor-2|payload\.sensor-2\.[0-9a-f]{32})$",
        write=r"^fedmq\.(updates|control|up\.sensor-2|payload\.sensor-2\.[0-9a-f]{32})$",
        read=r"^fedmq\.(models|participant\.sensor-2|up\.sensor-2|payload\.sensor-2\.[0-9a-f]{32})$",
    )


def test_the_rights_of_a_coordinator_are_these_texts() -> None:
    assert coordinator_rights("fedmq") == Rights(
        configure=r"^fedmq\..*", write=r"^(amq\.default|fedmq\..*)$", read=r"^fedmq\..*"
    )


def test_dots_in_prefix_and_id_are_escaped() -> None:
    assert device_rights("eu.fl", "a.b").read == (
        r"^eu\.fl\.(models|participant\.a\.b|up\.a\.b|payload\.a\.b\.[0-9a-f]{32})$"
    )
    assert coordinator_rights("eu.fl").write == r"^(amq\.default|eu\.fl\..*)$"


@pytest.mark.parametrize(
    ("one", "other"), [("a.b", "aXb"), ("sensor", "sensor-2"), ("sensor-2", "sensor"), ("a", "a.b"), ("b", "a.b")]
)
def test_a_device_has_no_right_to_anything_of_another(one: str, other: str) -> None:
    rights = device_rights("fedmq", one)
    others = (f"fedmq.participant.{other}", f"fedmq.up.{other}", f"fedmq.payload.{other}.{KEY}")
    for expression in (rights.configure, rights.write, rights.read):
        assert not any(allowed(expression, name) for name in others)
    assert allowed(rights.read, f"fedmq.payload.{one}.{KEY}")


@pytest.mark.parametrize(
    "name",
    ["", "amq.default", "amq.direct", "amq.gen-x", "fedmq.dead", "fedmq.leader", "fedmq.tasks", "fedmq.payloads"],
)
def test_a_device_has_no_right_to_these(name: str) -> None:
    rights = device_rights("fedmq", "p1")
    assert not any(allowed(expression, name) for expression in (rights.configure, rights.write, rights.read))


def test_a_device_may_write_to_updates_and_control_and_neither_read_nor_declare_them() -> None:
    rights = device_rights("fedmq", "p1")
    for name in ("fedmq.updates", "fedmq.control"):
        assert allowed(rights.write, name)
        assert not allowed(rights.read, name)
        assert not allowed(rights.configure, name)


def test_a_device_never_makes_the_exchange_of_its_uploads() -> None:
    rights = device_rights("fedmq", "p1")
    assert [allowed(one, "fedmq.up.p1") for one in (rights.configure, rights.write, rights.read)] == [False, True, True]


@pytest.mark.parametrize("key", ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32, f"x.{KEY}", f"{KEY}.x"])
def test_a_payload_queue_ends_in_32_hexadecimal_digits(key: str) -> None:
    assert not allowed(device_rights("fedmq", "p1").configure, f"fedmq.payload.p1.{key}")


@pytest.mark.parametrize("name", ["fedmqXupdates", "xfedmq.updates", "fedmq.updates.x", "fedmq2.updates"])
def test_a_prefix_is_bounded_at_both_ends(name: str) -> None:
    assert not allowed(device_rights("fedmq", "p1").write, name)


@pytest.mark.parametrize("name", ["xfedmq.updates", "fedmqXupdates", "fedmq", "amqXdefault", "amq.default.x"])
def test_a_coordinator_has_no_right_to_another_prefix(name: str) -> None:
    rights = coordinator_rights("fedmq")
    assert not any(allowed(expression, name) for expression in (rights.configure, rights.write, rights.read))


@pytest.mark.parametrize("name", ["", ".a", "a b", "a|b", "a*", "a\n", "é", "a" * 65, r"a\E"])
def test_a_name_that_fedmq_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="participant id"):
        device_rights("fedmq", name)
    with pytest.raises(ConfigError, match="prefix"):
        coordinator_rights(name)


def test_a_temporary_user_may_ask_and_read_the_answer_and_nothing_else() -> None:
    queue = r"^eu\.fl\.participant\.join-0f$"
    assert joining_rights("eu.fl", "join-0f") == Rights(configure=queue, write=r"^eu\.fl\.control$", read=queue)
