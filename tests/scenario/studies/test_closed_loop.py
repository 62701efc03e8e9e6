"""Plain closed loops run without the core (studies.engine.closed_loop). The core is the oracle here."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.coordinator.settings import Patience, StopSettings, TargetMetric
from fedmq.coordinator.strategies import FedAsync, FedBuff, FedStaleWeight
from fedmq.coordinator.strategies.math.server_optimizers import Adam
from fedmq.coordinator.strategies.math.staleness_weights import Constant as NoStaleness
from fedmq.coordinator.strategies.math.staleness_weights import DelayAdaptive, Hinge, Polynomial
from fedmq.coordinator.strategies.weighted_mean import WeightedMean
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies import simulate as simulating
from fedmq.studies.engine.closed_loop import changed
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.laws import (
    Choice,
    Constant,
    Exponential,
    HalfNormal,
    LogNormal,
    Mixture,
    Part,
    Shifted,
    Uniform,
    Zipf,
)
from fedmq.studies.population.population import Availability, Compute, Dropout, Network, Population
from fedmq.studies.problems.softmax import SoftmaxFederation
from tests.scenario.studies.federations import Given, Watched, softmax, until
from tests.support.full import FULL

STEP = TrainingConfig(learning_rate=0.3, batch_size=4)
PEOPLE = Population(participants=12, compute=Compute(task_s=Exponential(mean=1)))
RUN = until(60, concurrency=5)


def outcome_of(strategy, population, run, training, *, core=False, federation=None, seed=0):
    """Return (outcome, all that was told on the way, True if the core had to do it)."""
    told, engines = [], []

    class Counted(simulating.Engine):
        def run(self):
            engines.append(self)
            return super().run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulating, "Engine", Counted)
        if core:
            patch.setattr(simulating, "closed_loop_of", lambda *_, **__: None)
        outcome = simulating.simulate(
            strategy, Given(federation or softmax(population.participants)), population, run, training,
            seed=seed, on_evaluation=told.append, on_version=lambda *version: told.append(version),
        )  # fmt: skip
    return outcome, told, bool(engines)


def facts(outcome):
    """Return all that an outcome holds, bit for bit."""
    found = {f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome)}
    found["parameters"] = {n: (a.dtype, a.shape, a.tobytes()) for n, a in outcome.parameters.items()}
    found["updates"] = {n: (c.dtype, c.tobytes()) for n, c in outcome.updates.columns().items()}
    return found


def like_the_core(strategy, population=PEOPLE, run=RUN, training=STEP, *, by_the_core=False, **more):
    """Run with the closed loop and with the core, and return the outcome, which must be one."""
    mine, told, with_core = outcome_of(strategy, population, run, training, **more)
    assert with_core is by_the_core
    theirs, told_by_the_core, with_core = outcome_of(strategy, population, run, training, core=True, **more)
    assert with_core
    assert facts(mine) == facts(theirs)
    assert mine.digest() == theirs.digest()
    assert told == told_by_the_core
    return mine


LAWS = st.sampled_from(
    [Constant(value=1), Exponential(mean=1), HalfNormal(mean=1), LogNormal(median=1, sigma=1), Uniform(low=0, high=2),
     Zipf(exponent=1.5, largest=4), Choice(values=(1, 2)), Shifted(by=1, law=Exponential(mean=1)),
     Mixture(parts=(Part(share=0.5, law=Constant(value=1)), Part(share=0.5, law=Uniform(low=0, high=2))))]
)  # fmt: skip
SLOWNESS = st.sampled_from([Constant(value=1), Constant(value=1), LogNormal(median=1, sigma=1)])
"""Constants often, so that many events come at one time."""
EXAMPLE_S = st.sampled_from([Constant(value=0), Constant(value=0), Uniform(low=0, high=0.2)])
STALENESS = st.sampled_from([NoStaleness(), Polynomial(0.5), Hinge(a=0.5, b=1), DelayAdaptive(concurrency=3)])
STRATEGIES = st.builds(
    FedBuff,
    buffer_size=st.integers(1, 7),
    staleness=STALENESS,
    normalize=st.sampled_from(["count", "weights"]),
    server_optimizer=st.sampled_from([None, None, Adam()]),
) | st.builds(FedAsync, alpha=st.sampled_from([0.6, 1.0]), staleness=STALENESS)
EVALUATION = st.sampled_from([0.0, 0.7, 2.0, 3.0, 1e12])
TARGETS = st.sampled_from([None, TargetMetric(name="accuracy", value=0.45), TargetMetric(name="accuracy", value=0.1)])
PATIENCE = st.sampled_from(
    [None, Patience(name="loss", evaluations=2, mode="min"), Patience(name="accuracy", evaluations=4)]
)


@settings(max_examples=400 if FULL else 80)
@given(st.data())
def test_the_outcome_is_the_cores_bit_for_bit(data):
    participants = data.draw(st.integers(1, 14))
    strategy = data.draw(STRATEGIES)
    compute = Compute(task_s=data.draw(LAWS), example_s=data.draw(EXAMPLE_S), slowness=data.draw(SLOWNESS))
    network = Network(down_bytes_per_s=data.draw(st.sampled_from([None, Constant(value=100)])))
    people = Population(participants=participants, compute=compute, network=network)
    stop = StopSettings(
        max_updates=data.draw(st.integers(1, 90)),
        max_versions=data.draw(st.none() | st.integers(1, 20)),
        max_time_s=data.draw(st.none() | st.sampled_from([1.0, 3.0, 4.5])),
        target=data.draw(TARGETS),
        patience=data.draw(PATIENCE),
    )
    run = StudyRun(
        stop=stop,
        concurrency=data.draw(st.integers(1, 16)),
        selection=data.draw(st.sampled_from(["uniform", "least_used"])),
        client_weights=data.draw(st.sampled_from(["equal", "examples", "sqrt", "log"])),
        evaluate_interval_s=data.draw(EVALUATION),
        evaluate_every_updates=data.draw(st.none() | st.integers(1, 20)),
    )
    training = TrainingConfig(
        learning_rate=0.3,
        batch_size=data.draw(st.integers(1, 9)),
        epochs=data.draw(st.integers(1, 3)),
        max_steps=data.draw(st.none() | st.integers(1, 4)),
        proximal_mu=data.draw(st.sampled_from([0.0, 0.1])),
    )
    like_the_core(strategy, people, run, training, seed=data.draw(st.integers(0, 2**40)))


@pytest.mark.parametrize("interval_s", [0.0, 1.0, 2.0, 1e12])
@pytest.mark.parametrize("concurrency", [1, 5])
def test_events_at_one_time_come_in_the_order_of_the_engine(concurrency, interval_s):
    people = Population(participants=12, compute=Compute(task_s=Constant(value=1)))
    run = until(max_time_s=3.0, concurrency=concurrency, evaluate_interval_s=interval_s)
    outcome = like_the_core(FedBuff(buffer_size=2), people, run)
    assert (outcome.finished, outcome.time_s) == ("max_time_s", 3.0)
    assert len(outcome.updates.time_s) == 2 * concurrency  # the end was planned before the tasks that end then


@pytest.mark.parametrize("strategy", [FedBuff(buffer_size=7), FedAsync()])
def test_a_larger_one_is_the_cores_too(strategy):
    rng = np.random.default_rng(0)
    x, y = rng.random((300, 784), dtype=np.float32), rng.integers(0, 10, 300)
    federation = SoftmaxFederation(x, y, [rng.integers(0, 300, 50) for _ in range(30)], 10)
    people = Population(participants=30, compute=Compute(task_s=HalfNormal(mean=1)))
    for epochs in (1, 4):  # by steps on the weights, and in the dual form
        training = TrainingConfig(learning_rate=0.1, batch_size=10, epochs=epochs)
        run = until(200, concurrency=12)
        outcome = like_the_core(strategy, people, run, training, federation=federation)
        assert len(outcome.version_s) == 200 // getattr(strategy, "buffer_size", 1)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize(
    ("strategy", "interval_s"), [(FedBuff(buffer_size=3), 0.0), (FedBuff(buffer_size=3), 2.5), (FedAsync(), 0.0)]
)
def test_an_update_that_is_not_finite_ends_the_run_at_its_time_and_nothing_is_told_twice(strategy, interval_s, seed):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((40, 5)).astype(np.float32), rng.integers(0, 3, 40)
    broken = np.vstack([x, np.full((1, 5), np.nan, np.float32)])
    rows = [rng.integers(0, 40, 6) for _ in range(11)] + [np.array([40])]
    federation = SoftmaxFederation(broken, np.append(y, 0), rows, 3, test=(x, y))
    run = until(200, concurrency=5, evaluate_interval_s=interval_s)
    outcome = like_the_core(strategy, run=run, federation=federation, seed=seed, by_the_core=True)
    assert outcome.finished == "diverged"


@pytest.mark.parametrize(("rate", "versions"), [(1e38, 200), (1e39, 0)], ids=["a metric", "a version"])
def test_what_else_is_not_finite_ends_the_run_too(rate, versions):
    strategy = FedBuff(buffer_size=2, server_learning_rate=rate, staleness=NoStaleness())
    with np.errstate(over="ignore", invalid="ignore"):
        outcome = like_the_core(strategy, run=until(400, concurrency=5), by_the_core=True)
    assert (outcome.finished, len(outcome.version_s)) == ("diverged", versions)


def test_an_error_of_a_callback_is_the_callers_own():
    def told(_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        simulating.simulate(FedBuff(), Given(softmax(12)), PEOPLE, RUN, STEP, on_evaluation=told)


class Mine(FedBuff):
    """A strategy of somebody's own."""


@dataclasses.dataclass(frozen=True)
class Own(WeightedMean):
    def weight(self, update, staleness):
        return 1.0 / (1 + staleness)


def watched():
    federation = softmax(12)
    federation.backend = Watched(federation.backend)
    return federation


LEFT = {
    "another strategy": {"strategy": FedStaleWeight()},
    "a strategy of one's own": {"strategy": Own()},
    "a subclass": {"strategy": Mine()},
    "a buffer's timeout": {"strategy": FedBuff(buffer_size=3, buffer_timeout_s=0.5)},
    "dropouts": {"population": PEOPLE.model_copy(update={"dropout": Dropout(probability=0.2)})},
    "availability": {
        "population": PEOPLE.model_copy(
            update={"availability": Availability(on_s=Exponential(mean=3), off_s=Exponential(mean=1))}
        )
    },
    "an open loop": {"run": until(60, arrivals_per_s=4.0)},
    "leases": {"run": until(60, concurrency=5, lease_s=2.0)},
    "a limit of staleness": {"run": until(60, concurrency=5, max_staleness=2)},
    "weights by loss": {"run": until(60, concurrency=5, client_weights="quality")},
    "steps by speed": {"run": until(60, concurrency=5, steps={"target_s": 2})},
    "settings for a trainer": {"training": STEP.model_copy(update={"extra": {"a": 1}})},
    "another backend": {"federation": watched()},
    "a codec of updates": {"run": until(60, concurrency=5, uplink={"codec": "int8"})},
    "a form of the model in tasks": {"run": until(60, concurrency=5, downlink={"codec": "bf16"})},
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_known_is_left_to_the_core(name):
    chosen = {"strategy": FedBuff(buffer_size=3), "population": PEOPLE, "run": RUN, "training": STEP} | LEFT[name]
    assert outcome_of(**chosen)[2]
    plain = {"strategy": FedBuff(buffer_size=3), "population": PEOPLE, "run": RUN, "training": STEP}
    assert not outcome_of(**plain)[2]


def test_a_setting_is_seen_as_changed_whatever_its_kind():
    assert changed(FedBuff()) == set()
    assert changed(FedBuff(buffer_size=3, staleness=NoStaleness())) == {"buffer_size", "staleness"}
    assert changed(Compute()) == set()
    assert changed(PEOPLE) == {"participants", "compute"}
    assert changed(RUN) == {"stop", "concurrency", "evaluate_interval_s"}
