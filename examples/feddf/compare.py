"""FedDF beside FedBuff at equal versions, in virtual time.

    python examples/feddf/compare.py ALPHA EPOCHS CONCURRENCY VERSIONS SEED ...

Both have the same updates in the first version: the same participants, seeds and orders.
"""

import os
import sys
from pathlib import Path

alpha, epochs, concurrency, versions, *seeds = sys.argv[1:]
os.environ["ALPHA"] = alpha  # app.py reads it

from fedmq import AppProblem, FedBuff, FedDf, Population, StudyRun, TrainingConfig, simulate  # noqa: E402
from fedmq.coordinator.settings import StopSettings  # noqa: E402

APP = Path(__file__).with_name("app.py")

for seed in map(int, seeds):
    for strategy in (FedBuff(buffer_size=5), FedDf(buffer_size=5)):
        outcome = simulate(
            strategy,
            AppProblem(app=str(APP), participant_id="sensor-{number}"),
            Population(participants=10, compute={"task_s": {"name": "uniform", "low": 1, "high": 3}}),
            StudyRun(
                stop=StopSettings(max_versions=int(versions)), concurrency=int(concurrency), evaluate_every_updates=5
            ),
            TrainingConfig(epochs=int(epochs)),
            seed=seed,
        )
        shown = ", ".join(f"{one.metrics['accuracy']:.1%}" for one in outcome.evaluations[1:])
        print(f"seed {seed}, {strategy.name}: {shown}", flush=True)
