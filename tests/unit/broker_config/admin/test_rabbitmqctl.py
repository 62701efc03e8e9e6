"""Calls of rabbitmqctl, and what becomes of its answers, with a script in its place."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path

import pytest

from fedmq.broker_config.admin.documents import User
from fedmq.broker_config.admin.rabbitmqctl import RabbitmqctlAdmin
from fedmq.broker_config.node.ctl import Ctl
from fedmq.broker_config.rights import Rights
from fedmq.schemas.errors import BrokerError, ConfigError

SECRET = "a-token-of-a-device"
RIGHTS = Rights("c", "w", "r")


class Fake:
    """A rabbitmqctl that notes its arguments and its input, and answers as told."""

    def __init__(self, folder: Path, answer: str = "ok", code: int = 0) -> None:
        self._arguments, self._input = folder / "arguments", folder / "input"
        path = folder / "rabbitmqctl"
        path.write_text(
            f'#!/bin/sh\necho "$@" >>{self._arguments}\ncat >{self._input}\ncat <<"END"\n{answer}\nEND\nexit {code}\n'
        )
        path.chmod(0o755)
        self.admin = RabbitmqctlAdmin(Ctl(path, {"PATH": os.environ["PATH"]}))

    @property
    def arguments(self) -> list[str]:
        return self._arguments.read_text().splitlines() if self._arguments.exists() else []

    @property
    def program(self) -> str:
        return self._input.read_text()

    def document(self) -> dict[str, list[dict[str, object]]]:
        (found,) = re.findall(r'<<"([^"]*)">>', self.program)
        decoded: dict[str, list[dict[str, object]]] = json.loads(base64.b64decode(found))
        return decoded


def test_many_devices_are_one_call_without_a_name_or_a_secret_among_its_arguments(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.admin.add_devices(
        [User("a", RIGHTS, limits={"max-connections": 6}), User("b", RIGHTS, SECRET)], ["fedmq.up.a"]
    )
    assert fake.arguments == ["eval"]
    assert SECRET not in fake.program
    told = fake.document()
    hashed = told["users"][1].pop("password_hash")
    assert isinstance(hashed, str)
    assert len(base64.b64decode(hashed)) == 4 + 32
    same = {"hashing_algorithm": "rabbit_password_hashing_sha256", "tags": []}
    assert told["users"] == [
        {"name": "a", "password_hash": "", "limits": {"max-connections": 6}, **same},
        {"name": "b", "limits": {}, **same},
    ]
    assert told["permissions"][0] == {"user": "a", "vhost": "/", "configure": "c", "write": "w", "read": "r"}
    assert [(row["name"], row["type"], row["durable"]) for row in told["exchanges"]] == [("fedmq.up.a", "direct", True)]


def test_limits_and_policies_are_parameters(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.admin.set_vhost_limits({"max-queues": 7})
    assert fake.document() == {
        "parameters": [{"vhost": "/", "component": "vhost-limits", "name": "limits", "value": {"max-queues": 7}}]
    }
    fake.admin.set_operator_policy("n", r"^p\.", {"expires": 5})
    (row,) = fake.document()["parameters"]
    assert row["component"] == "operator_policy"
    assert row["value"] == {"pattern": r"^p\.", "apply-to": "queues", "priority": 0, "definition": {"expires": 5}}


def test_a_refusal_that_repeats_a_secret_is_told_without_it(tmp_path: Path) -> None:
    fake = Fake(tmp_path, answer=f"{{error,{{no_such_vhost,<<{SECRET}>>}}}}")
    with pytest.raises(BrokerError, match="no_such_vhost") as caught:
        fake.admin.add_user("a", RIGHTS, SECRET)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["$(id)", "a b", "`id`", "--node=x", "", "a\n", "x" * 256])
def test_a_name_that_a_shell_would_read_is_no_argument(tmp_path: Path, name: str) -> None:
    fake = Fake(tmp_path)
    with pytest.raises(ConfigError, match="cannot be an argument"):
        fake.admin.delete_user(name)
    assert fake.arguments == []


def test_names_of_queues_reach_erlang_as_data(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.admin.delete_queues(['"), halt().', "b"])
    assert "halt" not in fake.program
    assert base64.b64encode(b'"), halt().').decode() in fake.program
    fake.admin.delete_queues([])
    assert fake.arguments == ["eval"], "no queue, no call"


def test_a_user_that_is_gone_already_is_deleted(tmp_path: Path) -> None:
    Fake(tmp_path, answer='User "a" does not exist', code=67).admin.delete_user("a")
    with pytest.raises(BrokerError, match="delete_user failed"):
        Fake(tmp_path, answer="something else", code=70).admin.delete_user("a")


def test_tables_are_read_and_other_answers_are_errors(tmp_path: Path) -> None:
    rows = '[{"user":"a","name":"1"},{"user":"b","name":"2"}]'
    assert Fake(tmp_path, answer=rows).admin.connections_of("a") == {"1"}
    assert Fake(tmp_path, answer=rows).admin.users() == {"a", "b"}
    for answer in ("ok", "[1]", "{}"):
        with pytest.raises(BrokerError, match="a table in JSON"):
            Fake(tmp_path, answer=answer).admin.users()
