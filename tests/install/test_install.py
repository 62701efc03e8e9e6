"""Installs of each kind: the names that they bring, and a user's folder whose modules have names of ours."""

import os
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.install.conftest import ROOT, done
from tests.integration.front.terminal import Terminal
from tests.support.full import in_full
from tests.support.rabbitmq import require_server

LEFT_OUT = {"tensorflow", "keras", "numba", "llvmlite", "pyarrow", "matplotlib", "cryptography"}
MOST_MEGABYTES = 150
CONFIG = ("--config", "federation.toml")
NO_BROKER = {"FEDMQ_BROKER_URL": "amqp://127.0.0.1:1/"}
DATA = (
    "fedmq/broker_config/rabbitmq.conf",
    "fedmq/broker_config/rabbitmq-tls.conf",
    "fedmq/broker_config/definitions.json",
    "fedmq/demo/app/app.py",
    "fedmq/demo/data/mnist_sample.npz",
    "fedmq/py.typed",
)


def top_level(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    return {name.split("/")[0] for name in names}, set(names)


def commands(venv):
    """A Terminal whose program is the installed command."""
    return type("Installed", (Terminal,), {"program": (str(venv / "bin" / "fedmq"),)})


def check_a_users_folder(python, users, **environ):
    """Import fedmq in a script and in pytest, and run the app as `python -m fedmq` and in the process for its model."""
    said = done(python, "script.py", cwd=users, **environ)
    assert "['a', 'b', 'c'] 3 " in said
    done(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own.py", cwd=users, **environ)
    doctor = Terminal(users, "doctor", *CONFIG, **NO_BROKER, **environ)
    doctor.ended()
    doctor.close()
    assert "✓ packages: " in doctor.text, doctor.text
    assert "✓ training: one step as sensor-1 on 10 examples worked" in doctor.text
    return said


@in_full("it makes an environment of its own; unit/participant/test_imports.py names what each role imports")
@pytest.mark.broker
@pytest.mark.timeout(400)
def test_a_federation_runs_on_the_base_install_alone_beside_modules_of_any_name(
    build, clone, users, late, tmp_path, record_property
):
    require_server()
    build("--outdir", tmp_path / "dist", clone)  # a wheel from the sdist
    build("--wheel", "--outdir", tmp_path / "direct", clone)
    (wheel,), (direct,) = (tmp_path / "dist").glob("*.whl"), (tmp_path / "direct").glob("*.whl")
    tops, files = top_level(wheel)
    version = wheel.name.split("-")[1]
    assert tops == {"fedmq", f"fedmq-{version}.dist-info"}
    assert files == top_level(direct)[1]
    assert set(DATA) <= files
    assert {f"fedmq/schemas/json/{path.name}" for path in (ROOT / "schemas/json").glob("*.json")} <= files

    venv = tmp_path / "venv"
    began_s = time.monotonic()
    done(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin/python")  # ours, because a pip of its own takes seconds
    done(*pip, "install", "--quiet", "--no-compile", wheel, cwd=tmp_path)
    took_s = time.monotonic() - began_s
    megabytes = sum(p.stat().st_blocks * 512 for p in venv.rglob("*") if not p.is_symlink()) / 1e6
    installed = done(*pip, "list", "--format=freeze", cwd=tmp_path).lower().split()
    names = {one.split("==")[0] for one in installed}
    record_property("base install", f"{len(names) - 1} packages and fedmq, {megabytes:.0f} MB, {took_s:.1f} s")
    assert not names & LEFT_OUT
    assert megabytes < MOST_MEGABYTES

    opened = []

    def terminal(*arguments, **environ):
        opened.append(commands(venv)(users, *arguments, **environ))
        return opened[-1]

    try:
        broker = terminal("broker")
        url = {"FEDMQ_BROKER_URL": broker.wait_for("export FEDMQ_BROKER_URL='(.*)'")[1]}
        doctor = terminal("doctor", *CONFIG, **url)
        assert doctor.ended() == 0, doctor.text
        participants = [terminal("participant", *CONFIG, "--id", f"sensor-{i}", **url) for i in (1, 2)]
        coordinator = terminal("coordinator", *CONFIG, **url)
        assert coordinator.ended() == 0, coordinator.text
        assert [one.ended() for one in participants] == [0, 0], participants[0].text
        assert "Run own finished (max_versions) at version 4: 8 updates accepted" in coordinator.text
        assert "On the test data: mean " in coordinator.text
        verified = terminal("verify", "runs/own")
        assert verified.ended() == 0, verified.text
        broker.send(signal.SIGINT)
        assert broker.ended() == 0
        lacking = terminal("demo")
        assert lacking.ended() == 2
        assert "Install it with: pip install 'fedmq[keras]'" in lacking.text
        study = terminal("study", "study.toml")
        assert study.ended() == 2
        assert "Install it with: pip install 'fedmq[studies]'" in study.text
        (users / "keras_app.py").write_text("import keras\n")
        (users / "keras.py").unlink()
        for command in ("doctor", "participant", "coordinator"):
            one = terminal(command, *CONFIG, "--set", "app=keras_app.py", **NO_BROKER)
            assert one.ended() in {1, 2}
            assert "The package keras is not installed" in one.text
            assert "pip install 'fedmq[keras]'" in one.text
            assert "Traceback" not in one.text
    finally:
        for one in reversed(opened):
            one.close()


def program(monkeypatch, *command):
    monkeypatch.setattr(Terminal, "program", tuple(map(str, command)))


@in_full("the base install and a clone that is not installed have the same names")
@pytest.mark.timeout(240)
def test_an_editable_install_from_a_path_with_a_space(clone, users, late, borrowing, monkeypatch):
    done(borrowing, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", clone, cwd=users)
    program(monkeypatch, borrowing.with_name("fedmq"))
    study = Terminal(users, "study", "study.toml", "--workers", "1")  # its processes import the app and its neighbours
    assert study.ended() == 0, study.text
    study.close()
    program(monkeypatch, borrowing, "-m", "fedmq")
    (users / "queue.py").unlink()  # Python itself gives a script's own to everything
    (users / "msgpack.py").unlink()
    assert str(clone) in check_a_users_folder(borrowing, users)


@pytest.mark.timeout(240)
def test_a_clone_that_is_not_installed(clone, users, late, borrowing, monkeypatch):
    program(monkeypatch, borrowing, "-m", "fedmq")
    doctor = Terminal(clone, "doctor", "--config", str(users / "federation.toml"), **NO_BROKER)
    doctor.ended()
    doctor.close()
    assert "✓ training: one step as sensor-1 on 10 examples worked" in doctor.text, doctor.text
    (users / "queue.py").unlink()
    (users / "msgpack.py").unlink()
    assert str(clone) in check_a_users_folder(borrowing, users, PYTHONPATH=str(clone))
    assert not list(Path(clone).glob("*.egg-info")), os.listdir(clone)
