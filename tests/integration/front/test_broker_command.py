"""`fedmq broker ctl`, and folders whose names RabbitMQ cannot take."""

import os
import signal
from contextlib import closing
from pathlib import Path

import pytest

from fedmq.broker_config.node.ctl import running_here
from fedmq.cli.cli import main
from fedmq.cli.commands.broker import only_one
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.local.locks import FileLock
from tests.support.full import FULL
from tests.support.rabbitmq import require_server


@pytest.mark.broker
def test_ctl_is_rabbitmqctl_for_a_node_in_a_folder(terminal, tmp_path, rabbitmq_node):
    arguments = ("broker", "ctl", "--dir", str(rabbitmq_node.data_dir))
    listed = terminal(*arguments, "list_users", "--silent")  # an option of rabbitmqctl's own
    assert listed.ended() == 0, listed.text
    assert "fedmq\t[administrator]" in listed.text
    wrong = terminal(*arguments, "no_such_command")
    assert wrong.ended() == 64, wrong.text  # rabbitmqctl's own exit code


def test_ctl_with_a_folder_of_no_node_says_so(terminal):
    ctl = terminal("broker", "ctl", "--dir", "nothing", "list_users")
    assert ctl.ended() == 2
    ctl.wait_for("fedmq: nothing is not the folder of a private node")


def test_ctl_without_a_name_takes_the_only_node_that_runs(monkeypatch, capsys, tmp_path):
    for folders, told in ([], "Name the broker, because none runs here"), ([tmp_path], f"{tmp_path} is not the folder"):
        monkeypatch.setattr("fedmq.broker_config.node.ctl.running_here", lambda folders=folders: folders)
        with pytest.raises(SystemExit) as left:
            main(["broker", "ctl", "list_users"])
        assert (left.value.code, told in capsys.readouterr().err) == (2, True)


@pytest.mark.broker
def test_a_node_that_runs_is_found_by_its_process_and_one_of_several_has_to_be_named(rabbitmq_node):
    found = running_here()
    assert rabbitmq_node.data_dir in found
    assert only_one([rabbitmq_node.data_dir]) == rabbitmq_node.data_dir
    with pytest.raises(ConfigError, match=r"^Name the broker, because none runs here\. Give its folder with --dir"):
        only_one([])
    with pytest.raises(ConfigError, match=r"^Name the broker, of which these run here: a, b\. Give its folder"):
        only_one([Path("a"), Path("b")])


@pytest.mark.broker
@pytest.mark.parametrize("name", ["a'b", 'a"b', "a#b", "a\nb", "x/" * 300])
def test_a_folder_that_rabbitmq_cannot_take_is_refused(terminal, tmp_path, name):
    require_server()
    broker = terminal("broker", "--dir", str(tmp_path / name))
    assert broker.ended() == 2
    broker.wait_for(r"fedmq: RabbitMQ cannot keep its data in .*Name another folder \(--dir\)")


@pytest.mark.broker
@pytest.mark.skipif(not FULL, reason="each start takes seconds")
@pytest.mark.parametrize("name", ["größe, 50 %", "a+b@c=d:e~f -g_h($i)"])
def test_a_folder_with_an_unusual_name_works_with_ctl_too(terminal, tmp_path, name):
    require_server()
    broker = terminal("broker", "--dir", str(tmp_path / name))
    broker.wait_for("rabbitmqctl for it: fedmq broker ctl --dir")
    ctl = terminal("broker", "ctl", "--dir", str(tmp_path / name), "list_queues")
    assert ctl.ended() == 0, ctl.text
    broker.send(signal.SIGTERM)
    assert broker.ended() == 0


@pytest.mark.broker
def test_a_second_broker_in_one_folder_is_refused_and_the_first_goes_on(terminal, tmp_path):
    require_server()
    with closing(FileLock(tmp_path / "lock")) as lock:
        assert lock.take()  # as a broker that runs does
        second = terminal("broker", "--dir", str(tmp_path))
        assert second.ended() == 2
        second.wait_for(rf"fedmq: A broker runs in {tmp_path}: .*{os.getpid()}.*name another folder \(--dir\)")
