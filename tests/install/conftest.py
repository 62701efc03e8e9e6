"""Installs of fedmq that tests look at from outside: nothing here is imported from this checkout's fedmq."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGED = (
    "pyproject.toml", "README.md", "LICENSE", "schemas", "broker_config", "coordinator", "participant", "studies",
    "fedmq",
)  # fmt: skip
DEADLINE_S = 110


def done(*command, cwd, **environ):
    """Run a command to its end, away from this checkout. Returns what it wrote to both streams."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("FEDMQ_", "PYTHON"))}
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 0, f"{' '.join(map(str, command))}\n{ended.stdout}"
    return ended.stdout


@pytest.fixture(scope="session")
def package_index(tmp_path_factory):
    """Skip loudly if pip reaches no package index; in CI that is a failure."""
    folder = tmp_path_factory.mktemp("index")
    try:
        done(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "sortedcontainers", cwd=folder)
    except AssertionError as e:
        if os.environ.get("CI"):
            raise
        text = f"NO PACKAGE INDEX: no fresh environment is tested, because pip found nothing to install.\n{e}"
        print(f"\n{text}", file=sys.__stderr__)
        pytest.skip(text)


@pytest.fixture
def clone(tmp_path):
    """Copy the files of a fresh clone to a path with a space."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in PACKAGED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture
def build(package_index, tmp_path):
    """A function: build(*arguments) runs `python -m build` with what pyproject.toml says that a build takes.

    All builds share one folder with that, because an isolated environment costs each of them seconds.
    """
    folder = tmp_path / "backend"
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", folder)
    done(*pip, *requires, cwd=tmp_path)

    def build(*arguments):
        done(sys.executable, "-m", "build", "--no-isolation", *arguments, cwd=tmp_path, PYTHONPATH=str(folder))

    return build


@pytest.fixture
def borrowing(tmp_path):
    """The python of a fresh environment that sees this one's packages, but not its fedmq."""
    folder = tmp_path / "borrowing"
    done(sys.executable, "-m", "venv", "--without-pip", folder, cwd=tmp_path)  # it has the borrowed one
    python = folder / "bin" / "python"
    site = done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (Path(site) / "borrowed.pth").write_text("\n".join(ours))  # .pth files in these folders are not read
    return python


APP = """
import broker_config
import coordinator
import numpy as np
import participant
import schemas
import studies

class Result:
    def __init__(self, parameters):
        self.parameters, self.num_examples, self.num_steps, self.metrics = parameters, 10, 1, {"loss": 0.5}

class Trainer:
    num_examples = 10
    def train(self, parameters, config):
        return Result({"w": parameters["w"] + np.float32(participant.STEP * coordinator.inner.ONE)})

def build_trainer(participant_id):
    return Trainer()

def initial_parameters():
    return {"w": np.zeros(len(schemas.FIELDS), np.float32)}

def evaluate(parameters):
    return {"mean": float(parameters["w"].mean()) * studies.ONE * broker_config.ONE}
"""
FEDERATION = """
[run]
run_id = "own"
concurrency = 2
evaluate_interval_s = 0
[run.stop]
max_versions = 4
[strategy]
name = "fedbuff"
buffer_size = 2
[archive]
max_bytes = 100000000
[participant]
hello_interval_s = 1
"""
STUDY = """
name = "own"
tuning = false
[problem]
name = "app"
app = "app.py"
[run]
concurrency = 2
stop = { max_versions = 2 }
[[strategies]]
label = "FedBuff"
strategy = { name = "fedbuff", buffer_size = 2 }
[[populations]]
name = "few"
participants = 3
compute = { task_s = { name = "exponential", mean = 1 } }
"""
SCRIPT = """
import fedmq
import schemas
from fedmq.schemas.codec import encode
print(schemas.FIELDS, fedmq.FedBuff(buffer_size=3).buffer_size, fedmq.__file__)
"""
TEST = """
import fedmq, participant
from fedmq.schemas.messages import TrainingConfig

def test_it():
    assert participant.STEP and TrainingConfig(epochs=2).epochs == 2 and fedmq.Parameters({}) is not None
"""


@pytest.fixture
def users(tmp_path):
    """A user's folder whose modules have the names of rooms of ours, and of packages that fedmq loads late."""
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "federation.toml").write_text(FEDERATION)
    (folder / "study.toml").write_text(STUDY)
    (folder / "script.py").write_text(SCRIPT)
    (folder / "test_own.py").write_text(TEST)
    (folder / "schemas.py").write_text("FIELDS = ['a', 'b', 'c']\n")
    (folder / "participant.py").write_text("STEP = 0.25\n")
    (folder / "studies.py").write_text("ONE = 1\n")
    for name in ("coordinator", "broker_config"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("from . import inner\nONE = inner.ONE\n")
        (folder / name / "inner.py").write_text("ONE = 1\n")
    return folder


@pytest.fixture
def late(users):
    """Neighbours that nothing may import: fedmq and its libraries load the modules of these names late."""
    for name in ("keras", "msgpack", "numba", "pika", "queue"):
        (users / f"{name}.py").write_text(f"raise RuntimeError('the neighbour {name} was imported')\n")
