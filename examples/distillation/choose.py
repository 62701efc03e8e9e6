"""The choice of β (`mixing`) without a look at the test images: python examples/distillation/choose.py SEED ...

Each study leaves 1,000 training images out, on which its student is judged.
"""

import os
import sys
from pathlib import Path

from fedmq import AppProblem, Distillation, Population, StudyRun, simulate
from fedmq.coordinator.settings import StopSettings

os.environ["CHOOSING"] = "yes"  # app.py reads it
APP = Path(__file__).with_name("app.py")
PARTICIPANTS = 6

for seed in map(int, sys.argv[1:] or ["10"]):
    for mixing in (0.25, 0.5, 1.0):
        outcome = simulate(
            Distillation(buffer_size=3, mixing=mixing),
            AppProblem(app=str(APP), participant_id="sensor-{number}"),
            Population(participants=PARTICIPANTS, compute={"task_s": {"name": "uniform", "low": 1, "high": 3}}),
            StudyRun(stop=StopSettings(max_versions=40), concurrency=PARTICIPANTS, evaluate_interval_s=1000),
            seed=seed,
        )
        print(f"seed {seed}, mixing {mixing}: {outcome.evaluations[-1].metrics['accuracy']:.1%}", flush=True)
