import sys
import textwrap

import numpy as np
import pytest

from fedmq.app.app import load_app, trainer_of
from fedmq.schemas.errors import AppError, MissingExtra


@pytest.fixture
def app(tmp_path):
    def load(text):
        path = tmp_path / "app.py"
        path.write_text(textwrap.dedent(text))
        return load_app(path)

    return load


def test_functions_are_found_by_name_and_called(app):
    loaded = app("def load_data(participant_id):\n    return [participant_id], [1]\n")
    assert loaded.need("load_data", "here")("sensor-1") == (["sensor-1"], [1])
    assert loaded.get("load_test_data") is None


def test_an_imported_function_counts_too(app, tmp_path):
    (tmp_path / "neighbour_of_test_app.py").write_text("def build_model():\n    return 7\n")
    assert app("from neighbour_of_test_app import build_model\n").need("build_model", "here")() == 7


def test_a_missing_function_is_named_with_what_is_there_and_a_near_miss(app):
    loaded = app("import os\ndef build_modle(): pass\ndef helper(): pass\ndef _inner(): pass\n")
    with pytest.raises(AppError) as caught:
        loaded.need("build_model", "to train")
    assert str(caught.value) == (
        f"{loaded.path} has no function build_model, which is needed to train. It has build_modle, helper. "
        "Did you mean it by build_modle?"
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AppError, match=r"There is no app file .*nothing.py: `app` in the federation file names it"):
        load_app(tmp_path / "nothing.py")


def test_an_app_that_raises_is_refused_with_its_line(app):
    with pytest.raises(AppError) as caught:
        app("def inner():\n    return {}['key']\n\ninner()\n")
    assert str(caught.value).endswith("fails when it is loaded: KeyError: 'key' (app.py, line 2: return {}['key'])")


def test_a_syntax_error_is_named_with_its_line(app):
    with pytest.raises(AppError, match=r"app.py, line 2: "):
        app("import os\ndef build_model(:\n    pass\n")


def test_a_function_that_raises_is_named_with_its_line(app):
    loaded = app("def load_data(participant_id):\n    raise OSError('no disk')\n")
    with pytest.raises(AppError, match=r"load_data in .* failed: OSError: no disk \(app.py, line 2: raise OSError"):
        loaded.need("load_data", "here")("a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def load_data(): pass\n", r"load_data\(\) cannot be called as load_data\(participant_id\)"),
        ("def build_model(size): pass\n", r"build_model\(size\) cannot be called as build_model\(\)"),
        ("def evaluate(): pass\n", r"evaluate\(\) cannot be called as evaluate\(parameters\)"),
        ("build_model = 3\n", "build_model is int, expected a function"),
    ],
)
def test_functions_of_the_wrong_shape_are_refused(app, text, said):
    with pytest.raises(AppError, match=said):
        app(text)


def test_two_apps_of_one_name_do_not_meet(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "app.py").write_text(f"def build_model():\n    return {name!r}\n")
    first, second = (load_app(tmp_path / name / "app.py") for name in ("a", "b"))
    assert (first.need("build_model", "")(), second.need("build_model", "")()) == ("a", "b")


def test_a_trainer_of_the_apps_own_needs_no_keras(app):
    trainer = trainer_of(
        app(
            """
            class Trainer:
                def __init__(self, name): self.name = name
                def train(self, parameters, config): return parameters
            def build_trainer(participant_id): return Trainer(participant_id)
            """
        ),
        "sensor-1",
    )
    assert trainer.name == "sensor-1"


def test_a_trainer_without_train_is_refused(app):
    with pytest.raises(AppError, match=r"build_trainer in .* gave int, expected an object with train"):
        trainer_of(app("def build_trainer(participant_id): return 3\n"), "a")


def test_an_app_without_model_and_trainer_is_refused(app):
    with pytest.raises(AppError, match="no function build_model, which is needed to train with Keras"):
        trainer_of(app("def load_data(participant_id): pass\n"), "a")


def test_numpy_arrays_pass_through(app):
    x, _ = app("import numpy\ndef load_test_data():\n    return numpy.ones(3), None\n").need("load_test_data", "")()
    assert np.array_equal(x, [1, 1, 1])


@pytest.mark.parametrize("text", ["import keras\n", "def build_model():\n    import keras\n"])
def test_an_app_that_needs_a_package_of_an_extra_says_the_command(app, monkeypatch, text):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(MissingExtra, match=r"The package keras is not installed.*pip install 'fedmq\[keras\]'"):
        app(text).need("build_model", "here")()
