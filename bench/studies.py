"""The studies' engine against a loop written by hand: `python -m bench.studies [--quick] [--large]`.

1. Softmax regression 784×10, 50 examples each, batches of 10, one epoch, concurrency 100: participants/s of the whole
   study (order of events, FedBuff, updates) against a batched numpy loop that does nothing but train cohorts of 100.
   Then the share that is not training: the same without any training, by the closed loop and by the core.
2. The cost of an update with 100 to 10,000 participants, at a concurrency of a tenth of them.
3. The MLP 784-128-10 on the same data: vectorised against one compiled step after the other, and against `fit`.
4. --large: 10,000 participants, concurrency 1,000, 100,000 updates.

Seconds are of the processor, not of the clock: everything but the Keras programs runs on one thread.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.report import Row, best_of, print_table
from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.strategies import FedBuff
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.studies.engine.outcome import Outcome
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.laws import AnyLaw, Constant, HalfNormal
from fedmq.studies.population.population import Compute, Population
from fedmq.studies.problems.lazy_training import Job, SumJob, Trained
from fedmq.studies.problems.softmax import SoftmaxFederation
from fedmq.studies.simulate import simulate

EXAMPLES, BATCH, FEATURES, CLASSES, RATE = 50, 10, 784, 10, 0.1
TRAINING = TrainingConfig(learning_rate=RATE, batch_size=BATCH)


class Data:
    """Images and labels of MNIST's shape, dealt out with repetition."""

    def __init__(self, participants: int) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.random((8000, FEATURES), dtype=np.float32)
        self.y = rng.integers(0, CLASSES, 8000)
        self.rows = [rng.integers(0, 8000, EXAMPLES) for _ in range(participants)]

    def deal(self, members: Sequence[Any], seed: int) -> SoftmaxFederation:  # noqa: ARG002 - a problem's signature
        return SoftmaxFederation(self.x, self.y, self.rows, CLASSES)


def by_hand(data: Data, cohorts: int, cohort: int = 100) -> None:
    """Train cohorts of participants, each from the mean of the last cohort's models."""
    rng = np.random.default_rng(1)
    one_hot = np.eye(CLASSES, dtype=np.float32)[data.y]
    w0, b0 = np.zeros((FEATURES, CLASSES), np.float32), np.zeros(CLASSES, np.float32)
    for _ in range(cohorts):
        chosen = rng.integers(0, len(data.rows), cohort)
        order = np.stack([data.rows[i][rng.permutation(EXAMPLES)] for i in chosen])
        w, b = np.repeat(w0[None], cohort, 0), np.repeat(b0[None], cohort, 0)
        for start in range(0, EXAMPLES, BATCH):
            rows = order[:, start : start + BATCH]
            x = data.x[rows]
            z = x @ w + b[:, None]
            z -= z.max(-1, keepdims=True)
            np.exp(z, out=z)
            z /= z.sum(-1, keepdims=True)
            z -= one_hot[rows]
            z *= RATE / BATCH
            w -= x.transpose(0, 2, 1) @ z
            b -= z.sum(1)
        w0, b0 = w.mean(0), b.mean(0)


def whole_engine(data: Data, updates: int, concurrency: int, law: AnyLaw, problem: Any = None) -> Outcome:
    population = Population(participants=len(data.rows), compute=Compute(task_s=law))
    run = StudyRun(concurrency=concurrency, stop=StopSettings(max_updates=updates))
    return simulate(FedBuff(buffer_size=10), problem or data, population, run, TRAINING)


class NoSums:
    """Trainings that take no time. Their deltas are 0."""

    def __init__(self, federation: SoftmaxFederation) -> None:
        self.layout = federation.initial.layout

    def start(self, parameters: Parameters) -> Parameters:
        return parameters

    def add(self, jobs: Sequence[SumJob], sums: Any) -> bool:  # noqa: ARG002 - the signature of Sums
        return True


def without_training(data: Data, updates: int, by_the_core: bool) -> Outcome:
    class NoTraining:
        def deal(self, members: Sequence[Any], seed: int) -> SoftmaxFederation:
            federation = data.deal(members, seed)
            same = Trained(federation.initial, EXAMPLES, EXAMPLES // BATCH, {"loss": 1.0})
            backend: Any = federation.backend
            backend.train_deltas = lambda jobs: [same] * len(jobs)
            backend.summed = None if by_the_core else lambda _: NoSums(federation)
            return federation

    return whole_engine(data, updates, 100, Constant(value=1), NoTraining())


def against_hand(quick: bool) -> list[Row]:
    cohorts, data = (5, Data(200)) if quick else (60, Data(1000))
    updates = cohorts * 100
    rows = []
    laws: tuple[AnyLaw, ...] = (Constant(value=1), HalfNormal(mean=1))
    hand_s, bare_s, core_s, *engine_s = best_of(
        2 if quick else 7,
        lambda: by_hand(data, cohorts),
        lambda: without_training(data, updates, by_the_core=False),
        lambda: without_training(data, updates, by_the_core=True),
        *(lambda law=law: whole_engine(data, updates, 100, law) for law in laws),
        clock=time.process_time,
    )
    by_loop = f"{updates / hand_s:,.0f}/s"
    for law, taken_s, target in zip(laws, engine_s, (1.0, 0.9), strict=True):
        rows.append(
            Row(f"softmax, {law.name} durations", f"{updates / taken_s:,.0f}/s", by_loop, hand_s / taken_s, target)
        )
    print(
        f"An update costs the loop {hand_s / updates * 1e6:.0f} µs and the study {engine_s[0] / updates * 1e6:.0f} µs: "
        f"{bare_s / updates * 1e6:.0f} µs without training. A study that needs the core takes "
        f"{core_s / updates * 1e6:.0f} µs without training"
    )
    return rows


def flat(quick: bool) -> list[Row]:
    """Measure the cost of an update without the start: a run of four times as many updates, less a run of as many."""
    updates = 400 if quick else 2000
    costs = {}
    for participants in (100, 1000) if quick else (100, 1000, 10_000):
        data, concurrency = Data(participants), participants // 10
        short_s, long_s = best_of(
            1 if quick else 3,
            lambda d=data, c=concurrency: whole_engine(d, updates, c, HalfNormal(mean=1)),
            lambda d=data, c=concurrency: whole_engine(d, 4 * updates, c, HalfNormal(mean=1)),
            clock=time.process_time,
        )
        costs[participants] = (long_s - short_s) / (3 * updates)
    least = costs[100]
    return [
        Row(
            f"{n:,} participants", f"{c * 1e6:,.0f} µs/update", f"{least * 1e6:,.0f} µs", c / least, 1.5, at_least=False
        )
        for n, c in costs.items()
        if n > 100
    ]


def mlp(quick: bool) -> list[Row]:
    from fedmq.studies.problems.keras.cohort import KerasCohort

    data = Data(64)

    def build_model() -> Any:
        import keras

        layers = [keras.Input((FEATURES,)), keras.layers.Dense(128, activation="relu"), keras.layers.Dense(CLASSES)]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.SGD(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    together = KerasCohort(build_model, data.x, data.y, data.rows, path="cohort")
    alone = KerasCohort(build_model, data.x, data.y, data.rows, path="plain")
    fitted = build_model()
    initial = fitted.get_weights()

    def fit(participants: int) -> None:
        for rows in data.rows[:participants]:
            fitted.set_weights(initial)
            fitted.fit(data.x[rows], data.y[rows], batch_size=BATCH, verbose=0)

    fit(1)
    jobs = [Job(i, together.initial, TRAINING.model_copy(update={"seed": i})) for i in range(64)]
    together.train(jobs)
    alone.train(jobs[:2])
    cohort_s, plain_s, fit_s = best_of(
        2 if quick else 7,
        lambda: together.train(jobs),
        lambda: alone.train(jobs[:16]),
        lambda: fit(4),
        clock=time.process_time,
    )
    cohort_s, plain_s, fit_s = cohort_s / 64, plain_s / 16, fit_s / 4
    fast = f"{1 / cohort_s:,.0f}/s"
    return [
        Row("MLP 784-128-10, against compiled steps", fast, f"{1 / plain_s:,.0f}/s", plain_s / cohort_s, 8.0),
        Row("MLP 784-128-10, against fit", fast, f"{1 / fit_s:,.1f}/s", fit_s / cohort_s, 30.0),
    ]


def large() -> None:
    start = time.perf_counter()
    outcome = whole_engine(Data(10_000), 100_000, 1000, HalfNormal(mean=1))
    took_s = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"10,000 participants, concurrency 1,000, {len(outcome.updates.time_s):,} updates: {took_s:,.0f} s, "
        f"{len(outcome.updates.time_s) / took_s:,.0f}/s, peak memory {peak / 2**30:.2f} GiB (target: under 3 GB)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="prove that it runs")
    parser.add_argument("--large", action="store_true", help="the 100,000 updates as well")
    options = parser.parse_args()
    print_table("Participants/s of the whole engine against a hand-written batched loop", against_hand(options.quick))
    print_table("Cost of an update against 100 participants'", flat(options.quick))
    print_table("Keras: vectorised against the plain compiled step", mlp(options.quick))
    if options.large:
        large()


if __name__ == "__main__":
    main()
