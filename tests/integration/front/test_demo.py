import re
import signal

import psutil
import pytest

from tests.integration.front.terminal import DEADLINE_S
from tests.support.asking import ask_until
from tests.support.full import in_full
from tests.support.rabbitmq import require_server


def processes_of(folder):
    """Return all processes with this folder on their command lines."""
    running = psutil.process_iter(["cmdline"])
    return [one for one in running if any(str(folder) in part for part in one.info["cmdline"] or ())]


@pytest.mark.timeout(180)
def test_the_embedded_demo_reaches_92_percent_and_draws_it(terminal, tmp_path):
    demo = terminal("demo", "--embedded", "--out", "out")
    assert demo.ended() == 0, demo.text
    assert "Over the embedded transport, all in one process (--embedded was given)." in demo.text
    assert float(re.search(r"test accuracy +([\d.]+)%", demo.text)[1]) >= 92.0
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "demo" / "final.keras").exists()
    again = terminal("demo", "--embedded", "--out", "out")
    assert again.ended() == 2
    assert "out holds a demo's run already" in again.text


@pytest.mark.broker
@pytest.mark.timeout(180)
def test_a_dead_participant_is_reported_and_an_interrupted_demo_leaves_no_process(terminal, tmp_path):
    require_server()
    out = tmp_path / "out"
    demo = terminal("demo", "--participants", "2", "--out", str(out))
    demo.wait_for("a private node on port")
    demo.wait_for("starting")
    (victim,) = ask_until(lambda: [p for p in processes_of(out) if "sensor-2" in p.info["cmdline"]], bool, DEADLINE_S)
    victim.kill()
    demo.wait_for("sensor-2 ended with status -9: the run goes on without it")
    assert len(processes_of(out)) >= 3
    demo.send(signal.SIGINT)
    assert demo.ended() == 130
    assert processes_of(out) == []


@pytest.mark.broker
@pytest.mark.timeout(180)
def test_a_demo_that_is_killed_takes_its_processes_with_it(terminal, tmp_path):
    require_server()
    out = tmp_path / "out"
    demo = terminal("demo", "--participants", "1", "--out", str(out))
    demo.wait_for("a private node on port")
    demo.wait_for("starting")
    running = processes_of(out)
    assert len(running) >= 3
    demo.kill()
    _, alive = psutil.wait_procs(running, timeout=30)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


@in_full("the demos here have nodes of their own, and chaos/conftest.py takes its queues away as this one does")
@pytest.mark.broker
@pytest.mark.timeout(180)
def test_a_demo_over_somebodys_broker_takes_its_queues_and_exchanges_away_again(terminal, rabbitmq_node):
    def ours():
        listed = rabbitmq_node.ctl("list_queues", "name") + rabbitmq_node.ctl("list_exchanges", "name")
        return [name for name in listed.split() if name.startswith("fedmq-demo-")]

    demo = terminal("demo", "--participants", "1", "--broker", "env", FEDMQ_BROKER_URL=rabbitmq_node.url)
    demo.wait_for("Over RabbitMQ .* at 127.0.0.1:")
    demo.wait_for("starting")
    ask_until(ours, within_s=DEADLINE_S, first_pause_s=1.0)  # rabbitmqctl starts an Erlang machine each time
    demo.send(signal.SIGINT)
    assert demo.ended() == 130
    assert ours() == []


def test_a_demo_over_a_broker_that_is_not_there_says_so_at_once(terminal):
    demo = terminal("demo", "--broker", "amqp://127.0.0.1:1/")
    assert demo.ended() == 3
    assert "127.0.0.1:1 does not answer as a broker" in demo.text


@pytest.mark.broker
def test_a_demo_that_the_broker_refuses_says_so_at_once(terminal, rabbitmq_node):
    demo = terminal("demo", "--broker", "env", FEDMQ_BROKER_URL=rabbitmq_node.url_for(password="hunter2"))
    assert demo.ended() == 3
    assert "refused the login of user 'fedmq'" in demo.text
    assert "hunter2" not in demo.text
    assert "still on the broker" not in demo.text
