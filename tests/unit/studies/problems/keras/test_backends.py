"""The cohorts of softmax regressions and quadratics against plain loops."""

import numba
import numpy as np
import pytest

from fedmq.participant.training.shuffling import orders
from fedmq.schemas.errors import InputError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.studies.problems.batches import cohort_rows
from fedmq.studies.problems.lazy_training import Job
from fedmq.studies.problems.quadratics import QuadraticFederation, Quadratics
from fedmq.studies.problems.softmax import SoftmaxFederation
from fedmq.studies.problems.softmax_kernel import _compiled, _dual_costs_less
from tests.scenario.studies.federations import population

RNG = np.random.default_rng(4)
X, Y = RNG.standard_normal((60, 5)).astype(np.float32), RNG.integers(0, 3, 60)
NOTHING = {"w": np.zeros(1), "b": np.zeros(1)}
ROWS = [RNG.integers(0, 60, n) for n in (1, 4, 7, 12, 9)]


def batches_of(rows, config):
    """Return a task's batches, one after another, cut by hand."""
    size = config.batch_size
    epochs = [rows[orders([config.seed], [len(rows)], epoch)[0]] for epoch in range(config.epochs)]
    cut = [order[i : i + size] for order in epochs for i in range(0, len(rows), size)]
    return cut[: config.max_steps]


def by_hand(rows, base, config, correction=NOTHING, x=X):
    """Train one participant's softmax regression in float64, batch by batch. The last epoch's mean loss comes too."""
    w, b = base["w"].T.astype(float), base["b"].astype(float)
    losses = []
    for batch in batches_of(rows, config):
        mine = x[batch].astype(float)
        scores = np.exp(mine @ w + b)
        p = scores / scores.sum(axis=1, keepdims=True)
        losses.append(-np.log(p[np.arange(len(batch)), Y[batch]]))
        error = (p - np.eye(len(b))[Y[batch]]) / len(batch)
        pull = config.proximal_mu
        w, b = (
            w - config.learning_rate * (mine.T @ error + correction["w"].T + pull * (w - base["w"].T)),
            b - config.learning_rate * (error.sum(axis=0) + correction["b"] + pull * (b - base["b"])),
        )
    an_epoch = -(-len(rows) // config.batch_size)
    return w, b, np.concatenate(losses[(len(losses) - 1) // an_epoch * an_epoch :]).mean(), len(losses)


@pytest.mark.parametrize("classes", [3, 4])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {"epochs": 1},
        {"epochs": 4, "batch_size": 5},
        {"epochs": 3, "proximal_mu": 0.7},
        {"epochs": 2, "max_steps": 3},
        {"epochs": 2, "batch_size": 11},
        {"epochs": 2, "batch_size": 100},
    ],
)
def test_a_cohort_of_softmax_regressions_trains_as_each_would_by_itself(config, corrected, classes):
    federation = SoftmaxFederation(X, Y, ROWS, classes)
    bases, corrections = (
        [
            Parameters({n: RNG.standard_normal(a.shape).astype(np.float32) for n, a in federation.initial.items()})
            for _ in ROWS
        ]
        for _ in range(2)
    )
    config = {"learning_rate": 0.3, "batch_size": 4} | config
    jobs = [
        Job(i, base, TrainingConfig(seed=i, **config), corrections[i] if corrected else None)
        for i, base in enumerate(bases)
    ]
    for job, trained in zip(jobs, federation.backend.train(jobs), strict=True):
        w, b, loss, steps = by_hand(ROWS[job.participant], job.base, job.config, job.correction or NOTHING)
        np.testing.assert_allclose(trained.parameters["w"].T, w, atol=3e-6)
        np.testing.assert_allclose(trained.parameters["b"], b, atol=3e-6)
        assert trained.metrics["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
        assert (trained.num_steps, trained.num_examples) == (steps, len(ROWS[job.participant]))


@pytest.mark.parametrize("epochs", [1, 3])
def test_what_a_softmax_regression_learns_does_not_depend_on_its_cohort_by_a_single_bit(epochs):
    rows = [np.arange(i, i + 12) for i in range(40)]
    federation = SoftmaxFederation(X, Y, rows, 3)
    config = TrainingConfig(learning_rate=0.3, batch_size=5, epochs=epochs)
    jobs = [Job(i, federation.initial, config.model_copy(update={"seed": i})) for i in range(40)]
    together = federation.backend.train(jobs)
    for job, trained in zip(jobs[::7], together[::7], strict=True):
        (alone,) = SoftmaxFederation(X, Y, rows, 3).backend.train([job])
        assert alone.parameters.block.tobytes() == trained.parameters.block.tobytes()
        assert alone.metrics == trained.metrics


@pytest.mark.parametrize("epochs", [1, 2])
def test_nor_where_a_batch_is_of_one_example_and_the_classes_are_many(epochs):
    rows = [np.arange(i, i + 6 + i % 2) for i in range(10)]
    config = TrainingConfig(learning_rate=0.3, batch_size=1, epochs=epochs)
    labels = RNG.integers(0, 20, 60)
    initial = SoftmaxFederation(X, labels, rows, 20).initial
    jobs = [Job(i, initial, config.model_copy(update={"seed": i})) for i in range(10)]
    together = SoftmaxFederation(X, labels, rows, 20).backend.train(jobs)
    for job, trained in zip(jobs, together, strict=True):
        (alone,) = SoftmaxFederation(X, labels, rows, 20).backend.train([job])
        assert alone.parameters.block.tobytes() == trained.parameters.block.tobytes()


def test_participants_of_one_cohort_may_have_their_own_settings():
    federation = SoftmaxFederation(X, Y, ROWS, 3)
    configs = [{"batch_size": 1}, {"batch_size": 3, "epochs": 2}, {"batch_size": 7, "max_steps": 1}, {"epochs": 5},
               {"batch_size": 6, "proximal_mu": 0.5, "epochs": 3}]  # fmt: skip
    jobs = [
        Job(i, federation.initial, TrainingConfig(seed=i, learning_rate=0.1 * (i + 1), **config))
        for i, config in enumerate(configs)
    ]
    for job, trained in zip(jobs, federation.backend.train(jobs), strict=True):
        w, b, loss, steps = by_hand(ROWS[job.participant], job.base, job.config)
        np.testing.assert_allclose(trained.parameters["w"].T, w, atol=3e-6)
        np.testing.assert_allclose(trained.parameters["b"], b, atol=3e-6)
        assert (trained.metrics["loss"], trained.num_steps) == (pytest.approx(loss, rel=1e-5, abs=1e-6), steps)


@pytest.mark.parametrize("config", [{"epochs": 4}, {"epochs": 30, "max_steps": 11}, {"epochs": 9, "batch_size": 5}])
def test_few_examples_that_a_task_goes_through_many_times_are_trained_in_the_dual_form(config):
    config = TrainingConfig(**{"learning_rate": 0.2, "batch_size": 4} | config)
    x = RNG.standard_normal((60, 40)).astype(np.float32)
    assert _dual_costs_less(4 * 12, 12, 3, 40)
    assert not _dual_costs_less(12, 12, 3, 40), "once through costs less with the weights"
    assert not _dual_costs_less(10**7, 2000, 3, 10**5), "too many examples for their products with each other"
    federation = SoftmaxFederation(x, Y, ROWS, 3)
    base = Parameters({n: RNG.standard_normal(a.shape).astype(np.float32) for n, a in federation.initial.items()})
    jobs = [Job(i, base, config.model_copy(update={"seed": i})) for i in range(len(ROWS))]
    for job, trained, less in zip(
        jobs, federation.backend.train(jobs), federation.backend.train_deltas(jobs), strict=True
    ):
        w, b, loss, steps = by_hand(ROWS[job.participant], base, job.config, x=x)
        np.testing.assert_allclose(trained.parameters["w"].T, w, atol=2e-5)
        np.testing.assert_allclose(trained.parameters["b"], b, atol=2e-5)
        assert (trained.metrics["loss"], trained.num_steps) == (pytest.approx(loss, rel=1e-4, abs=1e-5), steps)
        assert less.parameters.block.tobytes() == (trained.parameters.packed().block - base.packed().block).tobytes()


@pytest.mark.parametrize("made", [lambda block: block.astype(np.float64), lambda block: np.repeat(block, 2)[::2]])
def test_a_base_version_of_other_numbers_in_its_memory_is_trained_as_its_values_are(made):
    """A strategy of the user's own may make such a version."""
    federation = SoftmaxFederation(X, Y, ROWS, 3)
    block, config = RNG.standard_normal(18).astype(np.float32), TrainingConfig(learning_rate=0.3, batch_size=5)
    bases = [Parameters.in_block(federation.initial.layout, b) for b in (block, made(block))]
    plain, other = federation.backend.train([Job(3, base, config) for base in bases])
    assert plain.parameters.block.tobytes() == other.parameters.block.tobytes()


def test_what_would_have_compiled_loops_read_elsewhere_is_refused():
    with pytest.raises(InputError, match="labels go from 0 to 3, expected 0 to 2"):
        SoftmaxFederation(X, np.arange(60) % 4, ROWS, 3)
    with pytest.raises(InputError, match="labels go from -1 to"):
        SoftmaxFederation(X, Y - 1, ROWS, 3)
    with pytest.raises(InputError, match="rows go from 55 to 60, expected 0 to 59"):
        SoftmaxFederation(X, Y, [np.arange(55, 61)], 3)
    federation = SoftmaxFederation(X, Y, ROWS, 3)
    smaller = Parameters({"w": np.zeros((2, 5), np.float32), "b": np.zeros(2, np.float32)})
    with pytest.raises(InputError, match="a model has 12 numbers, expected 18"):
        federation.backend.train([Job(0, smaller, TrainingConfig(learning_rate=0.3))])


def test_a_softmax_regression_that_diverges_has_no_finite_weights():
    federation = SoftmaxFederation(X * 1e30, Y, ROWS, 3)
    config = TrainingConfig(learning_rate=1e30, batch_size=6, epochs=3)
    (trained,) = federation.backend.train([Job(3, federation.initial, config)])
    assert not np.isfinite(trained.parameters["w"]).any()
    assert not np.isfinite(trained.metrics["loss"])


def test_loops_are_compiled_where_there_is_no_place_to_keep_them():
    made = {}
    exec("def twice(x):\n    return 2 * x", made)  # it has no file, so numba finds no folder for it
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(made["twice"])
    assert _compiled(made["twice"])(21) == 42


def test_q_steps_on_a_quadratic_leave_1_less_eta_h_to_the_q_of_the_distance():
    federation = QuadraticFederation(np.array([1.0, 0.5]), np.array([[2.0], [-1.0]]))
    base = Parameters({"x": np.array([10.0])})
    config = TrainingConfig(learning_rate=0.2, epochs=3)
    first, second = federation.backend.train([Job(0, base, config), Job(1, base, config)])
    assert first.parameters["x"][0] == pytest.approx(2 + 0.8**3 * 8)
    assert second.parameters["x"][0] == pytest.approx(-1 + 0.9**3 * 11)
    assert base["x"][0] == 10.0


def test_each_of_a_cohort_makes_its_own_steps_and_says_how_many():
    federation = QuadraticFederation(np.array([1.0]), np.array([[2.0]]))
    base = Parameters({"x": np.array([10.0])})
    configs = [{"epochs": 3}, {"epochs": 3, "max_steps": 1}, {"epochs": 2, "max_steps": 9}]
    jobs = [Job(0, base, TrainingConfig(learning_rate=0.5, **config)) for config in configs]
    trained = federation.backend.train(jobs)
    assert [(t.parameters["x"][0], t.num_steps) for t in trained] == [(3.0, 3), (6.0, 1), (4.0, 2)]
    assert [t.metrics["loss"] for t in trained] == [0.5, 8.0, 2.0]


def test_quadratics_are_measured_by_the_mean_loss_and_the_distance_to_its_minimum():
    federation = QuadraticFederation(np.array([1.0, 3.0]), np.array([[0.0, 0.0], [4.0, 0.0]]))
    # (1/2·2² + 3/2·2²)/2, and the minimum is at (0 + 12)/4
    assert federation.evaluate(Parameters({"x": np.array([2.0, 0.0])})) == {"loss": 4.0, "distance": 1.0}


def test_a_quadratics_noise_has_its_deviation_and_is_the_tasks_own():
    federation = QuadraticFederation(np.array([1.0]), np.zeros((1, 400)), noise=2.0)
    base = Parameters({"x": np.zeros(400)})
    seeds = [TrainingConfig(learning_rate=1.0, seed=seed) for seed in (1, 2, 1)]
    first, other, again = (t.parameters["x"] for t in federation.backend.train([Job(0, base, s) for s in seeds]))
    assert first.std() == pytest.approx(2, rel=0.1)
    assert (first == again).all()
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.15


def test_fedprox_pulls_a_quadratic_to_its_base_and_a_correction_adds_to_its_gradient():
    federation = QuadraticFederation(np.array([1.0]), np.array([[2.0]]))
    base = Parameters({"x": np.array([10.0])})

    def trained(correction=None, **config):
        job = Job(0, base, TrainingConfig(learning_rate=0.2, **config), correction)
        return federation.backend.train([job])[0].parameters["x"][0]

    assert trained(epochs=1, proximal_mu=3.0) == 10 - 0.2 * 8, "the first step is at the base"
    assert trained(epochs=2, proximal_mu=3.0) == pytest.approx(8.4 - 0.2 * (6.4 + 3 * (8.4 - 10)))
    # In the end h·(x - c) = μ·(base - x): x = (h·c + μ·base)/(h + μ)
    assert trained(epochs=200, proximal_mu=3.0) == pytest.approx((2 + 30) / 4)
    assert trained(Parameters({"x": np.array([-8.0])}), epochs=5) == 10.0


@pytest.mark.parametrize(
    "federation", [SoftmaxFederation(X, Y, ROWS, 3), QuadraticFederation(np.ones(1), np.zeros((1, 1)))]
)
def test_a_learning_rate_that_is_not_there_is_asked_for(federation):
    with pytest.raises(InputError, match=r"training\.learning_rate is not set"):
        federation.backend.train([Job(0, federation.initial, TrainingConfig())])


def test_a_cohorts_batches_are_in_the_keras_trainers_order_padded_to_one_shape():
    configs = [{"epochs": 3}, {"epochs": 2}, {"epochs": 3, "max_steps": 4}, {"epochs": 1, "max_steps": 9}]
    cohort = [
        (np.arange(10 * (i + 1), 10 * (i + 1) + n), TrainingConfig(seed=i * 10**18, batch_size=3, **config))
        for i, (n, config) in enumerate(zip((7, 3, 5, 1), configs, strict=True))
    ]
    made = cohort_rows(cohort, 3)
    assert made.rows.shape == (9, 4, 3)
    for i, (rows, config) in enumerate(cohort):
        expected = batches_of(rows, config)
        assert made.steps[i] == len(expected)
        assert made.real[:, i].tolist() == [len(b) for b in expected] + [0] * (9 - len(expected))
        for s, batch in enumerate(expected):
            assert made.rows[s, i, : len(batch)].tolist() == batch.tolist()
    assert made.last_epoch.tolist() == [6, 1, 2, 0]


def test_quadratics_start_where_they_are_told():
    members = population(2).members(0)
    start, near = (Quadratics(dimension=3, start=s).deal(members, 0) for s in (3.0, 0.0))
    assert start.initial["x"].tolist() == [3.0, 3.0, 3.0]
    assert near.initial["x"].tolist() == [0.0, 0.0, 0.0]
    assert start.optima.tolist() == near.optima.tolist()
