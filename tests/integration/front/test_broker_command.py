"""`fedmq broker ctl`, and folders whose names RabbitMQ cannot take."""

import signal

import pytest

from tests.support.full import FULL
from tests.support.rabbitmq import require_server


@pytest.mark.broker
def test_ctl_is_rabbitmqctl_for_a_node_in_a_folder(terminal, tmp_path, rabbitmq_node):
    arguments = ("broker", "ctl", "--dir", str(rabbitmq_node.data_dir))
    listed = terminal(*arguments, "list_users", "--silent")  # an option of rabbitmqctl's own
    assert listed.ended() == 0, listed.text
    assert "fedmq\t[administrator]" in listed.text
    wrong = terminal(*arguments, "delete_user", "nobody")
    assert wrong.ended() == 67, wrong.text  # rabbitmqctl's own exit code


@pytest.mark.parametrize("arguments", [(), ("--dir", "nothing")])
def test_ctl_without_a_node_says_how_to_name_one(terminal, arguments):
    ctl = terminal("broker", "ctl", *arguments, "list_users")
    assert ctl.ended() == 2
    ctl.wait_for(r"fedmq: Name the broker|fedmq: nothing is not the folder of a private node")


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
