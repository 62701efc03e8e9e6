"""The users of docker-compose.yml, made by its own script on a node of ours."""

import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

from fedmq.broker_config.amqp.address import BrokerAddress
from fedmq.broker_config.amqp.handshake import try_login
from fedmq.broker_config.rights import coordinator_rights, device_rights

ROOT = Path(__file__).parents[3]
PASSWORDS = ("FEDMQ_BROKER_PASSWORD", "FEDMQ_COORDINATOR_PASSWORD", "FEDMQ_PARTICIPANT_PASSWORD")
ANY_ID = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


def rights_of(node, user):
    [row] = [row for row in node.ctl("list_permissions", "--no-table-headers").splitlines() if row.startswith(user)]
    return tuple(row.split("\t")[1:])


@pytest.mark.broker
@pytest.mark.timeout(180)
def test_the_script_makes_the_users_or_gives_them_their_passwords_and_the_rights_of_their_roles(
    rabbitmq_node, tmp_path
):
    node = rabbitmq_node
    program = tmp_path / "rabbitmqctl"
    program.write_text(f'#!/bin/sh\nexec {node._sbin}/rabbitmqctl "$@"\n')
    program.chmod(0o700)
    node.ctl("add_user", "participant", "an older password")
    given = {name: secrets.token_hex(16) for name in PASSWORDS[1:]}
    path = f"{tmp_path}:{os.environ['PATH']}"
    try:
        done = subprocess.run(
            ["sh", str(ROOT / "broker_config" / "compose-users.sh")],
            env={**node._environment(), "PATH": path, **given},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=150, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for user, password in zip(("coordinator", "participant"), given.values(), strict=True):
            assert password not in done.stdout + done.stderr
            assert try_login(BrokerAddress.parse(node.url_for(user=user, password=password)))
        of_coordinator, of_device = coordinator_rights("fedmq"), device_rights("fedmq", "ID")
        assert rights_of(node, "coordinator") == (of_coordinator.configure, of_coordinator.write, of_coordinator.read)
        expected = (of_device.configure, of_device.write, of_device.read)
        assert rights_of(node, "participant") == tuple(right.replace("ID", ANY_ID) for right in expected)
    finally:
        for user in ("coordinator", "participant"):
            node.ctl("delete_user", user)


def test_compose_has_no_default_password():
    text = (ROOT / "docker-compose.yml").read_text()
    variables = re.findall(r"\$\{([^}]*)\}", text)
    assert {variable.split(":?")[0] for variable in variables} == set(PASSWORDS)
    assert all(":?put it into .env" in variable for variable in variables)
    example = (ROOT / ".env.example").read_text().splitlines()
    assert [line for line in example if not line.startswith("#")] == [f"{name}=" for name in PASSWORDS]


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
@pytest.mark.parametrize("missing", PASSWORDS)
def test_compose_refuses_to_start_without_a_password(missing):
    given = {name: secrets.token_hex(16) for name in PASSWORDS if name != missing}
    command = ["docker-compose", "-f", str(ROOT / "docker-compose.yml"), "config"]
    kept = {name: value for name, value in os.environ.items() if name not in PASSWORDS}
    refused = subprocess.run(command, env={**kept, **given}, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0
    assert missing in refused.stderr
    assert "put it into .env" in refused.stderr
    given[missing] = "x"
    subprocess.run(command, env={**kept, **given}, capture_output=True, timeout=60, check=True)
