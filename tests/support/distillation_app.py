"""An app of distillation without a framework: linear classifiers, one of them on squared features."""

from pathlib import Path

APP = """
import hashlib

import numpy as np

import fedmq

CLASSES = 3


def examples(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2))
    return x, (x @ [[1, -1, 0], [0, 1, -1]]).argmax(axis=1)


PUBLIC, _ = examples(40, 0)


class Linear:
    public_digest = hashlib.blake2b(PUBLIC.tobytes(), digest_size=16).digest()

    def __init__(self, own, squared=False, says=None):
        self.x, self.y = own
        self.num_examples, self.squared, self.says = len(self.x), squared, says

    def start(self, seed):
        return {"w": np.random.default_rng(seed).normal(size=(5 if self.squared else 3, CLASSES)) / 10}

    def features(self, x):
        return np.concatenate([x, np.ones((len(x), 1)), *([x**2] if self.squared else [])], axis=1)

    def probabilities(self, model, x):
        scores = np.exp(self.features(x) @ model["w"])
        return scores / scores.sum(axis=1, keepdims=True)

    def steps(self, model, x, targets, config):
        w = model["w"].copy()
        for _ in range(config.epochs * 5):
            w += self.features(x).T @ (targets - self.probabilities({"w": w}, x)) / len(x)
        return {"w": w + 1e-3 * np.random.default_rng(config.seed).normal(size=w.shape)}

    def distil(self, model, targets, config):
        return self.steps(model, PUBLIC, targets, config)

    def train(self, model, config):
        made = self.steps(model, self.x, np.eye(CLASSES)[self.y], config)
        if self.says:
            digest = hashlib.sha256(made["w"].tobytes()).hexdigest()[:16]
            print(f"{self.says} ended task {config.seed} with {digest}", flush=True)
        return fedmq.TrainResult(made, self.num_examples, 5)

    def predict(self, model):
        return self.probabilities(model, PUBLIC)

    def evaluate(self, model):
        x, y = examples(500, 99)
        return {"accuracy": float((self.probabilities(model, x).argmax(axis=1) == y).mean())}


def build_trainer(participant_id):
    number = int(participant_id.rpartition("-")[2])
    x, y = examples(60, number)
    two = y != number % CLASSES  # nobody knows all classes
    learner = Linear((x[two], y[two]), squared=number % 2 == 0, says=participant_id)
    return fedmq.DistillationTrainer.around(learner, distil_epochs=20)


def initial_parameters():
    return {
        "predictions": np.full((len(PUBLIC), CLASSES), 1 / CLASSES, "float32"),
        "public_data": np.frombuffer(Linear.public_digest, np.uint8),
    }


def evaluate(parameters):
    student = Linear((np.zeros((0, 2)), None))
    model = student.distil(student.start(0), parameters["predictions"], fedmq.TrainingConfig(epochs=20))
    return student.evaluate(model)
"""


def write(folder: Path) -> Path:
    path = folder / "app.py"
    path.write_text(APP)
    return path
