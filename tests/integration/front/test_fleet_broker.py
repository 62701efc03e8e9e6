"""`fedmq broker --fleet` as a process, which other processes administer by rabbitmqctl."""

import signal

import pytest

from fedmq.broker_config.node.processes import free_port
from fedmq.cli.commands.broker import FLEET_NODE
from fedmq.fleet.backend import BackendChoice, backend
from fedmq.fleet.folder import FleetFolder
from tests.support.rabbitmq import require_server

FEDERATION = """
[run]
run_id = "r1"
[run.stop]
max_versions = 1
[strategy]
name = "fedbuff"
[broker]
url = "amqps://127.0.0.1:{port}/"
"""


@pytest.mark.broker
@pytest.mark.timeout(300)
def test_a_fleets_own_broker_is_administered_by_the_commands_and_stops_by_sigterm(terminal, tmp_path):
    require_server()
    port = free_port()
    (tmp_path / "federation.toml").write_text(FEDERATION.format(port=port))
    init = terminal("fleet", "init", "--config", "federation.toml")
    assert init.ended() == 0, init.text
    assert "The broker is not prepared yet" in init.text
    assert f"fedmq broker --fleet {tmp_path / 'fleet'} --port {port}" in init.text
    broker = terminal("broker", "--fleet", "fleet", "--port", str(port))
    broker.wait_for("It lets in the fleet's certificates")
    assert broker.wait_for("export FEDMQ_BROKER_URL='(.*)'")[1].startswith(f"amqps://127.0.0.1:{port}/")
    enrol = terminal("fleet", "enrol", "sensor-1")
    assert enrol.ended() == 0, enrol.text
    assert "The broker has the user coordinator with the coordinator's rights." in enrol.text
    admin = backend(BackendChoice("node", str(tmp_path / "fleet" / FLEET_NODE)), FleetFolder(tmp_path / "fleet"), "/")
    assert {"coordinator", "sensor-1"} <= set(admin.users())
    broker.send(signal.SIGTERM)
    assert broker.ended() == 0, broker.text
    assert "RabbitMQ has stopped." in broker.text
