"""The federation's app in the chaos tests. It has no Keras; training follows from the task's seed and keeps a diary.

calls/<participant> gets a line "begun SEED" and a line "done SEED" for every training. If there is a FIFO
gate-<participant>, a training lasts until somebody has opened it for writing and closed it. While there is a file
hold/<participant>, a training does not end, and makes hold/<participant>.seen. Trainings run in a process of the
participant's: the point mid-training ends the participant, and trainer-mid-training that process.
"""

import os
import time
from pathlib import Path

import numpy as np

from fedmq.broker_config.faults import fault

SIZE = 257
COLUMNS = 0
"""Columns of the model's matrix; with 0 it is a vector."""
FROZEN = 0
"""Values of a frozen tensor beside it; with 0 there is none."""
PAUSE_S = 0.0
"""Longest duration of a training. The exact one follows from its seed."""


def initial_parameters(size=SIZE, columns=None):
    values = np.linspace(-1, 1, size, dtype="float32")
    columns = COLUMNS if columns is None else columns
    base = {"base": np.linspace(0, 1, FROZEN, dtype="float32")} if FROZEN else {}
    return {**base, "w": values.reshape(-1, columns) if columns else values, "steps": np.int64(3)}


def frozen(parameters):
    return ["base"] if FROZEN else []


def trained(parameters, seed):
    """Train so that a sum of updates in another order has other bits, and a replay in a wrong order is noticed."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=parameters["w"].shape).astype("float32")
    moved = {"w": parameters["w"] + noise}
    if "base" in parameters and "base" not in parameters.non_trainable:  # [training] unfreeze
        moved["base"] = parameters["base"] + rng.normal(size=parameters["base"].shape).astype("float32")
    return {**parameters, **moved}


class Trainer:
    num_examples = 10

    def __init__(self, participant_id):
        self._diary = Path("calls") / participant_id
        self._gate = Path(f"gate-{participant_id}")
        self._held = Path("hold") / participant_id

    def train(self, parameters, config):
        self._note(f"begun {config.seed}")
        fault("mid-training", os.getppid())
        fault("trainer-mid-training")
        if self._gate.exists():
            self._gate.read_bytes()
        while self._held.exists():
            self._held.with_suffix(".seen").touch()
            time.sleep(0.02)
        time.sleep(PAUSE_S * (config.seed % 1000) / 1000)
        result = Result(trained(parameters, config.seed))
        self._note(f"done {config.seed}")
        return result

    def _note(self, line):
        with self._diary.open("a") as diary:
            diary.write(line + "\n")
            os.fsync(diary.fileno())


class Result:
    num_examples, num_steps, metrics = 10, 1, {"loss": 0.5}

    def __init__(self, parameters):
        self.parameters = parameters


def build_trainer(participant_id):
    Path("calls").mkdir(exist_ok=True)
    return Trainer(participant_id)
