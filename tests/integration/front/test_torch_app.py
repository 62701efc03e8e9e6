"""A PyTorch app through the command line: the doctor, and a run with a target and an exported model."""

import pytest
from safetensors.numpy import load_file

from fedmq.app.app import load_app, trainer_of
from fedmq.app.model_process import ModelChild
from fedmq.app.models import framework_of, is_torch
from fedmq.app.parameter_files import write_parameters
from fedmq.schemas.errors import AppError
from fedmq.schemas.parameters import Parameters
from tests.support.torch_app import APP, write

torch = pytest.importorskip("torch")

WATCH = """
import sys
from importlib.machinery import PathFinder
class Watch:
    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name in ("torch", "keras", "tensorflow", "jax") else None
        if spec is not None:
            load = spec.loader.exec_module
            def exec_module(module):
                with open({seen!r}, "a") as file:
                    print(" ".join(sys.argv[:2]), name, file=file)
                load(module)
            spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Watch())
"""
FEDERATION = """
app = "app.py"
[run]
run_id = "r1"
min_participants = 2
participant_timeout_s = 5
[run.stop]
max_versions = 200
target = {name = "accuracy", value = 0.85}
[strategy]
name = "fedbuff"
buffer_size = 2
[training]
batch_size = 16
learning_rate = 0.2
[participant]
hello_interval_s = 1
"""
CONFIG = ("--config", "federation.toml")


@pytest.mark.broker
def test_a_run_by_the_command_line_reaches_its_target_and_never_loads_tensorflow(terminal, tmp_path, amqp_url, prefix):
    write(tmp_path)
    (tmp_path / "federation.toml").write_text(FEDERATION)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH.format(seen=str(tmp_path / "seen")))
    env = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix, "PYTHONPATH": str(tmp_path / "site")}
    coordinator = terminal("coordinator", *CONFIG, **env)
    participants = [terminal("participant", *CONFIG, "--id", f"sensor-{i}", **env) for i in (1, 2)]
    assert coordinator.ended() == 0, coordinator.text
    assert [one.ended() for one in participants] == [0, 0]
    text = " ".join(coordinator.text.split())
    assert "Run r1 finished (target" in text
    final = tmp_path / "runs" / "r1" / "final.safetensors"
    assert f"{final} and {final.with_suffix('.pt')}" in coordinator.text
    doctor = terminal("doctor", *CONFIG, "--id", "sensor-1", "--set", "run.run_id=r2", **env)
    assert doctor.ended() == 0, doctor.text
    said = " ".join(doctor.text.split())
    assert "training: one step as sensor-1 on 64 examples worked" in said
    assert "export: the model can be saved as a .pt file" in said
    seen = (tmp_path / "seen").read_text()
    assert " torch\n" in seen, "the test sees what is imported"
    assert not [line for line in seen.splitlines() if line.split()[-1] in ("keras", "tensorflow", "jax")]

    state = torch.load(final.with_suffix(".pt"), weights_only=True)
    assert {name: t.tolist() for name, t in state.items()} == {n: a.tolist() for n, a in load_file(final).items()}
    app = load_app(tmp_path / "app.py").functions
    model = app["build_model"]()
    model.load_state_dict(state)
    x, y = app["load_test_data"]()
    with torch.no_grad():
        right = model.eval()(torch.from_numpy(x).float()).argmax(1).numpy() == y
    assert right.mean() >= 0.85


def test_the_coordinators_child_evaluates_and_exports_tied_weights_under_all_their_names(tmp_path):
    tied = APP.replace(
        "    return torch.nn.Sequential(*hidden, torch.nn.Linear(8, 2))",
        "    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))\n"
        "    model[1].weight = model[0].weight\n"
        "    return model",
    )
    assert tied != APP
    child = ModelChild(write(tmp_path, tied), tmp_path / "model")
    try:
        child.ready()
        assert (child.evaluates, child.exports) == (True, True)
        initial = child.initial()
        assert list(initial) == ["0.weight", "0.bias", "1.bias", "2.weight", "2.bias"]
        assert set(child.evaluate(initial)) == {"loss", "accuracy"}
        (tmp_path / "run").mkdir()
        write_parameters(tmp_path / "run" / "final.safetensors", initial)
        written = child.export(tmp_path / "run" / "final.safetensors")
        assert written == tmp_path / "run" / "final.pt"
        state = torch.load(written, weights_only=True)
        assert torch.equal(state["1.weight"], torch.from_numpy(initial["0.weight"].copy()))
        write_parameters(tmp_path / "other.safetensors", Parameters({"0.weight": initial["0.weight"]}))
        with pytest.raises(AppError, match=r"not the federation's.*0\.bias"):
            child.export(tmp_path / "other.safetensors")
    finally:
        child.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (APP.replace("def loss", "def los"), r"has no function loss, which is needed to train a PyTorch model.*los\?"),
        (APP.replace("def optimizer", "def optimiser"), "has no function optimizer, .*optimiser"),
        (APP.replace("return x, (x[:, 0]", "x, (x[:, 0]"), r"load_data .* returned None, expected \(x, y\)"),
    ],
)
def test_what_a_pytorch_app_lacks_is_said(tmp_path, text, said):
    with pytest.raises(AppError, match=said):
        trainer_of(load_app(write(tmp_path, text)), "sensor-1")


def test_an_evaluation_without_a_loss_says_so_in_an_app_with_trainers_of_its_own(tmp_path):
    app = load_app(write(tmp_path, APP.replace("def loss", "def error")))
    with pytest.raises(AppError, match="has no function loss, which is needed to evaluate a PyTorch model"):
        framework_of(app, "to evaluate").evaluator(app.need("load_test_data", "")())


def test_an_app_that_imports_pytorch_late_is_known_by_its_functions(tmp_path):
    late = APP.replace("import torch\n", "").replace("    hidden =", "    import torch\n    hidden =")
    assert is_torch(load_app(write(tmp_path, late)))
    assert not is_torch(load_app(write(tmp_path, "def build_model():\n    return 3\n")))
