import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fedmq.app.neighbours import PROTECTED, Neighbours, hidden_by

DEADLINE_S = 60
PYPROJECT = Path(__file__).parents[4] / "pyproject.toml"
OF_OURS = ("schemas", "coordinator", "participant", "studies", "broker_config")
PROTECTED_NEIGHBOURS = ("numpy", "keras", "queue", "typing", "msgpack", "pika")


@pytest.fixture
def folder(tmp_path):
    """An app whose neighbours have names of rooms of ours: modules, and one package of each."""
    for name in OF_OURS[:3]:
        (tmp_path / f"{name}.py").write_text(f"IT = 'the apps {name}'\n")
    for name in OF_OURS[3:]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("from .inner import IT\n")
        (tmp_path / name / "inner.py").write_text(f"IT = 'the apps {name}'\n")
    for name in PROTECTED_NEIGHBOURS:
        (tmp_path / f"{name}.py").write_text("raise ImportError('the neighbour was imported')\n")
    (tmp_path / "app.py").write_text(
        "".join(f"import {name}\n" for name in OF_OURS)
        + f"def build_model():\n    return [{', '.join(f'{name}.IT' for name in OF_OURS)}]\n"
    )
    return tmp_path


def python(folder, code, *flags):
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_app_imports_its_neighbours_and_fedmq_and_the_libraries_import_theirs(folder):
    code = (
        "from fedmq.app.app import load_app\n"
        "print(load_app('app.py').need('build_model', 'here')())\n"
        "import fedmq.schemas.codec, fedmq.run.participant, fedmq.broker_config.amqp.transport, concurrent.futures\n"
    )
    done = python(folder, code, "-P")
    assert done.stdout == f"{[f'the apps {name}' for name in OF_OURS]}\n"
    assert f'event=neighbour_hidden file={folder / "queue.py"} why="`import queue` gives the installed' in done.stderr


def test_a_plain_folder_beside_the_app_hides_no_package_but_is_found_if_there_is_none(tmp_path):
    (tmp_path / "iniconfig").mkdir()
    (tmp_path / "own_data").mkdir()
    (tmp_path / "app.py").write_text("import iniconfig, own_data\nassert iniconfig.IniConfig\n")
    python(tmp_path, "from fedmq.app.app import load_app; load_app('app.py')", "-P")


def test_an_app_that_is_loaded_twice_has_one_finder(folder):
    code = "import sys\nfrom fedmq.app.app import load_app\nload_app('app.py'), load_app('app.py')\n"
    shown = "print(sum(type(one).__name__ == 'Neighbours' for one in sys.meta_path))"
    assert python(folder, code + shown, "-P").stdout == "1\n"


def test_what_is_inside_a_package_is_left_to_the_package(folder):
    finder = Neighbours(str(folder))
    assert finder.find_spec("email.schemas", ["/somewhere"]) is None
    assert finder.find_spec("schemas", None).origin == str(folder / "schemas.py")


def test_the_packages_of_a_plain_install_are_protected():
    base = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    seen, waiting = set(), [base]
    while waiting:
        found = [Requirement(one) for one in waiting.pop()]
        new = {one.name for one in found if one.marker is None or one.marker.evaluate({"extra": ""})} - seen
        seen |= new
        waiting += [requires(name) or () for name in new]
    assert {"numpy", "pydantic"} <= seen
    modules = {name.lower().replace("-", "_").removesuffix("_py") for name in seen}
    assert modules <= PROTECTED


def test_modules_and_packages_that_an_app_cannot_import_are_named(tmp_path):
    (tmp_path / "json").mkdir()
    for name in ("keras.py", "own.py", "numpy.py", "json/__init__.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "queue").mkdir()  # a plain folder of data
    named = [path.relative_to(tmp_path.resolve()).as_posix() for path in hidden_by(tmp_path / "numpy.py")]
    assert named == ["json/__init__.py", "keras.py"]
