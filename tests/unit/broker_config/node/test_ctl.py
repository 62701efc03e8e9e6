"""rabbitmqctl's arguments, input and errors, with a script in its place."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from fedmq.broker_config.node.ctl import FILE, Ctl, CtlFailed, write_file
from fedmq.schemas.errors import BrokerRefused, BrokerUnavailable, ConfigError

SECRET = "s3cret-of-a-device"


def script(folder: Path, text: str) -> Ctl:
    path = folder / "rabbitmqctl"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Ctl(path, {"PATH": os.environ["PATH"]}, "start it")


def test_arguments_and_input_arrive_and_the_output_comes_back(tmp_path: Path) -> None:
    ctl = script(tmp_path, 'echo "$#:$1:$2"; cat')
    assert ctl.run("add_user", "a b", stdin="of a user\n") == "2:add_user:a b\nof a user\n"


def test_an_error_has_the_commands_name_and_words_but_no_argument_and_no_secret(tmp_path: Path) -> None:
    ctl = script(
        tmp_path,
        f'echo "Error (argument validation): too many arguments near {SECRET}." >&2\n'
        'echo "Arguments given:" >&2; echo "\t$*" >&2; exit 64',
    )
    with pytest.raises(CtlFailed) as caught:
        ctl.run("add_user", "name-of-it", "second-argument", stdin=SECRET, secrets=[SECRET])
    assert str(caught.value) == (
        "rabbitmqctl add_user failed (64): Error (argument validation): too many arguments near ***."
    )
    assert caught.value.code == 64


def test_a_first_argument_that_is_no_command_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(CtlFailed, match=r"^rabbitmqctl rabbitmqctl failed"):
        script(tmp_path, "exit 64").run(f"--password={SECRET}")


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    ctl = script(tmp_path, "sleep 300 & wait")  # the child holds the pipe of the output
    with pytest.raises(BrokerUnavailable, match=r"rabbitmqctl eval did not end within 0\.2 s"):
        ctl.run("eval", stdin=SECRET, timeout_s=0.2)


def test_a_node_that_does_not_answer_is_told_with_what_to_do(tmp_path: Path) -> None:
    ctl = script(tmp_path, "echo \"Error: unable to perform an operation on node 'x'.\" >&2; exit 69")
    with pytest.raises(BrokerUnavailable, match="does not answer: start it"):
        ctl.run("list_users")


def test_a_user_who_may_not_run_it_is_told_who_may(tmp_path: Path) -> None:
    ctl = script(tmp_path, 'echo "Only root or rabbitmq should run rabbitmqctl"; exit 1')
    with pytest.raises(BrokerRefused, match=r"run this as root or as the user rabbitmq.*management API"):
        ctl.run("list_users")


def test_the_environment_is_in_no_repr(tmp_path: Path) -> None:
    assert SECRET not in repr(Ctl(tmp_path, {"TOKEN": SECRET}))


def test_another_process_finds_the_node_by_a_file_of_this_user_alone(tmp_path: Path) -> None:
    environment = {**os.environ, "RABBITMQ_NODENAME": "one@localhost"}
    write_file(tmp_path, tmp_path / "rabbitmqctl", environment)
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert json.loads((tmp_path / FILE).read_text()) == {
        "command": str(tmp_path / "rabbitmqctl"),
        "environment": {"RABBITMQ_NODENAME": "one@localhost"},
    }
    found = Ctl.of_node(tmp_path)
    assert found.command == tmp_path / "rabbitmqctl"
    assert found.environment["RABBITMQ_NODENAME"] == "one@localhost"
    assert found.environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"command": 1, "environment": {}}', '{"command": "/x"}', "[" * 10**5]
)
def test_a_file_that_describes_no_node_is_our_own_error(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    (tmp_path / FILE).chmod(0o600)
    with pytest.raises(ConfigError, match="does not describe a private node"):
        Ctl.of_node(tmp_path)


def test_a_file_that_others_may_write_or_that_is_a_link_or_a_fifo_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with pytest.raises(ConfigError, match="no rabbitmqctl"):
        Ctl.of_node(tmp_path)
    path.write_text("{}")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="only it may write"):
        Ctl.of_node(tmp_path)
    path.rename(tmp_path / "other")
    path.symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="cannot be read"):
        Ctl.of_node(tmp_path)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match="has to be a file"):
        Ctl.of_node(tmp_path)
