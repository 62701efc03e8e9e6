"""The doctor's findings on queues and on a coordinator that runs already."""

import contextlib

import pytest

from fedmq.broker_config.amqp.probe import Depth
from fedmq.broker_config.topology import Topology
from fedmq.config.file import load_config
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.views.checks import past_run
from fedmq.views.checks.queues import depths

OWN = "fedmq.participant.sensor-1"


class Broker:
    def __init__(self, **ready):
        self.found = {name.replace("_", "."): Depth(*depth) for name, depth in ready.items()}

    def depth(self, name):
        return self.found.get(name)


def told(broker, role="participant"):
    return [(one.level, one.what) for one in depths(broker, Topology(), role, "sensor-1")]


@pytest.mark.parametrize("role", ["participant", None])
def test_a_participants_queue_at_its_limit_is_told(role):
    broker = Broker()
    broker.found[OWN] = Depth(15, 0)
    assert told(broker, role) == [("ok", f"{OWN}: 15 message(s) waiting")]
    broker.found[OWN] = Depth(16, 0)
    dropped = f"{OWN}: 16 message(s) waiting, its limit: the oldest is dropped for each new one."
    assert told(broker, role) == [("warning", f"{dropped} Nobody reads it")]
    broker.found[OWN] = Depth(16, 1)
    assert told(broker, role) == [("wrong", f"{dropped} Its 1 consumer(s) do not keep up")]


def test_a_full_control_queue_is_told_and_full_dead_letters_end_no_run():
    broker = Broker(fedmq_control=(100_000, 0), fedmq_dead=(1000, 0))
    assert [level for level, _ in told(broker, "coordinator")] == ["warning", "warning"]
    broker = Broker(fedmq_control=(100_000, 1))
    assert [level for level, _ in told(broker, "coordinator")] == ["wrong"]


def test_a_coordinator_that_has_the_run_folder_is_named_and_one_of_another_place_is_wrong(tmp_path):
    (tmp_path / "f.toml").write_text(
        '[run]\nrun_id = "r"\nstop = { max_updates = 9 }\n[strategy]\nname = "fedbuff"\nbuffer_size = 2\n'
    )
    config = load_config(tmp_path / "f.toml", environ={})
    assert past_run.held(config) is None
    assert not config.run_dir.exists()  # a look leaves nothing behind
    folder = RunFolder(config.run_dir)
    folder.acquire("one/v with prefix fedmq")
    with contextlib.ExitStack() as end:
        end.callback(folder.release)
        found = past_run.held(config)
        assert found is not None
        assert found.place == "one/v with prefix fedmq"
        assert past_run.live(config, found, "one/v with prefix fedmq").level == "warning"
        assert past_run.live(config, found, None).level == "warning"
        other = past_run.live(config, found, "two/v with prefix fedmq")
        assert other.level == "wrong"
        assert "over one/v with prefix fedmq" in other.what
    assert past_run.held(config) is None
