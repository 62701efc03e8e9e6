"""A strategy as its idea: a weight, a divisor, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.dataclasses import dataclass as pydantic_dataclass

import fedmq
from fedmq.coordinator.service.startup import settings_of
from fedmq.coordinator.settings import CommitSettings, RunSettings, StopSettings
from fedmq.coordinator.strategies.math.server_optimizers import Adam
from fedmq.coordinator.strategies.math.staleness_weights import Constant, Polynomial
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.sweep.grids import server_step_of
from tests.unit.coordinator.strategies.twins import Sent, model, payload_bytes, play, update


@dataclass(frozen=True)
class Halving(fedmq.WeightedMean):
    """An update counts half for each version that it is behind."""

    base: float = 2.0

    def weight(self, update, staleness):
        return self.base**-staleness


@dataclass(frozen=True)
class Shares(Halving):
    """The same, with weights that sum to 1."""

    def divisor(self, state):
        return state.total()


@dataclass(frozen=True)
class OncePerBuffer(fedmq.WeightedMean):
    """Only the first update of each buffer counts."""

    def weight(self, update, staleness, state):
        return 1.0 if state.count == 0 else 0.0


@dataclass(frozen=True)
class AsFedBuff(fedmq.WeightedMean):
    a: float = 0.5

    def weight(self, update, staleness):
        return Polynomial(self.a)(staleness) * update.client_weight


@dataclass(frozen=True)
class Gives(fedmq.WeightedMean):
    """A weight or a divisor of anything, or one that raises."""

    weighs: Any = 1.0
    divides: Any = 1.0

    def weight(self, update, staleness):
        return self.weighs() if callable(self.weighs) else self.weighs

    def divisor(self, state):
        return self.divides() if callable(self.divides) else self.divides


@dataclass(frozen=True)
class Strict(fedmq.FedBuff):
    """FedBuff without updates that are staler than a limit."""

    limit: int = 1

    def weight(self, update, staleness):
        return super().weight(update, staleness) if staleness <= self.limit else 0.0


def by_zero() -> float:
    return 1 / 0


def test_a_weight_is_enough_and_the_divisor_is_k() -> None:
    played = play(Halving(buffer_size=2, server_learning_rate=0.5), [10.0], [Sent("a", [4.0]), Sent("b", [8.0], tau=2)])
    # 10 + 0.5·(1/2)·(1·4 + 1/4·8)
    assert played.versions[0].tolist() == [11.5]
    assert played.weights == [(0.25, 0.0625)]


def test_a_divisor_of_its_own_divides_once() -> None:
    played = play(Shares(buffer_size=2), [10.0], [Sent("a", [4.0], tau=1), Sent("b", [8.0], tau=1)])
    assert played.versions[0].tolist() == [16.0]
    assert played.weights == [(0.5, 0.5)]


def test_a_weight_with_a_third_parameter_sees_what_came_before() -> None:
    played = play(OncePerBuffer(buffer_size=2), [0.0], [Sent(who, [2.0]) for who in "abcd"])
    assert played.weights == [(0.5, 0.0), (0.5, 0.0)]
    assert [x.tolist() for x in played.versions] == [[1.0], [2.0]]


def test_where_every_weight_is_zero_nothing_moves() -> None:
    played = play(Gives(buffer_size=1, weighs=0, divides=0), [1.0], [Sent("a", [5.0])])
    assert (played.versions[0].tolist(), played.weights) == ([1.0], [(0.0,)])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("weighs", [1e-320, 1e-45, 1e-39, 1e-38, 1e-30, 1.0, 1e30])
def test_no_weight_makes_a_version_that_is_not_finite(weighs: float, dtype: Any) -> None:
    story = [Sent("a", [3.0, 0.0]), Sent("b", [5.0, -1.0])]
    played = play(
        Gives(buffer_size=2, server_learning_rate=2.0, weighs=weighs, divides=2 * weighs), [1.0, 2.0], story, dtype
    )
    too_small = 2 * weighs < 2 * np.finfo(np.float64 if dtype == np.float64 else np.float32).tiny
    assert played.versions[0] == pytest.approx([1.0, 2.0] if too_small else [9.0, 1.0], rel=1e-6)
    assert played.weights[0] == ((0.0, 0.0) if too_small else pytest.approx((1.0, 1.0)))


def test_a_divisor_too_small_to_divide_by_moves_nothing() -> None:
    played = play(Gives(buffer_size=1, weighs=1.0, divides=1e-320), [1.0], [Sent("a", [5.0])], np.float32)
    assert (played.versions[0].tolist(), played.weights) == ([1.0], [(0.0,)])


def test_non_trainable_tensors_take_the_mean_with_rate_1() -> None:
    parameters = model({"x": [0.0], "moving_mean": [0.0]}, {"moving_mean"})
    strategy = Halving(buffer_size=1, server_learning_rate=0.5)
    state = strategy.accumulate(strategy.init(parameters), update({"x": [4.0], "moving_mean": [4.0]}), 1)
    _, new = strategy.aggregate(state, parameters)
    assert (new["x"].tolist(), new["moving_mean"].tolist()) == ([1.0], [2.0])


@given(
    st.lists(
        st.builds(
            Sent, st.sampled_from("abc"), st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3),
            st.integers(0, 20), st.floats(0, 5),
        ),
        min_size=1, max_size=9,
    ),
    st.integers(1, 4), st.floats(0.01, 2), st.floats(0.1, 2), st.sampled_from([np.float32, np.float64, np.float16]),
)  # fmt: skip
def test_with_fedbuffs_weight_it_is_fedbuff_to_the_last_bit(story, size, rate, a, dtype) -> None:
    start = [1.0, -2.0, 0.5]
    theirs = play(fedmq.FedBuff(size, rate, Polynomial(a)), start, story, dtype)
    ours = play(AsFedBuff(size, rate, a), start, story, dtype)
    assert [x.tobytes() for x in ours.versions] == [x.tobytes() for x in theirs.versions]
    assert ours.weights == theirs.weights


@pytest.mark.parametrize(
    ("weighs", "got"),
    [
        (math.nan, "gave nan"),
        (math.inf, "gave inf"),
        (-0.5, "gave -0.5"),
        ("1", "gave '1'"),
        (None, "gave None"),
        (1j, "gave a complex"),
        (np.ones(3), "gave a ndarray of 3"),
        (by_zero, "raised ZeroDivisionError: division by zero"),
        (lambda: {}["loss"], "raised KeyError: 'loss'"),
        (10**400, "raised OverflowError"),
        (1e31, "gave 1e+31"),
        (np.longdouble("1e400"), "gave a longdouble"),
        (np.array(0.5), "gave a ndarray,"),
    ],
)
def test_a_weight_that_is_no_weight_is_the_users_error_and_leaves_the_state_as_it_was(weighs: Any, got: str) -> None:
    good, bad = Gives(), Gives(weighs=weighs)
    parameters = model({"x": [0.0]})
    state = good.accumulate(good.init(parameters), update({"x": [3.0]}), 0)
    before = (payload_bytes(state.arrays()), state.scalars())
    with pytest.raises(fedmq.AppError) as caught:
        bad.accumulate(state, update({"x": [5.0]}), 0)
    assert str(caught.value).startswith(f"strategy Gives: weight() {got}")
    assert "expected a finite number of 0 or more" in str(caught.value)
    advice = (
        f" Mend weight() in {__file__} and start again. A coordinator loses nothing: the update waits at the broker"
    )
    assert str(caught.value).endswith(advice)
    assert (payload_bytes(state.arrays()), state.scalars()) == before


@pytest.mark.parametrize(
    ("divides", "got"), [(math.nan, "gave nan"), (-1, "gave -1"), (None, "gave None"), (by_zero, "raised ZeroDivision")]
)
def test_a_divisor_that_is_none_is_the_users_error_and_leaves_the_state_as_it_was(divides: Any, got: str) -> None:
    strategy = Gives(divides=divides)
    parameters = model({"x": [0.0]})
    state = strategy.accumulate(strategy.init(parameters), update({"x": [3.0]}), 0)
    before = (payload_bytes(state.arrays()), state.scalars())
    for make in (lambda: strategy.weights(state), lambda: strategy.aggregate(state, parameters)):
        with pytest.raises(fedmq.AppError, match=rf"^strategy Gives: divisor\(\) {got}"):
            make()
    assert (payload_bytes(state.arrays()), state.scalars()) == before
    assert parameters["x"].tolist() == [0.0]


@pytest.mark.parametrize("weighs", [True, 1, np.float32(1.0), np.float64(1.0), np.int64(1), Fraction(1)])
def test_every_real_number_is_a_weight_and_is_kept_as_a_float(weighs: Any) -> None:
    strategy = Gives(weighs=weighs)
    state = strategy.accumulate(strategy.init(model({"x": [0.0]})), update({"x": [3.0]}), 0)
    assert [(type(c), c) for c in state.coefficients] == [(float, 1.0)]


def test_a_client_weight_of_ours_is_not_blamed_on_the_strategy() -> None:
    strategy = Halving()
    with pytest.raises(ValueError, match="expected a finite number of 0 or more: check its client weight nan"):
        strategy.accumulate(strategy.init(model({"x": [0.0]})), update({"x": [1.0]}, math.nan), 0)


def test_the_inherited_hyper_parameters_are_checked_and_converted() -> None:
    strategy = Strict(3, staleness={"name": "constant"}, server_optimizer={"name": "adam"}, limit=2)
    assert (strategy.staleness, strategy.server_optimizer, strategy.limit) == (Constant(), Adam(), 2)
    assert [type(Halving(server_learning_rate=n).server_learning_rate) for n in (1, 0.5)] == [float, float]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Halving(buffer_size=0), "strategy Halving: got buffer_size = 0: Input should be greater than"),
        (lambda: Halving(buffer_size="ten"), "strategy Halving: got buffer_size = 'ten': Input should be a valid"),
        (lambda: Halving(server_learning_rate=math.nan), "got server_learning_rate = nan: Input should be a finite"),
        (lambda: Strict(staleness="poly"), "strategy Strict: got staleness = 'poly'"),
        (lambda: Strict(server_learning_rate=2, server_optimizer=Adam()), "strategy Strict: .* has no effect beside"),
    ],
)
def test_a_hyper_parameter_that_cannot_be_is_refused_where_it_is_set(make: Any, told: str) -> None:
    with pytest.raises(fedmq.ConfigError, match=told):
        make()


def test_a_strategy_without_a_weight_is_refused() -> None:
    @dataclass(frozen=True)
    class Weightless(fedmq.WeightedMean):
        patience: int = 2

    with pytest.raises(fedmq.AppError, match=r"strategy Weightless has no weight\(self, update, staleness\)"):
        Weightless()


def test_a_pydantic_dataclass_without_a_weight_is_the_users_error() -> None:
    @pydantic_dataclass(frozen=True)
    class Weightless(fedmq.WeightedMean):
        patience: int = 2

    with pytest.raises(fedmq.AppError, match=r"^strategy Weightless: weight\(\) raised AttributeError"):
        play(Weightless(buffer_size=1), [0.0], [Sent("a", [1.0])])


def test_fields_without_the_decorator_are_refused() -> None:
    class Undecorated(Halving):
        kind: ClassVar[str] = "any"
        buffer_size: int = 3
        patience: int = 2

    with pytest.raises(
        fedmq.AppError, match="strategy Undecorated declares buffer_size, patience, but it is not a data"
    ):
        Undecorated()


def test_a_class_with_nothing_but_a_weight_needs_no_decorator() -> None:
    class Plain(fedmq.WeightedMean):
        def weight(self, update, staleness):
            return 1.0

    assert play(Plain(buffer_size=1), [0.0], [Sent("a", [1.0])]).weights == [(1.0,)]


def test_the_ledger_keeps_the_hyper_parameters_that_a_user_adds() -> None:
    run = RunSettings(run_id="r", stop=StopSettings(max_versions=1))
    for strategy, own in ((Halving(base=3.0), {"base": 3.0}), (Strict(limit=4), {"limit": 4})):
        settings = settings_of(run, strategy, TrainingConfig(), CommitSettings())["strategy"]
        assert settings.items() >= {"type": type(strategy).__name__, "buffer_size": 10, **own}.items()


def test_its_state_goes_through_a_checkpoint_and_back() -> None:
    parameters = model({"x": [0.0]})
    strategy = Shares(buffer_size=3)
    state = strategy.accumulate(strategy.init(parameters), update({"x": [3.0]}), 1)
    again = strategy.restore(state.arrays(), state.scalars(), parameters)
    made = [strategy.aggregate(strategy.accumulate(s, update({"x": [9.0]}), 0), parameters)[1] for s in (state, again)]
    assert made[0]["x"].tolist() == made[1]["x"].tolist() == [7.0]


def test_the_server_step_that_a_study_tunes_is_there_unless_the_weights_sum_to_1() -> None:
    assert server_step_of(Halving()) == "strategy.server_learning_rate"
    assert server_step_of(fedmq.Port()) is None


def test_a_weight_is_not_asked_about_an_update_that_does_not_fit() -> None:
    @dataclass(frozen=True)
    class Asked(fedmq.WeightedMean):
        def weight(self, update, staleness):
            raise AssertionError("asked")

    strategy = Asked()
    with pytest.raises(ValueError, match="carries other tensors"):
        strategy.accumulate(strategy.init(model({"w": [1.0]})), update({"v": [1.0]}), 0)
