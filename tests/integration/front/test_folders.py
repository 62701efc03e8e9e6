"""Run folders and spools that cannot be written, or that somebody takes away under their process."""

import shutil
import sqlite3

import pytest

from tests.chaos.disk import NO_MOUNT, Disk
from tests.support.apps import plain_app
from tests.support.full import FULL
from tests.support.rabbitmq import require_server

APP = plain_app(10)
FEDERATION = """
[run]
run_id = "r1"
stop = { max_versions = 1000000 }
[strategy]
name = "fedasync"
[broker]
prefix = "folders"
"""
CONFIG = ("--config", "federation.toml")
UNWRITABLE = "fedmq: the run in {} cannot be written: .*Nothing was acked that is not on disk"


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "federation.toml").write_text(FEDERATION)
    return tmp_path / "runs" / "r1"


@pytest.mark.parametrize("name", ["runs", "runs/r1"])
def test_a_file_in_the_place_of_a_folder_is_told_in_a_sentence(terminal, run_dir, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    coordinator = terminal("coordinator", *CONFIG, FEDMQ_BROKER_URL="amqp://127.0.0.1:1")
    assert coordinator.ended() == 1
    coordinator.wait_for(UNWRITABLE.format(run_dir))
    assert "Traceback" not in coordinator.text


@pytest.mark.broker
@pytest.mark.parametrize("kilobytes", [4, 8, 24, 100] if FULL else [8])
def test_a_disk_with_some_kilobytes_is_told_in_a_sentence(terminal, run_dir, tmp_path, rabbitmq_node, kilobytes):
    try:
        disk = Disk(tmp_path / "runs")
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"{NO_MOUNT} ({error})")
    try:
        disk.resize(kilobytes)
        coordinator = terminal("coordinator", *CONFIG, FEDMQ_BROKER_URL=rabbitmq_node.url)
        assert coordinator.ended() == 1
        coordinator.wait_for(UNWRITABLE.format(run_dir))
        assert "Traceback" not in coordinator.text
    finally:
        disk.close()


def accepted(folder):
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        return ledger.execute("SELECT count(*) FROM updates").fetchone()[0]


@pytest.mark.broker
@pytest.mark.parametrize("how", ["moved", "removed", "replaced", "ledger"] if FULL else ["replaced", "ledger"])
def test_a_run_folder_that_is_taken_away_stops_its_coordinator_and_loses_nothing(
    terminal, run_dir, tmp_path, rabbitmq_node, how
):
    require_server()
    url = {"FEDMQ_BROKER_URL": rabbitmq_node.url}
    prefix = ("--set", f"broker.prefix={tmp_path.name}")
    participant = terminal("participant", *CONFIG, *prefix, "--id", "sensor-1", **url)
    coordinator = terminal("coordinator", *CONFIG, *prefix, **url)
    coordinator.wait_for("event=version_made version=5 ")
    if how == "ledger":  # somebody puts a backup back, and forgot that the coordinator runs
        shutil.copy(run_dir / "ledger.sqlite", tmp_path / "backup")
        (tmp_path / "backup").rename(run_dir / "ledger.sqlite")
    elif how == "removed":
        while run_dir.exists():  # the coordinator may write a file into a folder that is being removed
            shutil.rmtree(run_dir, ignore_errors=True)
    else:
        run_dir.rename(tmp_path / "elsewhere")
    if how == "replaced":
        shutil.copytree(tmp_path / "elsewhere", run_dir)
    assert coordinator.ended() == 1
    coordinator.wait_for(f"fedmq: the run folder {run_dir} was moved, replaced or removed while its coordinator ran")
    assert "Traceback" not in coordinator.text
    participant.close()
    if how == "moved":
        (tmp_path / "elsewhere").rename(run_dir)
        told = participant.text.count("event=receipt")
        assert told <= accepted(run_dir)  # whatever was told is in the ledger
        verify = terminal("verify", str(run_dir))
        assert verify.ended() == 0, verify.text


@pytest.mark.parametrize("lost", ["all", "outbox"])
def test_a_spool_that_a_cleaner_took_is_noticed(terminal, run_dir, tmp_path, lost):
    participant = terminal("participant", *CONFIG, "--id", "sensor-1", FEDMQ_BROKER_URL="amqp://127.0.0.1:1")
    participant.wait_for("event=started")
    spool = tmp_path / "spool" / "sensor-1"
    shutil.rmtree(spool if lost == "all" else spool / "outbox")
    if lost == "outbox":
        participant.wait_for(f"event=spool_folder_made_again folder={spool / 'outbox'}")
        assert (spool / "outbox").is_dir()
        return
    assert participant.ended() == 1
    participant.wait_for(f"fedmq: {spool} was moved, replaced or removed while its participant ran")
    assert "Traceback" not in participant.text
