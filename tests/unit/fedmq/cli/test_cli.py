import io
import logging
import os
import re
import signal
import subprocess
import sys
from datetime import datetime
from importlib import import_module

import pytest

import fedmq
from fedmq.cli.cli import COMMANDS, main
from fedmq.schemas.local.console_log import log_to
from fedmq.schemas.local.event_log import EventLog

DEADLINE_S = 60

CONFIG = """
[run]
run_id = "r1"
[run.stop]
max_versions = 5
[strategy]
name = "fedbuff"
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with a federation file and no app."""
    (tmp_path / "federation.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def process(folder):
    """Run `python -m fedmq` as a user would, in the folder."""

    def run(*arguments, environ=None):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("FEDMQ_")}
        return subprocess.run(
            [sys.executable, "-m", "fedmq", *arguments],
            cwd=folder,
            env={**clean, "COLUMNS": "200", **(environ or {})},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    return run


@pytest.fixture
def cli(folder, monkeypatch, capsys):
    """Run a command in the folder and in this process, where most of them take a hundredth of a process's time."""

    def run(*arguments, environ=None):
        with monkeypatch.context() as patch:
            clean = {key: value for key, value in os.environ.items() if not key.startswith("FEDMQ_")}
            patch.setattr(os, "environ", {**clean, "COLUMNS": "200", **(environ or {})})
            patch.chdir(folder)
            patch.setattr(sys, "path", list(sys.path))
            capsys.readouterr()
            with pytest.raises(SystemExit) as left:
                main(arguments)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, left.value.code, out, err)

    return run


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S, check=True
    ).stdout.strip()


def test_importing_fedmq_loads_neither_tensorflow_nor_pika():
    heavy = "{'tensorflow', 'keras', 'pika', 'matplotlib', 'numpy'} & set(sys.modules)"
    assert python(f"import sys, fedmq; print({heavy})") == "set()"


def imported(*arguments):
    """Every module that a command loads."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fedmq", *arguments],
        capture_output=True, text=True, timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def ours(modules):
    return {name for name in modules if name.startswith("fedmq.") and not name.startswith("fedmq.cli")}


HEAVY = {"numpy", "pika", "msgpack", "psutil", "sqlite3", "tensorflow", "keras", "matplotlib"}
"""pydantic is not among them: typer checks a flag's value with it."""


def test_the_version_is_printed_without_a_library():
    modules = imported("--version")
    assert "fedmq.cli.cli" in modules
    assert modules & {*HEAVY, "pydantic", "typer", "rich", "logging", "inspect"} == set()
    allowed = ("errors", "local", "local.streams", "redaction", "texts")
    assert ours(modules) == {"fedmq.schemas", *(f"fedmq.schemas.{name}" for name in allowed)}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_help_of_a_command_loads_the_command_line_alone(command):
    modules = imported(*command.split(), "--help")
    assert "typer" in modules
    assert modules & HEAVY == set()
    local = {"console_log", "extras", "leaving", "log_filter", "streams"}
    allowed = {"errors", "local", *(f"local.{name}" for name in local), "redaction", "texts"}
    assert ours(modules) <= {"fedmq.schemas", *(f"fedmq.schemas.{name}" for name in allowed)}
    commands = {name for name in modules if name.startswith("fedmq.cli.commands.")} - {"fedmq.cli.commands.options"}
    assert commands <= {f"fedmq.cli.commands.{command}", "fedmq.cli.commands.participant"}


def test_a_list_of_commands_has_the_first_line_of_each_docstring():
    for name, text in COMMANDS.items():
        assert import_module(f"fedmq.cli.commands.{name}").command.__doc__.splitlines()[0] == text


def test_a_log_line_has_its_time_with_its_zone():
    handler = logging.StreamHandler(stream := io.StringIO())
    log_to(handler)
    EventLog("fedmq.somewhere").info("something", value=1)
    time, rest = stream.getvalue().split(" ", 1)
    assert rest == "INFO fedmq.somewhere event=something value=1\n"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", time)
    assert datetime.fromisoformat(time).utcoffset() is not None


@pytest.mark.parametrize(
    ("role", "other"),
    [
        ("coordinator", "fedmq.participant.(service|decisions|spool|training|conditions|trainer)"),
        ("participant", "fedmq.coordinator.(service|state|audit|decisions.core|decisions.events)|sqlite3"),
    ],
)
def test_a_role_is_put_together_without_the_other_and_without_tensorflow(role, other):
    loaded = python(f"import sys, fedmq.run.{role}; print(*sys.modules)").split()
    assert f"fedmq.{role}.service.service" in loaded
    foreign = re.compile(rf"({other}|tensorflow|keras|fedmq.fleet|cryptography)(\..*)?")
    assert [name for name in loaded if foreign.fullmatch(name)] == []


HEAVY_TRAINERS = {"KerasTrainer", "TorchTrainer"}
"""Each loads a library of its own for seconds, or is missing with it."""


def test_every_public_name_is_there():
    assert [name for name in fedmq.__all__ if name not in HEAVY_TRAINERS and not hasattr(fedmq, name)] == []
    assert set(fedmq._HOMES) | {"__version__"} == set(fedmq.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fedmq.nonsense


def test_the_version_is_printed(process):
    assert process("--version").stdout == f"fedmq {fedmq.__version__}\n"


@pytest.mark.parametrize("arguments", [("nonsense",), ("coordinator",), ("participant", "--config"), ("status", "--x")])
def test_a_wrong_command_line_ends_with_2(cli, arguments):
    assert cli(*arguments).returncode == 2


@pytest.mark.parametrize("command", ["coordinator", "participant", "doctor"])
def test_a_missing_federation_file_ends_with_2_and_no_traceback(cli, command):
    done = cli(command, "--config", "nowhere.toml")
    assert done.returncode == 2
    assert done.stderr == (
        "fedmq: There is no federation file nowhere.toml: give its path with --config "
        "(examples/mnist/federation.toml is one).\n"
    )


def test_mistakes_in_file_flags_and_environment_end_with_2(process):
    done = process(
        "coordinator", "--config", "federation.toml", "--set", "run.concurrency=0", environ={"FEDMQ_RUNS": "x"}
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "fedmq: federation.toml has 2 mistakes:",
        "  FEDMQ_RUNS: unknown environment variable; did you mean FEDMQ_RUNS_DIR?",
        "  run.concurrency (from --set run.concurrency): got 0, allowed: 1 or more",
    ]


@pytest.mark.parametrize("command", ["coordinator", "participant"])
def test_a_missing_app_ends_with_2(cli, tmp_path, command):
    done = cli(command, "--config", "federation.toml")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"fedmq: There is no app file {tmp_path / 'app.py'}: `app` in the federation file names it, "
        "relative to that file."
    )


@pytest.mark.parametrize(("command", "needed_for"), [("coordinator", "the first version"), ("participant", "train")])
def test_an_app_without_its_function_ends_with_2_and_a_near_miss(cli, tmp_path, command, needed_for):
    (tmp_path / "app.py").write_text("def build_modle(): pass\ndef load_data(participant_id): pass\n")
    done = cli(command, "--config", "federation.toml", environ={"FEDMQ_BROKER_URL": "amqp://127.0.0.1:1/"})
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "app.py has no function build_model, which is needed" in last
    assert needed_for in last
    assert last.endswith("Did you mean it by build_modle?")


@pytest.mark.parametrize("command", ["coordinator", "participant", "doctor"])
def test_a_wrong_broker_url_ends_with_2_and_says_what_is_expected(cli, command):
    done = cli(command, "--config", "federation.toml", "--broker", "http://user:hunter2@host/")
    assert done.returncode == 2
    assert "expected amqp://USER:PASSWORD@HOST:PORT/VHOST" in done.stderr
    assert "hunter2" not in done.stderr


def test_debug_shows_the_traceback(process):
    assert "Traceback" in process("participant", "--config", "federation.toml", "--debug").stderr


def test_an_impossible_participant_id_ends_with_2(cli):
    done = cli("participant", "--config", "federation.toml", "--id", "no spaces")
    assert (done.returncode, done.stderr.split(",")[0]) == (2, 'fedmq: --id is "no spaces"')


def test_a_participant_of_a_fleet_is_sent_to_its_bundle(cli, tmp_path):
    with (tmp_path / "federation.toml").open("a") as file:
        file.write('\n[security]\nfleet = "fleet"\n')
    done = cli("participant", "--config", "federation.toml", "--id", "s1")
    assert done.returncode == 2
    assert "start with --bundle s1.bundle" in done.stderr


def test_status_without_a_run_ends_with_1_and_says_so(cli):
    done = cli("status", "--config", "federation.toml")
    assert done.returncode == 1
    assert "the run has not started yet" in done.stderr
    assert "There is no run below runs" in cli("status").stderr


def test_a_watch_waits_for_the_run_until_it_is_interrupted(tmp_path):
    (tmp_path / "federation.toml").write_text(CONFIG)
    arguments = [sys.executable, "-m", "fedmq", "status", "--config", "federation.toml", "--watch"]
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stderr is not None
        assert re.fullmatch(r"Waiting for the run in .*r1 to start. Ctrl-C ends this.\n", watch.stderr.readline())
        assert watch.poll() is None
        watch.send_signal(signal.SIGINT)
        out, err = watch.communicate(timeout=DEADLINE_S)
    assert (watch.returncode, out) == (130, "")
    assert "Traceback" not in err


def test_wrong_demo_data_is_told_before_anything_starts(cli, tmp_path):
    done = cli("demo", "--embedded", "--data", "nothing.npz")
    assert done.returncode == 2
    assert "There is no data file nothing.npz" in done.stderr
    assert not (tmp_path / "runs").exists()
