"""Distillation by the command line: unlike models, kill -9 of both sides, and the replay of the run."""

import re

import pytest
from safetensors.numpy import load_file

from tests.support import distillation_app
from tests.support.full import FULL

FEDERATION = """
app = "app.py"
[run]
run_id = "r1"
seed = 3
participant_timeout_s = 5
min_participants = 3
[run.stop]
max_versions = 40
[strategy]
name = "distillation"
buffer_size = 2
mixing = 0.8
temperature = 0.7
[archive]
max_bytes = 10_000_000
[participant]
hello_interval_s = 1
"""
CONFIG = ("--config", "federation.toml")
ENDED = r"sensor-{} ended task (\d+) with ([0-9a-f]{{16}})"  # two processes write here, so a line may go on
POINTS = [
    ("trained:3", "after-checkpoint:25"),
    ("trainer-done:2", "after-ledger:25"),
    ("update-cleared:2", "before-acks:25"),
]
"""Points at which the participant dies early in the run, and the coordinator a while later."""


@pytest.mark.broker
@pytest.mark.parametrize(("at_participant", "at_coordinator"), POINTS if FULL else POINTS[:1])
def test_a_run_survives_kill_9_of_both_sides_and_replays_bit_for_bit(
    terminal, tmp_path, amqp_url, prefix, at_participant, at_coordinator
):
    distillation_app.write(tmp_path)
    (tmp_path / "federation.toml").write_text(FEDERATION)
    url = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix}
    killed = terminal("coordinator", *CONFIG, **url, FEDMQ_FAULT=at_coordinator)
    first = terminal("participant", *CONFIG, "--id", "sensor-1", **url, FEDMQ_FAULT=at_participant)
    others = [terminal("participant", *CONFIG, "--id", f"sensor-{i}", **url) for i in (2, 3)]
    died = at_participant.partition(":")[0]
    first.wait_for(f"fault point {died}")
    assert killed.ended() == -9
    assert f"fault point {at_coordinator.partition(':')[0]}" in killed.text
    if died != "trainer-done":  # at that point the process that trains dies, and the participant declines its task
        assert first.ended() == -9
        last = re.findall(ENDED.format(1), first.text)[-1]
        first = terminal("participant", *CONFIG, "--id", "sensor-1", **url)
        if died == "trained":
            first.wait_for("ended task")
            assert re.search(ENDED.format(1), first.text).groups() == last, "the same task, and the same model after it"
    coordinator = terminal("coordinator", *CONFIG, **url)
    assert coordinator.ended() == 0, coordinator.text
    assert [one.ended() for one in (first, *others)] == [0, 0, 0]

    verified = terminal("verify", "runs/r1")
    assert verified.ended() == 0, verified.text
    assert "bit for bit" in verified.text, verified.text
    final = load_file(tmp_path / "runs" / "r1" / "final.safetensors")
    assert {name: array.shape for name, array in final.items()} == {"predictions": (40, 3), "public_data": (16,)}
    assert len(list((tmp_path / "spool" / "sensor-1" / "own").glob("*/model.fedmq"))) == 1, "it stays after the run"
