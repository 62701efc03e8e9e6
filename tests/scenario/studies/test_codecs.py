"""Codecs in whole studies: what they cost in accuracy at equal versions, and in bytes."""

import pytest

from fedmq.coordinator.settings import StopSettings, UplinkSettings
from fedmq.coordinator.strategies import FedBuff
from fedmq.data import SAMPLE
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.deals import Dirichlet
from fedmq.studies.population.laws import Constant, Uniform
from fedmq.studies.problems.classification import Softmax
from fedmq.studies.simulate import simulate
from tests.scenario.studies.federations import STEP, Given, Watched, fedbuff, population, softmax, until
from tests.support.features import FEATURES

VERSIONS = 80
pytestmark = pytest.mark.timeout(400)  # 3,200 trainings, on a busy machine


@pytest.fixture(scope="module")
def ran():
    """Accuracy, the mean over the last 6 evaluations, and bytes up, by codec: 50 devices with few labels each."""
    people = population(50, Uniform(low=0.5, high=2.0), examples=Constant(value=80))
    problem = Softmax(data=str(SAMPLE), deal_by=Dirichlet(alpha=0.3))
    found = {}
    for name, uplink in {
        "plain": None,
        "int4": UplinkSettings(codec="int4"),
        "topk": UplinkSettings(codec="topk"),
        "topk, no feedback": UplinkSettings(codec="topk", error_feedback=False),
    }.items():
        run = StudyRun(
            concurrency=20, evaluate_every_updates=10, stop=StopSettings(max_versions=VERSIONS), uplink=uplink
        )
        training = TrainingConfig(batch_size=10, learning_rate=0.1)
        outcome = simulate(FedBuff(buffer_size=10), problem, people, run, training, seed=0)
        last = [e.metrics["accuracy"] for e in outcome.evaluations][-6:]
        found[name] = sum(last) / len(last), outcome.bytes_up
    return found


def test_quantised_updates_learn_as_plain_ones_do(ran):
    assert ran["int4"][0] == pytest.approx(ran["plain"][0], abs=0.003)


def test_top_1_percent_loses_three_times_as_much_without_feedback(ran):
    lost = {name: ran["plain"][0] - ran[name][0] for name in ran}
    assert lost["topk"] < 0.03
    assert lost["topk, no feedback"] > 3 * max(lost["topk"], 0.01)


def test_the_ratio_of_bytes_has_the_headers_of_both_in_it(ran):
    plain = 4 * 7850 + 384
    assert ran["plain"][1] == 10 * VERSIONS * plain
    assert ran["plain"][1] / ran["int4"][1] == pytest.approx(6.61, abs=0.01)
    assert 36 < ran["plain"][1] / ran["topk"][1] < 38.5
    assert ran["topk"][1] - ran["topk, no feedback"][1] > 10 * VERSIONS * 32, "the marks of error feedback"


CODECS = [name for name in FEATURES if name.startswith(("uplink", "downlink"))]


@pytest.mark.parametrize("name", CODECS)
def test_no_bit_of_a_codecs_study_depends_on_the_cohorts_that_are_trained_together(name, tmp_path):
    feature, people = FEATURES[name], population(12, Uniform(low=0.5, high=2.0))
    run = until(
        30, concurrency=5, evaluate_interval_s=0, uplink=feature.uplink_settings(tmp_path),
        downlink=feature.downlink_settings,
    )  # fmt: skip

    def outcome(chunk, feature_run=run):
        federation = softmax(12)
        federation.backend = Watched(federation.backend, chunk)
        found = simulate(fedbuff(3), Given(federation), people, feature_run, STEP)
        return federation.backend.cohorts, found

    together, whole = outcome(10**9)
    _, alone = outcome(1)
    _, plain = outcome(1, until(30, concurrency=5, evaluate_interval_s=0))
    assert max(together) > 1
    assert whole.digest() == alone.digest() != plain.digest()
