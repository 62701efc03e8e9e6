"""The commands as processes. The trainer needs no Keras, so killing and starting again is quick."""

import json
import re
import signal

import numpy as np
import pytest

from fedmq.app.parameter_files import write_parameters
from fedmq.cli.cli import main
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.schemas.parameters import Parameters
from tests.support.apps import plain_app
from tests.support.full import in_full
from tests.support.rabbitmq import require_server

APP = f"""{plain_app(1000)}
def evaluate(parameters):
    return {{"mean": float(parameters["w"].mean())}}
"""

FEDERATION = """
[run]
run_id = "r1"
concurrency = 2
participant_timeout_s = 5
lease_s = 20
[run.stop]
max_versions = 60
[strategy]
name = "fedbuff"
buffer_size = 2
[participant]
hello_interval_s = 1
"""

CONFIG = ("--config", "federation.toml")


@pytest.fixture
def federation(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "federation.toml").write_text(FEDERATION)
    return tmp_path / "runs" / "r1"


@pytest.mark.broker
@in_full("tests/chaos kills each process, and the next test stops the broker")
def test_everything_can_be_killed_and_started_again_and_each_update_counts_once(terminal, federation):
    require_server()
    broker = terminal("broker")
    url = {"FEDMQ_BROKER_URL": broker.wait_for("export FEDMQ_BROKER_URL='(.*)'")[1]}
    first = terminal("participant", *CONFIG, "--id", "sensor-1", **url)
    coordinator = terminal("coordinator", *CONFIG, **url)
    second = terminal("participant", *CONFIG, "--id", "sensor-2", **url)
    coordinator.wait_for("event=version_made version=5 ")
    assert coordinator.kill() == -signal.SIGKILL
    assert second.kill() == -signal.SIGKILL
    status = terminal("status", *CONFIG)
    assert status.ended() == 0, status.text
    assert "stopped (the same coordinator command continues it)" in " ".join(status.text.split())

    coordinator = terminal("coordinator", *CONFIG, **url)
    coordinator.wait_for("event=run_resumed")
    coordinator.wait_for("event=version_made version=15 ")
    second = terminal("participant", *CONFIG, "--id", "sensor-2", **url)
    coordinator.wait_for("event=update_accepted participant=sensor-2")
    coordinator.send(signal.SIGTERM)
    assert coordinator.ended() == 0
    assert "the same command continues it" in coordinator.text

    coordinator = terminal("coordinator", *CONFIG, **url)
    assert coordinator.ended() == 0
    assert "Run r1 finished (max_versions) at version 60: 120 updates accepted" in coordinator.text
    assert (first.ended(), second.ended()) == (0, 0)
    assert "Participant sensor-1: run finished." in first.text
    with LedgerReader(federation / "ledger.sqlite") as ledger:
        updates = ledger.updates()
        assert [update.accepted_order for update in updates] == list(range(1, 121))
        assert len({update.task_id for update in updates}) == 120
        assert [version.num_updates for version in ledger.versions()] == [2] * 60
    assert (federation / "final.safetensors").exists()
    broker.send(signal.SIGINT)
    assert broker.ended() == 0
    assert "RabbitMQ has stopped." in broker.text


@pytest.mark.broker
@in_full("chaos/test_broker.py has a broker that comes back, and broker/test_node.py one with a folder")
def test_a_broker_with_a_folder_comes_back_under_its_url_and_the_run_goes_on(terminal, federation):
    require_server()
    broker = terminal("broker", "--dir", "node")
    url = {
        "FEDMQ_BROKER_URL": broker.wait_for("export FEDMQ_BROKER_URL='(.*)'")[1],
        "FEDMQ_BROKER__RECONNECT_MAX_S": "1",
    }
    participant = terminal("participant", *CONFIG, "--id", "sensor-1", **url)
    coordinator = terminal("coordinator", *CONFIG, **url)
    coordinator.wait_for("event=version_made version=5 ")
    broker.send(signal.SIGTERM)
    assert broker.ended() == 0
    coordinator.wait_for("trying again in")
    shown = terminal("status", *CONFIG)
    assert shown.ended() == 0
    text = " ".join(shown.text.split())
    assert "run r1 running, without its broker" in text
    assert "The coordinator lost its broker" in text
    again = terminal("broker", "--dir", "node")
    assert again.wait_for("export FEDMQ_BROKER_URL='(.*)'")[1] == url["FEDMQ_BROKER_URL"]
    assert (coordinator.ended(), participant.ended()) == (0, 0)
    assert "at version 60: 120 updates accepted" in coordinator.text


@pytest.mark.broker
def test_a_status_waits_for_a_run_and_shows_at_once_who_has_left(terminal, federation, amqp_url, prefix):
    url = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix}
    watch = terminal("status", "--watch", "--json")
    watch.wait_for("Waiting for a run below runs to start")
    coordinator = terminal("coordinator", *CONFIG, "--set", "run.stop.max_versions=1000", **url)
    stays = terminal("participant", *CONFIG, "--id", "sensor-1", **url)
    leaves = terminal("participant", *CONFIG, "--id", "sensor-2", **url)
    coordinator.wait_for("event=update_accepted participant=sensor-2")
    watch.wait_for(r'"participant_id": "sensor-2", "state": "(training|idle)"')
    leaves.send(signal.SIGTERM)
    assert leaves.ended() == 0
    assert re.search('"sensor-2".*"why_away": "left"', watch.wait_for('.*"why_away": "left".*')[0])
    coordinator.send(signal.SIGTERM)
    assert coordinator.ended() == 0
    stays.send(signal.SIGINT)
    assert stays.ended() == 0
    for one in (coordinator, stays, leaves):
        assert not re.search("ERROR|Traceback", one.text), one.text
    shown = terminal("status", *CONFIG)
    assert shown.ended() == 0
    assert re.search(r"sensor-2 +away \(left\)", shown.text)
    watch.send(signal.SIGINT)
    assert watch.ended() == 130
    assert "Traceback" not in watch.text


@pytest.mark.broker
def test_status_as_json_and_a_finished_run_that_is_started_again(terminal, federation, amqp_url, prefix):
    url = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix, "FEDMQ_RUN__STOP__MAX_VERSIONS": "3"}
    participant = terminal("participant", *CONFIG, "--id", "sensor-1", **url)
    assert terminal("coordinator", *CONFIG, **url).ended() == 0
    assert participant.ended() == 0
    shown = terminal("status", "runs/r1", "--json")
    assert shown.ended() == 0
    status = json.loads(shown.text)
    assert (status["state"], status["finished"], status["version"], status["accepted"]) == (
        "finished", "max_versions", 3, 6,
    )  # fmt: skip
    assert [one["participant_id"] for one in status["participants"]] == ["sensor-1"]
    assert sum(status["staleness"].values()) == 6
    assert status["federated_metrics"] == {"loss": 1.0}
    again = terminal("coordinator", *CONFIG, **url)
    assert again.ended() == 0
    assert "finished (max_versions) at version 3" in again.text


@pytest.mark.broker
def test_a_buffer_that_does_not_fill_makes_its_versions_by_its_timeout(terminal, federation, amqp_url, prefix, capsys):
    timed = {"FEDMQ_STRATEGY__BUFFER_SIZE": "50", "FEDMQ_STRATEGY__BUFFER_TIMEOUT_S": "0.2"}
    url = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix, "FEDMQ_RUN__STOP__MAX_VERSIONS": "2"}
    participant = terminal("participant", *CONFIG, "--id", "sensor-1", **url)
    coordinator = terminal("coordinator", *CONFIG, **url, **timed)
    assert (coordinator.ended(), participant.ended()) == (0, 0)
    assert len(re.findall(r"event=version_made version=\d .*by=timeout", coordinator.text)) == 2
    with LedgerReader(federation / "ledger.sqlite") as ledger:
        first, second = ledger.versions()
        opened_s = ledger.updates_in(1)[0].run_s
    assert first.by_timeout
    assert second.by_timeout
    assert opened_s + 0.2 <= first.run_s < second.run_s
    for command, said in (("status", "version 2 (2 by the buffer's timeout)"), ("verify", "follow from its time")):
        with pytest.raises(SystemExit, match=r"^0$"):
            main([command, str(federation)])
        assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.broker
def test_a_refused_login_ends_both_roles_with_3(terminal, federation, rabbitmq_node):
    url = {"FEDMQ_BROKER_URL": rabbitmq_node.url_for(password="hunter2")}
    for command in (
        ("coordinator", *CONFIG),
        ("participant", *CONFIG, "--id", "a"),
    ):
        one = terminal(*command, **url)
        assert one.ended() == 3
        assert "refused the login of user 'fedmq'" in one.text
        assert "Traceback" not in one.text
        assert "hunter2" not in one.text


@pytest.mark.broker
def test_the_doctor_finds_nothing_wrong_with_a_good_federation(terminal, federation, amqp_url, prefix):
    doctor = terminal("doctor", *CONFIG, FEDMQ_BROKER_URL=amqp_url, FEDMQ_BROKER__PREFIX=prefix)
    assert doctor.ended() == 0, doctor.text
    assert "Ready." in doctor.text
    assert f"queues: {prefix}.dead, {prefix}.updates, {prefix}.control, {prefix}.leader can be declared" in doctor.text
    assert "! identity: open." in doctor.text
    tight = terminal(
        "doctor",
        *CONFIG,
        FEDMQ_BROKER_URL=f"amqp://u:x@127.0.0.1:1/,{amqp_url}",
        FEDMQ_BROKER__PREFIX=prefix,
        FEDMQ_BROKER__MAX_PAYLOAD_BYTES="65536",
    )
    assert tight.ended() == 1
    assert "set broker.max_payload_bytes to 69536 or more" in tight.text
    assert "! broker: 127.0.0.1:1 does not answer as a broker" in tight.text


@pytest.mark.parametrize("command", ["coordinator", "participant"])
def test_a_broker_that_is_down_is_waited_for_aloud_until_a_signal(terminal, federation, command):
    one = terminal(command, *CONFIG, FEDMQ_BROKER_URL="amqp://127.0.0.1:1/")
    one.wait_for("RabbitMQ at 127.0.0.1:1 is not answering .*trying again in", times=2)
    one.send(signal.SIGTERM)
    assert one.ended() == 0
    assert "stopped" in one.text


@pytest.mark.broker
def test_a_run_whose_app_builds_another_model_now_is_refused_with_the_difference(
    terminal, federation, tmp_path, amqp_url, prefix
):
    away = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix}
    first = terminal("coordinator", *CONFIG, **away)
    first.wait_for("event=run_created")
    first.send(signal.SIGTERM)
    assert first.ended() == 0
    (tmp_path / "app.py").write_text(APP.replace("zeros(1000", "zeros(1001"))
    second = terminal("coordinator", *CONFIG, **away)
    assert second.ended() == 2
    assert "does not build the model of the run" in second.text
    assert "[1001]" in second.text
    assert "[1000]" in second.text
    assert "Traceback" not in second.text


def test_an_initial_file_of_another_model_is_refused_with_the_difference(terminal, federation, tmp_path):
    write_parameters(tmp_path / "other.safetensors", Parameters({"w": np.zeros(999, np.float32)}))
    one = terminal("coordinator", *CONFIG, FEDMQ_INITIAL="other.safetensors", FEDMQ_BROKER_URL="amqp://127.0.0.1:1/")
    assert one.ended() == 2
    assert "other.safetensors, which `initial` names, is not of the model of" in one.text
    assert "[999]" in one.text
    assert "event=run_created" not in one.text


KERAS_APP = """
import keras
import numpy as np

def build_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    return model

def load_data(participant_id):
    return np.zeros((8, 4), "float32"), np.zeros((8, 2), "float32")
"""


@pytest.mark.broker
def test_a_participant_whose_model_is_not_the_coordinators_ends_with_2_and_the_difference(
    terminal, federation, tmp_path, amqp_url, prefix
):
    url = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix}
    other = APP.replace('{"w": np.zeros(1000', '{"000/dense/kernel": np.zeros((3, 2)')
    (tmp_path / "app.py").write_text(other.replace('parameters["w"]', 'parameters["000/dense/kernel"]'))
    coordinator = terminal("coordinator", *CONFIG, **url)
    coordinator.wait_for("event=run_created")
    (tmp_path / "other.py").write_text(KERAS_APP)
    participant = terminal("participant", *CONFIG, "--id", "sensor-1", "--set", "app=other.py", **url)
    assert participant.ended() == 2
    last = participant.text.splitlines()[-1]
    assert last.startswith("fedmq: ")
    assert "this app's model is not the federation's" in last
    assert "[3, 2]" in last
    assert "[4, 2]" in last
    coordinator.wait_for("event=task_declined participant=sensor-1 .* reason=unsupported")
    coordinator.wait_for("event=every_participant_declines participants=1 reason=unsupported")
    coordinator.send(signal.SIGTERM)
    assert coordinator.ended() == 0
    shown = terminal("status", *CONFIG)
    assert shown.ended() == 0
    assert "sensor-1: unsupported: this app's model is not the federation's" in " ".join(shown.text.split())


def test_the_doctor_names_what_is_wrong_and_ends_with_1(terminal, federation, tmp_path):
    (tmp_path / "app.py").write_text("def build_modle(): pass\n")
    doctor = terminal("doctor", *CONFIG, FEDMQ_BROKER_URL="amqp://127.0.0.1:1/")
    assert doctor.ended() == 1
    assert "has no function build_model" in doctor.text
    assert "127.0.0.1:1 does not answer as a broker" in doctor.text
    assert "2 thing(s) to put right." in doctor.text
