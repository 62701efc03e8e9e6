import sys
import tomllib
from pathlib import Path

import pytest

from fedmq.schemas.errors import InputError, MissingExtra
from fedmq.schemas.local.extras import EXTRAS, check_installed, missing_extra, require

PYPROJECT = Path(__file__).parents[4] / "pyproject.toml"
SAID = (
    "The package keras is not installed. It is needed for the demo. Install it with: pip install 'fedmq[keras]'"
)  # fmt: skip


def test_a_package_that_is_not_installed_is_one_sentence_with_one_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    for act in (require, check_installed):
        with pytest.raises(MissingExtra) as caught:
            act("keras", "the demo")
        assert str(caught.value) == SAID
    assert issubclass(MissingExtra, InputError)


def test_a_package_that_is_installed_is_imported():
    assert require("numba", "a test") is sys.modules["numba"]
    check_installed("keras", "a test")


def test_what_a_broken_package_says_is_left_as_it_is(monkeypatch, tmp_path):
    (tmp_path / "pyarrow.py").write_text("import a_module_that_is_nowhere\n")
    monkeypatch.delitem(sys.modules, "pyarrow", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_nowhere"):
        require("pyarrow", "a test")
    monkeypatch.delitem(sys.modules, "pyarrow", raising=False)


def test_other_errors_are_about_no_extra():
    assert missing_extra(ModuleNotFoundError("x", name="sklearn"), "a test") is None
    assert missing_extra(ImportError("x", name="keras"), "a test") is None
    said = MissingExtra("the command")
    assert missing_extra(said, "a test") is said


def test_the_extras_are_those_of_the_package():
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(one.startswith(package) for one in declared[extra]), package
