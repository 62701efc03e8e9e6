"""fedmq.simulate: the way into the engine for a script."""

import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from io import StringIO
from pathlib import Path

import pytest

import fedmq
from fedmq.coordinator.settings import StopSettings, TargetMetric
from fedmq.coordinator.strategies import FedBuff
from fedmq.schemas.errors import StrategyError
from fedmq.studies.engine import pace
from tests.scenario.studies.federations import STEP, Given, fedbuff, population, softmax, until

PAGE = (Path(__file__).parents[3] / "docs" / "studies.md").read_text(encoding="utf-8")


SAMPLES = re.findall(r"```python\n([^`]*simulate[^`]*)```\n\n```\n([^`]*)```", PAGE)


def test_the_page_has_a_sample_of_a_run_and_one_of_a_problem_of_ones_own():
    assert ["def deal(" in sample for sample, _ in SAMPLES] == [False, True]


@pytest.mark.parametrize(("sample", "printed"), SAMPLES)
def test_the_pages_samples_run_in_a_script_and_print_what_the_page_says(sample, printed):
    out = StringIO()
    with redirect_stdout(out):
        exec(compile(sample, "docs/studies.md", "exec"), {"__name__": "__main__"})
    assert out.getvalue() == printed


@pytest.mark.parametrize("kind", [fedmq.Outcome, fedmq.ParticipantResult, fedmq.CellResult], ids=lambda k: k.__name__)
def test_what_a_run_or_a_cell_returns_is_on_the_page(kind):
    own = {f.name for f in fields(kind)} | {name for name, v in vars(kind).items() if isinstance(v, property)}
    told_by_participants = {"participant_ids", "num_examples", "mean_task_s", "intended_weights"}
    inner = {"evaluations", "by_timeout", "cohorts", "trained", "backend", "diverged_s"}
    left_out = told_by_participants | inner if kind is fedmq.Outcome else set()
    assert own - left_out - set(re.findall(r"`(\w+)[`(]", PAGE)) == set()


def test_a_run_returns_its_history_and_each_participants_counts_and_weights():
    people = population(2, examples={"name": "choice", "values": [3]})
    problem = fedmq.Quadratics(start=2)
    run = fedmq.StudyRun(concurrency=2, stop={"max_updates": 6})
    outcome = fedmq.simulate(fedbuff(2), problem, people, run, STEP)
    assert [(row["version"], row["updates"]) for row in outcome.history] == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert outcome.history[-1]["distance"] == outcome.evaluations[-1].metrics["distance"]
    rows = outcome.participants
    assert [(p.participant, p.participant_id, p.num_examples) for p in rows] == [(0, "p000000", 3), (1, "p000001", 3)]
    assert [p.accepted for p in rows] == [outcome.updates.participant.tolist().count(i) for i in (0, 1)]
    assert sum(p.weight for p in rows) == pytest.approx(sum(outcome.updates.weight))
    assert [p.intended_weight for p in rows] == [1.0, 1.0]


@pytest.mark.parametrize("size", [1, 7])
def test_runs_of_all_strategies_can_be_evaluated_at_the_same_numbers_of_updates(size):
    run = fedmq.StudyRun(concurrency=3, stop={"max_updates": 42}, evaluate_every_updates=10)
    outcome = fedmq.simulate(fedbuff(size), fedmq.Quadratics(), population(5), run, STEP)
    assert [row["updates"] for row in outcome.history] == [0, 10, 20, 30, 40, 42]
    assert [row["version"] for row in outcome.history] == [n // size for n in (0, 10, 20, 30, 40, 42)]


def test_a_run_that_is_stuck_names_its_participants_too():
    run = fedmq.StudyRun(concurrency=1, stop={"max_updates": 50})
    lost = {"probability": 0.9, "how": "vanishes", "away_s": {"name": "constant", "value": 1e15}}
    with pytest.raises(fedmq.Stuck) as caught:
        fedmq.simulate(fedbuff(1), fedmq.Quadratics(), population(2, dropout=lost), run, STEP)
    assert [p.participant_id for p in caught.value.outcome.participants] == ["p000000", "p000001"]


def test_a_run_without_a_limit_or_goal_is_refused_before_anything_is_dealt():
    class Never:
        def deal(self, members, seed):
            raise AssertionError

    with pytest.raises(fedmq.ConfigError, match="would never end: give its stop a max_updates"):
        fedmq.simulate(fedbuff(2), Never(), population(2), fedmq.StudyRun(stop=StopSettings()), STEP)


def test_a_goal_that_nobody_measures_is_refused():
    federation = softmax(3)
    federation.evaluates = False
    goal = fedmq.StudyRun(stop=StopSettings(target=TargetMetric(name="accuracy", value=0.9)))
    with pytest.raises(fedmq.ConfigError, match="need a central evaluation"):
        fedmq.simulate(fedbuff(2), Given(federation), population(3), goal, STEP)


def test_a_goal_of_a_metric_that_is_never_measured_is_refused_because_the_run_would_never_end():
    goal = fedmq.StudyRun(stop=StopSettings(target=TargetMetric(name="acuracy", value=0.9)))
    with pytest.raises(fedmq.ConfigError, match="'acuracy' is never measured, there are: loss, accuracy"):
        fedmq.simulate(fedbuff(2), Given(softmax(3)), population(3), goal, STEP)


def test_a_strategy_for_another_number_of_participants_is_refused():
    with pytest.raises(fedmq.ConfigError, match="num_participants = 4, and the population 'population' has 3"):
        fedmq.simulate(fedmq.Area(num_participants=4), fedmq.Quadratics(), population(3), until(4), STEP)


def test_what_a_strategys_method_lacks_is_refused():
    strategy = fedmq.Scaffold(cohort_size=2, num_participants=3)
    with pytest.raises(fedmq.ConfigError, match=r"training.learning_rate: missing"):
        fedmq.simulate(strategy, fedmq.Quadratics(), population(3), until(4))


def test_a_run_of_numpys_problems_needs_no_extra_and_another_one_says_which():
    script = """
import sys
for package in ("numba", "pyarrow", "matplotlib", "keras", "tensorflow", "torch"):
    sys.modules[package] = None
import fedmq

def run(problem):
    people = fedmq.Population(participants=3, compute={"task_s": {"name": "exponential", "mean": 1}})
    settings = fedmq.StudyRun(concurrency=2, stop={"max_updates": 4})
    training = fedmq.TrainingConfig(learning_rate=1)
    return fedmq.simulate(fedmq.FedBuff(buffer_size=2), problem, people, settings, training)

print(run(fedmq.Quadratics()).finished)
try:
    run(fedmq.Synthetic())
except fedmq.InputError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "max_updates",
        "The package numba is not installed. It is needed for softmax regression in a study. "
        "Install it with: pip install 'fedmq[studies]'",
    ]


@dataclass(frozen=True)
class NeedsPerplexity(fedmq.WeightedMean):
    def weight(self, update, staleness):
        return 1.0 / update.metrics["perplexity"]


def test_a_strategy_that_raises_stops_the_study_with_its_line():
    with pytest.raises(
        StrategyError, match=r"weight\(\) raised KeyError: 'perplexity'.*test_simulate.py:\d+: return 1"
    ):
        fedmq.simulate(NeedsPerplexity(buffer_size=2), Given(softmax(3)), population(3), until(4), STEP)


def test_a_version_that_is_not_finite_ends_the_run_as_diverged():
    steep = FedBuff(buffer_size=1, server_learning_rate=1e300)
    outcome = fedmq.simulate(steep, Given(softmax(3)), population(3), until(40), STEP)
    assert outcome.finished == "diverged"


def test_a_run_with_a_hidden_state_counts_its_steps_and_ends_near_the_plain_one():
    problem, people = fedmq.Quadratics(dimension=256, start=2), population(4)
    outcomes = []
    for downlink in (None, fedmq.DownlinkSettings(), fedmq.DownlinkSettings(codec="hidden")):
        run = fedmq.StudyRun(concurrency=4, stop={"max_versions": 20}, downlink=downlink)
        outcomes.append(fedmq.simulate(fedbuff(4), problem, people, run, STEP))
    plain, none, hidden = outcomes
    assert none.digest() == plain.digest()
    step, header = 256 + 4, 700
    assert hidden.bytes_down < 4 * (256 * 8 + 19 * step) + hidden.tasks_issued * header, "each gets each step once"
    assert hidden.bytes_down < 0.45 * plain.bytes_down
    for name, array in plain.parameters.items():
        assert abs(hidden.parameters[name] - array).max() < 0.02 * abs(array).max()


def test_more_arrivals_than_tasks_can_take_are_refused_with_a_number_that_works():
    people = population(3, task_s={"name": "constant", "value": 3})
    arrive = {"stop": {"max_updates": 5}}
    with pytest.raises(fedmq.ConfigError, match=r"arrivals_per_s: got 1e\+308, expected 1e\+03 or less") as refused:
        fedmq.simulate(fedbuff(2), fedmq.Quadratics(), people, fedmq.StudyRun(arrivals_per_s=1e308, **arrive), STEP)
    assert "can end 1 tasks a second" in str(refused.value)
    most = fedmq.StudyRun(arrivals_per_s=1000, **arrive)
    assert fedmq.simulate(fedbuff(2), fedmq.Quadratics(), people, most, STEP).finished == "max_updates"
    with pytest.raises(fedmq.ConfigError, match="arrivals_per_s"):
        fedmq.simulate(fedbuff(2), fedmq.Quadratics(), people, fedmq.StudyRun(arrivals_per_s=1001, **arrive), STEP)


def test_turns_that_are_far_shorter_than_a_task_are_refused_with_a_number_that_works():
    tiny, short = ({"name": "constant", "value": value} for value in (1e-300, 0.0015))
    run = fedmq.StudyRun(stop={"max_updates": 2})
    for law, ends in ((tiny, False), (short, True)):
        people = population(2, task_s={"name": "constant", "value": 3}, availability={"on_s": law, "off_s": law})
        if ends:
            assert fedmq.simulate(fedbuff(2), fedmq.Quadratics(), people, run, STEP).finished == "max_updates"
            continue
        with pytest.raises(fedmq.ConfigError, match=r"expected 0.003 s or more together"):
            fedmq.simulate(fedbuff(2), fedmq.Quadratics(), people, run, STEP)


@pytest.mark.parametrize(
    ("value", "below", "above"), [(1234.5, "1.23e+03", "1.24e+03"), (0.5, "0.5", "0.5"), (1999.6, "1.99e+03", "2e+03")]
)
def test_limits_in_messages_are_rounded_to_the_side_that_works(value, below, above):
    assert (pace._below(value), pace._above(value)) == (below, above)


def test_a_dropout_that_leaves_hardly_an_update_is_refused():
    assert population(2, dropout={"probability": 0.999}).dropout.probability == 0.999
    with pytest.raises(ValueError, match=r"0\.999"):
        population(2, dropout={"probability": 0.999999})
