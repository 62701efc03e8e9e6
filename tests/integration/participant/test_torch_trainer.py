"""The PyTorch trainer against small models, and against sums that can be written down."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from fedmq.participant.training.methods import begin, make
from fedmq.schemas.errors import AppError, TrainerError
from fedmq.schemas.messages import Hello, TrainingConfig, Update
from fedmq.schemas.parameters import Parameters
from fedmq.studies.problems.lazy_training import Job
from fedmq.studies.problems.softmax import SoftmaxFederation
from tests.integration.participant.scripted import ScriptedCoordinator

torch = pytest.importorskip("torch")
from fedmq.participant.training.torch.model import (  # noqa: E402  after the skip
    built_model,
    parameters_of,
    set_parameters,
)
from fedmq.participant.training.torch.trainer import TorchTrainer  # noqa: E402

nn = torch.nn
RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
CONFIG = TrainingConfig(epochs=2, batch_size=16, seed=7)


def sgd(params: Any) -> Any:
    return torch.optim.SGD(params, lr=0.1)


def with_norm() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def trainer_of(build: Any = with_norm, optimizer: Any = torch.optim.Adam, data: Any = (X, Y), **more: Any) -> Any:
    return TorchTrainer(build, nn.CrossEntropyLoss(), data, optimizer, **more)


class Line(nn.Module):
    """A model with one weight, no bias and mean squared error, whose gradient can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Any) -> Any:
        return self.w * x


ONE = np.array([[2.0]], np.float32), np.array([[3.0]], np.float32)


def line(optimizer: Any = sgd, data: Any = ONE) -> Any:
    return TorchTrainer(Line, nn.MSELoss(), data, optimizer)


def after(start: float, correction: float | None = None, trainer: Any = None, **config: Any) -> float:
    given = None if correction is None else {"w": np.float32([correction])}
    base = Parameters({"w": np.float32([start])})
    return float((trainer or line()).train(base, TrainingConfig(**config), given).parameters["w"][0])


def same(one: Any, other: Any) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_a_step_is_that_of_the_optimizer_at_the_tasks_learning_rate() -> None:
    # loss (2w - 3)², gradient 4(2w - 3): -12 at 0
    assert after(0.0) == pytest.approx(1.2)
    assert after(0.0, learning_rate=0.01) == pytest.approx(0.12)
    assert after(0.0, epochs=5, max_steps=2, learning_rate=0.01) == pytest.approx(0.12 - 0.01 * 4 * (0.24 - 3))
    result = line().train(Parameters({"w": np.float32([0])}), TrainingConfig(epochs=3))
    assert (result.num_examples, result.num_steps) == (1, 3)
    assert result.metrics["loss"] == pytest.approx((2 * (1.2 - 0.1 * 4 * (2.4 - 3)) - 3) ** 2, rel=1e-5)


def test_fedprox_pulls_each_step_towards_the_base() -> None:
    # first step as without: w = 0.12 is where the pull begins, μ·(0.12 - 0) = 6
    expected = 0.12 - 0.01 * (4 * (0.24 - 3) + 50 * 0.12)
    assert after(0.0, epochs=2, learning_rate=0.01, proximal_mu=50) == pytest.approx(expected)


def test_scaffolds_correction_is_added_to_each_gradient_and_its_control_variate_follows() -> None:
    first = -0.01 * (-12 + 5)
    expected = first - 0.01 * (4 * (2 * first - 3) + 5)
    assert after(0.0, 5.0, epochs=2, learning_rate=0.01) == pytest.approx(expected)
    start = begin("scaffold", Parameters({"w": np.float32([0]), "control:w": np.float32([5])}), None)
    config = TrainingConfig(epochs=2, learning_rate=0.01)
    result = line().train(start.parameters, config, correction=start.correction)
    sent = make("scaffold", start, result.parameters, result.num_steps, config).tensors
    # Δc = (x - y)/(K·η) - c, the mean of the two gradients
    assert sent["control:w"][0] == pytest.approx((-12 + 4 * (2 * first - 3)) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (torch.optim.Adam, "this app's optimizer is Adam, and SCAFFOLD needs plain gradient steps"),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1), "SGD with momentum, weight_decay, and"),
    ],
)
def test_scaffold_refuses_steps_that_are_not_plain_by_name(optimizer: Any, said: str) -> None:
    with pytest.raises(AppError, match=said):
        after(0.0, 5.0, line(optimizer), learning_rate=0.1)


def test_scaffold_refuses_a_learning_rate_that_changes_during_the_training() -> None:
    def scheduled(params: Any) -> Any:
        made = sgd(params)
        made.register_step_post_hook(lambda one, *_: one.param_groups[0].update(lr=0.5))
        return made

    with pytest.raises(AppError, match=r"SCAFFOLD needs steps of training\.learning_rate"):
        after(0.0, 5.0, line(scheduled), learning_rate=0.1)


def test_softmax_regression_is_the_studies_twin() -> None:
    x, y = RNG.random((90, 784)).astype(np.float32), RNG.integers(0, 10, 90)
    twin = SoftmaxFederation(x, y, [np.arange(90)], 10)
    # The study's backend has its own trainings of these settings: order, last batch, FedProx and correction.
    start = {"w": RNG.normal(size=(10, 784)).astype(np.float32) / 20, "b": np.zeros(10, np.float32)}
    own = TorchTrainer(lambda: nn.Linear(784, 10), nn.CrossEntropyLoss(), (x, y), sgd)
    base = Parameters({"weight": start["w"], "bias": start["b"]})
    for mu, correction in ((0.0, None), (0.5, None), (0.0, 0.01)):
        config = TrainingConfig(epochs=3, batch_size=32, seed=11, learning_rate=0.1, proximal_mu=mu)
        added = None if correction is None else Parameters({n: np.full_like(a, correction) for n, a in start.items()})
        (theirs,) = twin.backend.train([Job(0, Parameters(start), config, added)])
        given = None if added is None else {"weight": added["w"], "bias": added["b"]}
        ours = own.train(base, config, given)
        assert (ours.num_steps, ours.num_examples) == (theirs.num_steps, theirs.num_examples) == (9, 90)
        assert np.abs(theirs.parameters["w"] - start["w"]).max() > 1e-3, "it has trained"
        for a, b in (("weight", "w"), ("bias", "b")):
            np.testing.assert_allclose(ours.parameters[a], theirs.parameters[b], rtol=0, atol=1e-6)
        assert ours.metrics["loss"] == pytest.approx(theirs.metrics["loss"], abs=1e-6)


def test_a_tasks_bits_follow_from_its_seed_alone_and_nothing_is_left_in_the_next() -> None:
    trainer = trainer_of()
    base = parameters_of(with_norm())
    first = trainer.train(base, CONFIG)
    states = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    other = trainer.train(base, CONFIG.model_copy(update={"seed": 8, "epochs": 3}))
    assert not same(first.parameters, other.parameters)
    assert same(first.parameters, trainer.train(base, CONFIG).parameters)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1], states[2]) == (np.random.get_state()[1].tobytes(), random.getstate())
    assert same(first.parameters, trainer_of().train(base, CONFIG).parameters), "another process has another model"


def test_what_a_model_draws_from_numpy_and_python_is_the_tasks_too() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * (1 + random.random()) * float(np.random.random())

    trainer = trainer_of(lambda: Noisy(4, 2), sgd)
    base = parameters_of(Noisy(4, 2))
    assert same(trainer.train(base, CONFIG).parameters, trainer.train(base, CONFIG).parameters)


def test_batch_norm_travels_and_its_counter_and_frozen_tensors_are_not_trainable() -> None:
    def frozen() -> Any:
        model = with_norm()
        model[0].weight.requires_grad = False
        return model

    trainer = trainer_of(frozen)
    base = parameters_of(frozen())
    assert base.non_trainable == {"0.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    result = trainer.train(base, CONFIG)
    # The last batch has 50 - 48 = 2 examples.
    mean, batches = np.zeros(8), X @ base["0.weight"].T
    assert result.num_steps == 8
    assert not same({"m": result.parameters["1.running_mean"]}, {"m": mean.astype(np.float32)})
    assert (result.parameters["1.num_batches_tracked"], base["1.num_batches_tracked"]) == (8, 0)
    assert same({"w": result.parameters["0.weight"]}, {"w": base["0.weight"]})
    one = trainer.train(base, TrainingConfig(batch_size=50))
    expected = 0.1 * (batches + base["0.bias"]).mean(0)
    np.testing.assert_allclose(one.parameters["1.running_mean"], expected, atol=1e-6)


def test_a_last_batch_of_one_example_is_left_out_for_a_batch_norm_and_for_nothing_else() -> None:
    data = X[:33], Y[:33]
    assert trainer_of(data=data).train(parameters_of(with_norm()), CONFIG).num_steps == 4
    assert (
        trainer_of(data=data).train(parameters_of(with_norm()), TrainingConfig(batch_size=16, max_steps=1)).num_steps
        == 1
    )
    plain = trainer_of(lambda: nn.Linear(4, 2), data=data)
    assert plain.train(parameters_of(nn.Linear(4, 2)), CONFIG).num_steps == 6
    with pytest.raises(TrainerError, match="Expected more than 1 value per channel"):
        trainer_of(data=(X[:1], Y[:1])).train(parameters_of(with_norm()), CONFIG)


def test_parts_in_eval_mode_stay_so_also_after_an_evaluation() -> None:
    def half() -> Any:
        model = with_norm()
        model[1].eval()
        return model

    trainer = trainer_of(half, evaluation_data=(X, Y))
    base = parameters_of(half())
    trainer.evaluate(base)
    result = trainer.train(base, CONFIG)
    assert same({"m": result.parameters["1.running_mean"]}, {"m": base["1.running_mean"]})
    assert not same(result.parameters, trainer_of(lambda: half().eval()).train(base, CONFIG).parameters), "no Dropout"


def test_tied_weights_travel_once_and_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Any) -> Any:
            return self.b(self.a(x))

    base = parameters_of(Tied())
    assert list(base) == ["a.weight", "a.bias", "b.bias"]
    model = Tied()
    set_parameters(model, base)
    assert model.b.weight is model.a.weight
    assert same({"w": model.b.weight.detach().numpy()}, {"w": base["a.weight"]})
    assert set(trainer_of(Tied).train(base, CONFIG).parameters) == set(base)


def test_buffers_outside_of_the_state_dict_begin_each_task_anew() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 2)
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return super().forward(x) * self.calls

    trainer, base = trainer_of(Counting), parameters_of(Counting())
    assert "calls" not in base
    assert same(trainer.train(base, CONFIG).parameters, trainer.train(base, CONFIG).parameters)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_float_types_train_and_keep_their_bits(dtype: Any) -> None:
    def build() -> Any:
        return nn.Linear(4, 2).to(dtype)

    base = parameters_of(build())
    model = build()
    set_parameters(model, base)
    assert same(parameters_of(model), base)
    expected = np.dtype(ml_dtypes.bfloat16) if dtype == torch.bfloat16 else np.dtype(str(dtype)[6:])
    result = trainer_of(build, sgd).train(base, CONFIG.model_copy(update={"proximal_mu": 0.1}))
    assert {a.dtype for a in result.parameters.values()} == {expected}
    assert not same(result.parameters, base)


def test_tensors_that_are_not_contiguous_and_scalars_travel() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.arange(8.0).reshape(4, 2).t())
            self.scale = nn.Parameter(torch.tensor(1.5))

        def forward(self, x: Any) -> Any:
            return x @ self.w.t() * self.scale

    base = parameters_of(Strange())
    assert (base["w"].tolist(), base["scale"].shape) == ([[0, 2, 4, 6], [1, 3, 5, 7]], ())
    result = trainer_of(Strange, sgd).train(base, CONFIG)
    assert result.parameters["w"].flags.c_contiguous
    assert same(result.parameters, trainer_of(Strange, sgd).train(base, CONFIG).parameters)


class PairOfInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, left: Any, right: Any) -> Any:
        return self.out(torch.cat([left, right], 1))


class Examples(torch.utils.data.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index], int(Y[index])


LEFT, RIGHT = X[:, :2], X[:, 2:]


@pytest.mark.parametrize(
    ("build", "data"),
    [
        (lambda: nn.Linear(4, 2), (X.astype(np.float64), Y.astype(np.uint8))),
        (lambda: nn.Linear(4, 2), (X.tolist(), Y.tolist())),
        (lambda: nn.Linear(4, 2), lambda: (torch.from_numpy(X), torch.from_numpy(Y).to(torch.int32))),
        (lambda: nn.Linear(4, 2), torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))),
        (lambda: nn.Linear(4, 2), Examples()),
        (PairOfInputs, ((LEFT, RIGHT), Y)),
        (PairOfInputs, ({"right": RIGHT, "left": LEFT}, Y)),
        (PairOfInputs, torch.utils.data.TensorDataset(*map(torch.from_numpy, (LEFT, RIGHT, Y)))),
    ],
)
def test_data_of_many_kinds_train_to_the_same_bits(build: Any, data: Any) -> None:
    expected = trainer_of(lambda: nn.Linear(4, 2), sgd)
    base = parameters_of(nn.Linear(4, 2))
    names = dict(zip(parameters_of(build()), base, strict=True))
    trainer = trainer_of(build, sgd, data, evaluation_data=data)
    assert trainer.num_examples == 50
    result = trainer.train(Parameters({own: base[name] for own, name in names.items()}), CONFIG)
    assert same({names[n]: a for n, a in result.parameters.items()}, expected.train(base, CONFIG).parameters)
    assert set(trainer.evaluate(result.parameters)) == {"loss", "accuracy"}


class Stream(torch.utils.data.IterableDataset):  # type: ignore[misc]
    def __iter__(self) -> Any:
        return iter([(X[0], 0)])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (torch.utils.data.DataLoader(Examples()), r"data is a DataLoader.*give loader\.dataset, and a collate_fn"),
        (Stream(), r"Stream.*collect it once, by x, y = torch\.utils\.data\.default_collate\(list\(dataset\)\)"),
        ((one for one in [1]), "one after the other .generator."),
        (lambda: None, "data is None, expected .x, y."),
        (X, "data is .*expected .x, y."),
        ((X, Y[:3]), "x of data has 50|x has 50, y has 3"),
        ((X, ["a"] * 50), "y of data has the dtype <U1, expected numbers"),
        ((X, 3), "y of data is a scalar"),
    ],
)
def test_data_that_no_seed_can_put_in_order_are_refused_with_the_line_that_helps(data: Any, said: str) -> None:
    with pytest.raises(AppError, match=said):
        _ = trainer_of(data=data).num_examples


def test_items_of_a_dataset_that_are_no_pairs_need_a_collate() -> None:
    class Named(Examples):
        def __getitem__(self, index: int) -> Any:
            return {"x": X[index], "label": int(Y[index])}

    base = parameters_of(with_norm())
    with pytest.raises(AppError, match=r"expected \(x, y\): return such pairs"):
        trainer_of(data=Named()).train(base, CONFIG)

    def collate(items: list[Any]) -> Any:
        batch = torch.utils.data.default_collate(items)
        return batch["x"], batch["label"]

    made = trainer_of(data=Named(), collate=collate).train(base, CONFIG)
    assert same(made.parameters, trainer_of().train(base, CONFIG).parameters)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: None, "returned None, expected a torch.nn.Module"),
        (nn.ReLU, "the model has no tensors"),
        (lambda: nn.LazyLinear(2), "has no shape yet: call the model once"),
        (lambda: nn.Linear(4, 2, device="meta"), "meta device"),
        (lambda: nn.Linear(4, 2, dtype=torch.complex64), "is strided complex64, expected a plain one of float16"),
    ],
)
def test_models_that_cannot_travel_are_refused(build: Any, said: str) -> None:
    with pytest.raises(AppError, match=said):
        parameters_of(built_model(build))


def test_a_tensor_that_is_a_view_of_another_is_refused() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.zeros(3, 2))
            self.b = nn.Parameter(self.a.detach().t())

    with pytest.raises(AppError, match="a and b share memory, and are not the same tensor"):
        parameters_of(Views())


def test_a_federation_of_another_model_is_refused_with_the_differences() -> None:
    with pytest.raises(AppError, match=r"this app's model is not the federation's.*0\.weight"):
        trainer_of().train(Parameters({"0.weight": np.zeros((3, 4), np.float32)}), CONFIG)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (None, "was given no optimizer"),
        (lambda p: None, "returned None, expected a new torch.optim.Optimizer"),
        (torch.optim.LBFGS, "LBFGS"),
        (lambda p: sgd([nn.Parameter(torch.zeros(1))]), "SGD of optimizer.params. has none of the model's parameters"),
    ],
)
def test_optimizers_that_step_nothing_are_refused(optimizer: Any, said: str) -> None:
    with pytest.raises(AppError, match=said):
        after(0.0, trainer=line(optimizer))


def test_a_learning_rate_that_would_reach_no_step_is_refused() -> None:
    class Rateless(torch.optim.Optimizer):  # type: ignore[misc]
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        def step(self, closure: Any = None) -> None:
            for parameter in self.param_groups[0]["params"]:
                parameter.data -= 0.1 * parameter.grad

    assert after(0.0, trainer=line(Rateless)) == pytest.approx(1.2)
    with pytest.raises(AppError, match=r"Rateless has no `lr`.*would reach no step"):
        after(0.0, trainer=line(Rateless), learning_rate=0.1)
    two = line(lambda params: torch.optim.SGD([{"params": params, "lr": torch.tensor(0.5)}], lr=0.3))
    assert after(0.0, trainer=two, learning_rate=0.01) == pytest.approx(0.12)


def test_a_cancelled_training_ends_before_its_next_step() -> None:
    class Calls(nn.Linear):
        count = 0

        def forward(self, x: Any) -> Any:
            Calls.count += 1
            if Calls.count == 2:
                trainer.cancel()  # as another thread would, in the middle of a step
            return super().forward(x)

    trainer = trainer_of(lambda: Calls(4, 2), sgd)
    base = parameters_of(Calls(4, 2))
    with pytest.raises(TrainerError, match="training was cancelled after 2 steps"):
        trainer.train(base, CONFIG)
    assert trainer.train(base, CONFIG).num_steps == 8


def test_errors_of_a_step_name_the_data_and_labels() -> None:
    base = parameters_of(with_norm())
    with pytest.raises(TrainerError, match=r"on data: .*Target 7 is out of bounds.*x float32\[4\], y int64\[\]"):
        trainer_of(data=(X, Y + 7)).train(base, CONFIG)
    with pytest.raises(AppError, match=r"returned a tensor of shape \[16\], expected one number: take the mean"):
        TorchTrainer(with_norm, nn.CrossEntropyLoss(reduction="none"), (X, Y), sgd).train(base, CONFIG)
    with pytest.raises(TrainerError, match="there are no training examples"):
        trainer_of(data=(X[:0], Y[:0])).train(base, CONFIG)
    headless = nn.Module()
    headless.w = nn.Parameter(torch.zeros(1))
    given = {"w": np.zeros(1, np.float32)}
    with pytest.raises(TrainerError, match='missing the required "forward"'):  # PyTorch's is a NotImplementedError
        trainer_of(lambda: headless, evaluation_data=(X, Y)).evaluate(given)
    bad = X.copy()
    bad[3, 1] = np.nan
    with pytest.raises(TrainerError, match="data is not either: x has nan in example 3"):
        trainer_of(data=(bad, Y)).train(base, CONFIG)
    with pytest.raises(AppError, match="cannot go to the device 'cuda:77'"):
        trainer_of(device="cuda:77")


def test_an_evaluation_is_the_mean_over_examples_with_metrics_of_the_users_own() -> None:
    def metrics(output: Any, y: Any) -> Any:
        return {"positive": (output[:, 0] > 0).double().mean()}

    model = with_norm().eval()
    base = parameters_of(model)
    found = trainer_of(evaluation_data=(X, Y), metrics=metrics).evaluate(base, batch_size=7)
    with torch.no_grad():
        output = model(torch.from_numpy(X))
    expected = float(nn.functional.cross_entropy(output, torch.from_numpy(Y)))
    assert found == pytest.approx({"loss": expected, "positive": float((output[:, 0] > 0).double().mean())})
    with pytest.raises(NotImplementedError):
        trainer_of().evaluate(base)


def test_arrays_that_come_in_are_not_written_and_those_that_go_out_are_the_callers() -> None:
    trainer = trainer_of()
    base = parameters_of(with_norm())
    frozen: dict[str, npt.NDArray[Any]] = {name: array.copy() for name, array in base.items()}
    for array in frozen.values():
        array.flags.writeable = False
    first = trainer.train(frozen, CONFIG)
    kept = {name: array.copy() for name, array in first.parameters.items()}
    trainer.train(frozen, CONFIG.model_copy(update={"seed": 9}))
    assert same(first.parameters, kept)
    assert same(frozen, base)


def test_a_task_over_the_embedded_transport_comes_back_as_the_trainers_own_delta(
    coordinator: ScriptedCoordinator, start: Callable[..., Any]
) -> None:
    base = parameters_of(with_norm())
    start(trainer_of())
    assert coordinator.wait_for(Hello).replies == ("delta", "parameters", "change", "scaffold")
    coordinator.send(coordinator.task(training=CONFIG), base)
    decoded = coordinator.wait_for_decoded(Update)
    assert decoded.message.num_examples == 50  # type: ignore[union-attr]
    local = trainer_of().train(base, CONFIG).parameters
    expected = {name: local[name] - base[name] for name in base.averaged()}
    assert decoded.parameters is not None
    assert same(expected, decoded.parameters)
    assert decoded.parameters.non_trainable == {"1.running_mean", "1.running_var"}


def test_pytorch_brings_no_tensorflow() -> None:
    code = "import sys, fedmq; fedmq.TorchTrainer; sys.exit(bool({'keras', 'tensorflow', 'jax'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
