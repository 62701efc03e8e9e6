"""The private node: the data that it keeps, its traces after its end, and its words when it cannot start."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedmq.broker_config.node.node import DEFAULT_CONFIG, PrivateNode
from fedmq.schemas.errors import BrokerError, BrokerUnavailable
from tests.integration.broker.traffic import WAIT_S, Corner, News, alive
from tests.support.asking import ask_until
from tests.support.rabbitmq import require_server

pytestmark = pytest.mark.broker


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=WAIT_S).close()
    except ConnectionRefusedError:
        return False
    return True


def test_messages_and_the_password_survive_stop_start_and_a_long_path(tmp_path: Path, prefix: str) -> None:
    require_server()
    folder = tmp_path.joinpath(*["a folder with a rather long name, and spaces"] * 3)
    node = PrivateNode(folder)
    corner = Corner(prefix)
    with node:
        assert node.pid is not None
        assert node.ctl("list_vhosts").splitlines()[-1] == "/"
        transport = corner.open(node.url)
        transport.publish(corner.message("kept")).result(WAIT_S)
        transport.close()
        first = (node.pid, node.url)
    assert node.pid is None
    assert not alive(first[0])
    leftovers = [path for path in Path("/proc").glob("[0-9]*/environ") if _mentions(path, str(folder))]
    assert leftovers == [], "epmd, the watchdog and Erlang's helpers are gone too"
    with node:
        assert node.pid != first[0]
        assert node.url == first[1]
        news = News()
        transport = corner.open(node.url)
        transport.consume(corner.queue.name, news.on_delivery, 1)
        news.wait_for(lambda found: found.ids == {"kept"})
        transport.close()


def _mentions(environ: Path, text: str) -> bool:
    try:
        return text.encode() in environ.read_bytes()
    except OSError:
        return False


def test_the_node_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    require_server()
    program = (
        "import sys, time, pathlib\n"
        "from fedmq.broker_config.node.node import PrivateNode\n"
        "node = PrivateNode(pathlib.Path(sys.argv[1]))\n"
        "node.start()\n"
        "print(node.pid, node.port, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        pid, port = (int(word) for word in parent.stdout.readline().split())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
    ask_until(lambda: not alive(pid))
    ask_until(lambda: not listens(port))


def test_a_node_that_cannot_start_says_why_at_once(tmp_path: Path) -> None:
    require_server()
    node = PrivateNode(tmp_path, overrides={"no_such_setting": "1"})
    with pytest.raises(BrokerUnavailable, match="no_such_setting"):
        node.start()
    assert node.pid is None


def test_the_configuration_is_in_force(rabbitmq_node: PrivateNode) -> None:
    settings = dict(
        line.split(" = ")
        for line in DEFAULT_CONFIG.read_text().splitlines()
        if not line.startswith("#") and line.strip()
    )
    for key, application_key in (("max_message_size",) * 2, ("consumer_timeout",) * 2, ("channel_max",) * 2):
        asked = f"{{ok, Value}} = application:get_env(rabbit, {application_key}), Value."
        assert rabbitmq_node.ctl("eval", asked).strip() == settings[key]
    assert rabbitmq_node.ctl("list_queues", "name").split()[1:] != []


def test_a_failing_rabbitmqctl_is_an_error_with_its_words(rabbitmq_node: PrivateNode) -> None:
    with pytest.raises(BrokerError, match="nobody"):
        rabbitmq_node.ctl("set_user_tags", "nobody", "administrator")
