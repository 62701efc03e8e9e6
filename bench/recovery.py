"""Recovery of a killed coordinator, as a real process over RabbitMQ.

    python -m bench.recovery [--sizes 0.1,10,100] [--rounds 3]

For each model size a run is in full swing, with two participants whose training takes no time. Its coordinator is
killed with SIGKILL right after a version, and the same command is started again. The lines that the new process prints
give two times from its start: until it has the run's state back, and until it has accepted an update again. The target
is 5 s for the second; the coordinator itself never imports TensorFlow. Each round is one kill, and the median counts.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.report import Row, print_table
from fedmq.broker_config.node.node import PrivateNode

TARGET_S = 5.0
DEADLINE_S = 120.0
APP = """
import numpy as np

SIZE = {size}

def initial_parameters():
    return {{"w": np.zeros(SIZE, "float32")}}

class Result:
    num_examples, num_steps, metrics = 10, 1, {{}}
    def __init__(self, parameters):
        self.parameters = parameters

class Trainer:
    num_examples = 10
    def train(self, parameters, config):
        return Result({{"w": parameters["w"] + np.float32(1e-3)}})

def build_trainer(participant_id):
    return Trainer()
"""
FEDERATION = """
[run]
run_id = "recovery"
concurrency = 2
[run.stop]
max_versions = 1000000
[strategy]
name = "fedbuff"
buffer_size = 2
[broker]
url = "{url}"
prefix = "recovery-{size}"
max_message_bytes = 134217728
[participant]
hello_interval_s = 1
"""


@contextmanager
def process(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m fedmq ARGUMENTS`; it is killed at the end if it still lives."""
    child = subprocess.Popen(
        [sys.executable, "-m", "fedmq", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def seconds_until(child: subprocess.Popen[str], began_s: float, *patterns: str) -> list[float]:
    """Return the seconds at which lines with these patterns came, in this order."""
    found: list[float] = []
    assert child.stdout is not None
    for line in child.stdout:
        now = time.monotonic()
        if re.search(patterns[len(found)], line):
            found.append(now - began_s)
            if len(found) == len(patterns):
                return found
        if now - began_s > DEADLINE_S:
            break
    raise SystemExit(f"the coordinator never printed {patterns[len(found)]!r}")


def measure(url: str, folder: Path, num_bytes: int, rounds: int) -> tuple[float, float]:
    """Return the medians of (state back, first update), in seconds."""
    size = num_bytes // 4
    (folder / "app.py").write_text(APP.format(size=size))
    (folder / "federation.toml").write_text(FEDERATION.format(url=url, size=size))
    config = ("--config", "federation.toml")
    times: list[list[float]] = []
    with (
        process(folder, "participant", *config, "--id", "p0") as p0,
        process(folder, "participant", *config, "--id", "p1") as p1,
    ):
        for child in (p0, p1):
            assert child.stdout is not None
            os.set_blocking(child.stdout.fileno(), False)  # nobody reads them, and a full pipe must not hold them up
        with process(folder, "coordinator", *config) as coordinator:
            seconds_until(coordinator, time.monotonic(), "event=version_made version=3 ")
        for _ in range(rounds):
            began_s = time.monotonic()
            with process(folder, "coordinator", *config) as coordinator:
                times.append(seconds_until(coordinator, began_s, "event=run_resumed", "event=update_accepted"))
                seconds_until(coordinator, time.monotonic(), "event=version_made", "event=version_made")
    back, accepted = zip(*times, strict=True)
    return statistics.median(back), statistics.median(accepted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.1,10,100", help="sizes of the model, in MB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one kill of the smallest model: proves that it runs")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.rounds = "0.1", 1
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as work, PrivateNode(Path(work) / "node") as node:
        for text in options.sizes.split(","):
            folder = Path(work) / text
            folder.mkdir()
            back_s, accepted_s = measure(node.url, folder, int(float(text) * 1e6), options.rounds)
            rows.append(
                Row(
                    f"{text} MB: state back, first update", f"{back_s:.2f} s, {accepted_s:.2f} s", f"{TARGET_S:.0f} s",
                    accepted_s / TARGET_S, 1.0, at_least=False,
                )
            )  # fmt: skip
    print_table("bench/recovery", rows)


if __name__ == "__main__":
    main()
