"""Mistakes in what a script hands to `fedmq.simulate`, and in a problem of its own."""

import numpy as np
import pytest

import fedmq

LAW = {"name": "constant", "value": 1}


class Mean:
    """A problem that is right, and what it deals out."""

    name, evaluates, num_examples = "mean", True, (1, 1, 1)
    initial = fedmq.Parameters({"w": np.zeros(2)})

    def deal(self, members, seed):
        return self

    @property
    def backend(self):
        return self

    def trained(self, w):
        return fedmq.Trained(fedmq.Parameters({"w": w + 1}), num_examples=1, num_steps=1, metrics={})

    def train(self, jobs):
        return [self.trained(j.base["w"]) for j in jobs]

    def evaluate(self, parameters):
        return {"mean": float(parameters["w"].mean())}


def simulated(**changes):
    right = {"strategy": fedmq.FedBuff(buffer_size=1), "problem": Mean(), "seed": 0,
             "population": fedmq.Population(participants=3, compute={"task_s": LAW}),
             "run": fedmq.StudyRun(concurrency=1, stop={"max_updates": 2})}  # fmt: skip
    return fedmq.simulate(**right | changes)


def test_a_problem_that_is_right_is_taken():
    assert simulated().history[-1]["mean"] == 2.0
    assert simulated(seed=np.int64(3)).finished == "max_updates"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"strategy": "fedbuff"}, "got a str as its strategy, expected a strategy, as in fedmq.FedBuff"),
        ({"strategy": fedmq.FedBuff}, "got the class FedBuff as its strategy"),
        ({"problem": Mean}, "got the class Mean as its problem"),
        ({"population": Mean()}, "got a Mean as its population, expected a fedmq.Population"),
        ({"run": {"stop": {}}}, "got a dict as its run, expected a fedmq.StudyRun"),
        ({"training": {}}, "got a dict as its training, expected a fedmq.TrainingConfig"),
        ({"seed": "1"}, "got a str as its seed, expected an integer"),
    ],
)
def test_an_argument_of_another_kind_is_refused_with_its_place(changes, text):
    with pytest.raises(fedmq.ConfigError, match=text):
        simulated(**changes)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("deal", lambda self, members, seed: None, "gave None without initial, num_examples, backend, evaluates"),
        ("initial", {"w": np.zeros(2)}, "`initial` is a dict, expected fedmq.Parameters"),
        ("num_examples", (1,), "`num_examples` has 1 values, expected one for each of the 3 participants"),
        ("train", lambda self, jobs: [], r"gave a list of 0 for 1 jobs"),
        ("trained", lambda self, w: ({"w": w}, 1, {}), "gave a tuple of 3, expected fedmq.Trained"),
        ("trained", lambda self, w: fedmq.Trained({"w": w}, 1, 1, {}), "gave a dict as parameters, expected"),
        ("trained", lambda self, w: Mean.trained(self, w[:1]), r"gave tensors {'w': \(1,\)}.*base: {'w': \(2,\)}"),
        ("evaluate", lambda self, parameters: 0.5, "gave a float, expected a dict of metrics"),
    ],
)
def test_a_mistake_in_a_problem_of_ones_own_is_told_in_its_words(name, value, text):
    with pytest.raises(fedmq.ConfigError, match=text):
        simulated(problem=type("Wrong", (Mean,), {name: value})())
