"""Processes that an app forks beside an open connection."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from fedmq.broker_config.node.node import PrivateNode
from tests.integration.broker.traffic import WAIT_S, Corner, News


def sockets_to(port: int) -> int:
    """Return the number of this process's connections to a port."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as one:
            found += one.getpeername()[1] == port
    return found


@pytest.mark.broker
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the files of a process are listed in Linux's way")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_keeps_no_connection_and_the_parents_goes_on(rabbitmq_node: PrivateNode, prefix: str) -> None:
    corner, news = Corner(prefix), News()
    transport = corner.open(rabbitmq_node.url, news)
    assert sockets_to(rabbitmq_node.port) > 0
    child = os.fork()
    if child == 0:
        os._exit(sockets_to(rabbitmq_node.port))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    transport.publish(corner.message("1", b"still here")).result(WAIT_S)
    transport.close()
