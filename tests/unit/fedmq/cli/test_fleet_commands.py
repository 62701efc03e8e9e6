"""`fedmq fleet` without a broker."""

import pytest

from fedmq.cli.cli import main
from fedmq.fleet.inventory import Inventory

FEDERATION = """
[run]
run_id = "r1"
[run.stop]
max_versions = 1
[strategy]
name = "fedbuff"
[broker]
url = "amqps://broker.test:5999/fl"
"""


@pytest.fixture
def fedmq(tmp_path, monkeypatch, capsys):
    """A function: fedmq(arguments) runs one command in a folder with a federation file, and returns its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # no rabbitmqctl
    monkeypatch.delenv("FEDMQ_BROKER_URL", raising=False)
    (tmp_path / "federation.toml").write_text(FEDERATION)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out + err

    return run


def test_a_fleet_is_made_without_a_broker_and_says_what_to_do_next(fedmq, tmp_path):
    code, said = fedmq("fleet", "init", "-c", "federation.toml")
    assert code == 0, said
    assert "The broker is not prepared yet" in said
    assert "fedmq broker --fleet" in said
    assert "--port 5999" in said
    assert "listeners.ssl.default = 5999" in said
    with Inventory(tmp_path / "fleet" / "inventory.sqlite") as inventory:
        assert "amqps://broker.test:5999/fl" in inventory.fact("shared")
        inventory.begin_enrolment("sensor-1", 0.0, max_examples=60)
        inventory.begin_enrolment("sensor-2", 0.0)
        inventory.begin_token("join-1", "sensor-2", 0.0, 1.0)
        inventory.open_token("join-1")
        inventory.enrolled("sensor-2")
    code, said = fedmq("fleet", "list")
    assert code == 0
    assert [line.split() for line in said.splitlines()][1] == [
        "sensor-1", "enrolling", "none", "yet", "60", "examples",
    ]  # fmt: skip
    assert "sensor-2  enrolled   none, token ended 1970-01-01 00:00 UTC" in said
    code, said = fedmq("fleet", "renew")
    assert (code, "Renewed nothing" in said) == (0, True)


@pytest.mark.parametrize("command", [("list",), ("enrol", "sensor-1"), ("revoke", "sensor-1"), ("renew",)])
def test_a_command_without_a_fleet_says_how_to_make_one(fedmq, command):
    code, said = fedmq("fleet", *command)
    assert (code, "fedmq fleet init" in said) == (1, True)


@pytest.mark.parametrize("ttl", ["1", "h", "-1h", "31d", "0s", "1h "])
def test_a_time_that_is_none_is_refused(fedmq, ttl):
    code, said = fedmq("fleet", "token", "sensor-1", "--ttl", ttl)
    assert (code, "expected a time of at most 30d" in said or ttl == "1h ") == (2 if ttl != "1h " else 1, True)


def test_an_id_that_cannot_be_one_is_refused(fedmq):
    code, said = fedmq("fleet", "enrol", "a b")
    assert (code, 'ID is "a b", allowed' in said) == (2, True)


def test_a_participant_needs_a_file_or_a_bundle_and_not_both_names(fedmq):
    code, said = fedmq("participant")
    assert (code, "--config" in said, "--bundle" in said) == (2, True, True)
    code, said = fedmq("participant", "--bundle", "x.bundle", "--id", "sensor-1")
    assert (code, "leave --id and --broker out" in said) == (2, True)
    code, said = fedmq("participant", "--bundle", "x.bundle")
    assert (code, "x.bundle cannot be read" in said) == (1, True)
