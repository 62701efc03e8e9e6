"""The process that trains: its start, its memory, and what it adds to a task.

    python -m bench.trainer_process [--sizes 1,10,50] [--repeats 9] [--keras]

A trainer that adds 1 to its parameters does the same task in this process and in a process of its own. The difference
is what the process adds: two transfers of the model. Times are the shortest of all repeats, CPU is the mean, of both
processes together. With `--keras`, an app with a small Keras model is started too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from bench.report import best_of
from fedmq.app.app import load_app, trainer_of
from fedmq.app.trainer_process import TrainerProcess
from fedmq.participant.training.task_work import do_task
from fedmq.schemas.messages import Task, TrainingConfig
from fedmq.schemas.parameters import Parameters

LIGHT = """
import numpy as np

class Result:
    num_examples, num_steps, metrics = 10, 1, {}
    def __init__(self, parameters):
        self.parameters = parameters

class Trainer:
    num_examples = 10
    def train(self, parameters, config):
        return Result({name: array + np.float32(1) for name, array in parameters.items()})

def build_trainer(participant_id):
    return Trainer()
"""
KERAS = """
import keras
import numpy as np

def build_model():
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("sgd", "mse")
    return model

def load_data(participant_id):
    return np.zeros((64, 28, 28), "float32"), np.zeros((64, 10), "float32")
"""
TASK = Task(
    task_id="t", run_id="r", participant_id="p", base_version=0, reply="delta", lease_s=1.0, training=TrainingConfig()
)
TENSORS = 20


def started(app: Path, what: str) -> TrainerProcess:
    """Start the app's process, and print how long it took and what it holds."""
    process = TrainerProcess(app, "p", float("inf"))
    began_s = time.perf_counter()
    process.open()
    took_s = time.perf_counter() - began_s
    child = psutil.Process(process.pid)
    rss_mb = child.memory_info().rss / 1e6
    print(f"  {what}: started in {took_s:.2f} s ({cpu_s(process):.2f} s of CPU), RSS {rss_mb:.0f} MB", flush=True)
    return process


def cpu_s(process: TrainerProcess) -> float:
    """Return the CPU time of the process up to now."""
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


def task_cpu_s(process: TrainerProcess, work: Callable[[], object], repeats: int) -> float:
    """Return the mean CPU time of the work, in this process and in the other one."""
    began_s = time.process_time() + cpu_s(process)
    for _ in range(repeats):
        work()
    return (time.process_time() + cpu_s(process) - began_s) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1,10,50", help="model sizes in MB")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--keras", action="store_true")
    options = parser.parse_args()
    print("the process that trains")
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "app.py"
        app.write_text(LIGHT)
        process = started(app, "numpy trainer")
        there, here = process.open(), trainer_of(load_app(app), "p")
        for size in (float(part) for part in options.sizes.split(",")):
            shape = int(size * 1e6 / 4 / TENSORS)
            model = Parameters({f"t{i}": np.full(shape, i, "float32") for i in range(TENSORS)}).packed()
            both = [lambda t=t, model=model: do_task(t, TASK, model, time.monotonic) for t in (there, here)]  # type: ignore[misc]
            elsewhere_ms, in_process_ms = (1e3 * s for s in best_of(options.repeats, *both))
            elsewhere_cpu_ms, in_process_cpu_ms = (1e3 * task_cpu_s(process, one, options.repeats) for one in both)
            print(
                f"  {size:g} MB: a task takes {elsewhere_ms:.1f} ms (CPU {elsewhere_cpu_ms:.1f}), in this process "
                f"{in_process_ms:.1f} ms (CPU {in_process_cpu_ms:.1f})",
                flush=True,
            )
        process.close()
        if options.keras:
            (Path(folder) / "keras_app.py").write_text(KERAS)
            started(Path(folder) / "keras_app.py", "Keras trainer").close()


if __name__ == "__main__":
    main()
