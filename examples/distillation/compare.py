"""Each participant's own model after the federation, and alone: python examples/distillation/compare.py SEED ...

Alone, a participant trains a new model of its kind on its own data, for 10 and for 20 epochs. The better of the two
counts. The federation is a study of 40 versions, about 20 tasks of one epoch for each participant.
"""

import sys
from pathlib import Path

from fedmq import AppProblem, Distillation, Population, StudyRun, TrainingConfig, simulate
from fedmq.coordinator.settings import StopSettings

APP = Path(__file__).with_name("app.py")
PARTICIPANTS = 6


class Watched(AppProblem):
    """The app's problem, whose trainers can be asked afterwards."""

    def deal(self, members, seed):
        federation = super().deal(members, seed)
        TRAINERS[:] = federation.backend.trainers
        return federation


TRAINERS = []


def alone(learner, seed):
    model, found = learner.start(seed), []
    for epoch in range(20):
        model = learner.train(model, TrainingConfig(seed=epoch)).parameters
        if epoch in (9, 19):
            found.append(learner.evaluate(model)["accuracy"])
    return max(found)


for seed in map(int, sys.argv[1:] or ["0"]):
    outcome = simulate(
        Distillation(buffer_size=3, mixing=0.5),
        Watched(app=str(APP), participant_id="sensor-{number}"),
        Population(participants=PARTICIPANTS, compute={"task_s": {"name": "uniform", "low": 1, "high": 3}}),
        StudyRun(stop=StopSettings(max_versions=40), concurrency=PARTICIPANTS, evaluate_interval_s=1000),
        seed=seed,
    )
    print(f"seed {seed}: student {outcome.evaluations[-1].metrics['accuracy']:.1%}")
    for number, trainer in enumerate(TRAINERS, start=1):
        after = trainer.learner.evaluate(trainer.own_model)["accuracy"]
        print(f"  sensor-{number}: after {after:.1%}, alone {alone(trainer.learner, seed=1000 + number - 1):.1%}")
