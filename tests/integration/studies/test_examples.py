"""The examples of other learners, on the sample of MNIST that fedmq ships. docs/guide.md has their figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.full import in_full

EXAMPLES = Path(__file__).parents[3] / "examples"
LEARNERS = [
    pytest.param("torch", "torch", 0.003, 0.6, marks=in_full("front/test_torch_app.py has PyTorch alone")),
    ("scikit-learn", "sklearn", 1.0, 0.6),
    ("jax", "jax", 0.2, 0.6),
]

RUN = """
import json, sys
from fedmq import FedBuff, Population, StudyRun, TrainingConfig, simulate
from fedmq.coordinator.settings import StopSettings
from fedmq.study.app_problem import AppProblem

app, rate = sys.argv[1:]
outcome = simulate(
    FedBuff(buffer_size=3),
    AppProblem(app=app, participant_id="sensor-{number}"),
    Population(participants=5, compute={"task_s": {"name": "constant", "value": 1}}),
    StudyRun(stop=StopSettings(max_updates=9), concurrency=5, evaluate_interval_s=1, client_weights="examples"),
    TrainingConfig(learning_rate=float(rate)),
)
heavy = {"tensorflow", "keras", "torch", "sklearn", "jax"} & sys.modules.keys()
print(json.dumps([[e.metrics["accuracy"] for e in outcome.evaluations], sorted(heavy), outcome.backend]))
"""


@pytest.mark.parametrize(("name", "package", "rate", "least"), LEARNERS, ids=["torch", "scikit-learn", "jax"])
def test_an_example_learns_mnist_with_its_own_package_alone(name, package, rate, least):
    pytest.importorskip(package, reason=f"examples/{name} is not tested: {package} is not installed (extra dev)")
    command = [sys.executable, "-c", RUN, str(EXAMPLES / name / "app.py"), str(rate)]
    done = subprocess.run(command, check=True, timeout=110, capture_output=True, text=True)
    accuracies, heavy, backend = json.loads(done.stdout.splitlines()[-1])
    assert accuracies[0] < 0.2
    assert accuracies[-1] > least
    assert heavy == [package]
    assert backend.startswith("PyTorch" if name == "torch" else "the app's own trainers")


def test_the_jax_example_adds_scaffolds_correction_and_fedprox_and_repeats_its_bits():
    pytest.importorskip("jax", reason="examples/jax is not tested: jax is not installed (extra dev)")
    code = """
import sys
import numpy as np
from fedmq import TrainingConfig
from fedmq.app.app import load_app, trainer_of
app = load_app(sys.argv[1])
trainer, base = trainer_of(app, "sensor-1"), app.functions["initial_parameters"]()
def trained(correction=None, **settings):
    config = TrainingConfig(learning_rate=0.1, max_steps=2, epochs=9, seed=3, **settings)
    result = trainer.train(base, config, correction)
    assert result.num_steps == 2, result.num_steps
    return result.parameters
plain = trained()
assert all((plain[name] == trained()[name]).all() for name in base)
one = {name: np.ones_like(array) for name, array in base.items()}
assert 0.15 < np.mean([(plain[name] - trained(one)[name]).mean() for name in base]) < 0.25
moved = [np.abs(trained(proximal_mu=mu)[name] - base[name]).sum() for mu in (0.0, 5.0) for name in ["['hidden']['w']"]]
assert moved[1] < 0.9 * moved[0], moved
"""
    command = [sys.executable, "-c", code, str(EXAMPLES / "jax" / "app.py")]
    done = subprocess.run(command, check=False, timeout=110, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
