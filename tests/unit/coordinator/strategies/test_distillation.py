from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedmq.coordinator.settings import DownlinkSettings, UplinkSettings
from fedmq.coordinator.strategies import Distillation, FedAsync
from fedmq.coordinator.strategies.distillation import distributions
from fedmq.coordinator.strategies.math.staleness_weights import Constant
from fedmq.coordinator.strategies.protocol import ClientUpdate
from fedmq.schemas.codecs.known import UplinkCodec, codec_of
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import Uplink
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of

START = Parameters({"predictions": np.array([[0.5, 0.5]], np.float32), "public_data": np.arange(3, dtype=np.uint8)})


def sent(*rows: list[float], q: float = 1.0) -> ClientUpdate:
    payload = Parameters({"predictions": np.array(rows, np.float32)})
    return ClientUpdate("u", "p", 0, payload, num_examples=1, client_weight=q)


def version(strategy: Distillation, *updates: tuple[ClientUpdate, int], parameters: Parameters = START) -> Parameters:
    state = strategy.init(parameters)
    for update, staleness in updates:
        assert not strategy.ready(state, 0.0)
        state = strategy.accumulate(state, update, staleness)
    assert strategy.ready(state, 0.0)
    return strategy.aggregate(state, parameters)[1]


def test_fresh_updates_make_the_papers_mean_and_nothing_is_left_of_the_version_before() -> None:
    new = version(Distillation(buffer_size=2), (sent([0.75, 0.25]), 0), (sent([0.5, 0.5]), 0))
    assert new["predictions"].tolist() == [[0.625, 0.375]]
    assert new["predictions"].dtype == np.float32
    assert new["public_data"].tolist() == [0, 1, 2]


def test_what_stale_updates_lack_stays_with_the_mean_before() -> None:
    # s(3) = 1/2: Σ w = 1.5 and K = 2, so 1/4 of the mean before, 1/2 of the fresh and 1/4 of the stale
    strategy = Distillation(buffer_size=2)
    state = strategy.init(START)
    for update, staleness in ((sent([0.75, 0.25]), 0), (sent([0.25, 0.75]), 3)):
        state = strategy.accumulate(state, update, staleness)
    assert strategy.weights(state) == (0.5, 0.25)
    state, new = strategy.aggregate(state, START)
    assert new["predictions"].tolist() == [[0.5625, 0.4375]]
    assert state.count == 0
    assert state.mean["predictions"].tolist() == [[0.5625, 0.4375]]


def test_client_weights_above_one_never_make_more_than_a_mean() -> None:
    new = version(Distillation(buffer_size=2), (sent([1.0, 0.0], q=3.0), 0), (sent([0.0, 1.0], q=5.0), 0))
    assert new["predictions"].tolist() == [[0.375, 0.625]]


@given(alpha=st.floats(0.01, 1), tau=st.integers(0, 50), p=st.floats(0, 1))
def test_with_a_buffer_of_one_it_is_fedasyncs_rule(alpha: float, tau: int, p: float) -> None:
    update = sent([p, 1 - p])
    fedasync = FedAsync(alpha)
    expected = fedasync.aggregate(fedasync.accumulate(fedasync.init(START), update, tau), START)[1]
    new = version(Distillation(buffer_size=1, mixing=alpha), (update, tau))
    np.testing.assert_allclose(new["predictions"], expected["predictions"], atol=1e-6)


def test_the_temperature_makes_the_consensus_more_certain_and_is_taken_once() -> None:
    strategy = Distillation(buffer_size=1, mixing=0.5, staleness=Constant(), temperature=0.1)
    state, parameters = strategy.init(START), START
    for mean in (0.6, 0.65, 0.675):  # half-way to 0.7 each time
        state, parameters = strategy.aggregate(strategy.accumulate(state, sent([0.7, 0.3]), 0), parameters)
        assert state.mean["predictions"][0, 0] == pytest.approx(mean)
        sharp = 1 / (1 + np.exp((1 - 2 * mean) / 0.1))
        assert parameters["predictions"][0].tolist() == pytest.approx([sharp, 1 - sharp])


def test_the_mean_of_logits_is_the_geometric_mean() -> None:
    new = version(Distillation(buffer_size=2, average="logits"), (sent([0.8, 0.2]), 0), (sent([0.5, 0.5]), 0))
    assert new["predictions"][0].tolist() == pytest.approx([2 / 3, 1 / 3])  # √(0.8·0.5) : √(0.2·0.5) = 2 : 1
    # who is certain counts as 1 - 1e-6
    new = version(Distillation(buffer_size=2, average="logits"), (sent([1.0, 0.0]), 0), (sent([0.0, 1.0]), 0))
    assert new["predictions"].tolist() == [[0.5, 0.5]]


def test_rows_count_as_distributions_whatever_they_hold() -> None:
    rows = [[3.0, 1.0], [-5.0, 1.0], [0.0, 0.0], [-1.0, -2.0], [3e38, 3e38], [1e-44, 0.0]]
    found = distributions(np.array(rows, np.float32))
    assert found.tolist() == [[0.75, 0.25], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]
    new = version(Distillation(buffer_size=2), (sent([1e30, 0.0]), 0), (sent([0.0, 1.0]), 0))
    assert new["predictions"].tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_a_restored_state_goes_on_with_the_same_bits(average: str) -> None:
    strategy = Distillation(buffer_size=2, mixing=0.3, average=average, temperature=0.5)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    start = Parameters({"predictions": np.full((4, 3), 1 / 3, np.float32)}).packed()
    state, parameters = strategy.init(start), start
    for number in range(7):
        update = sent(*rng.dirichlet(np.ones(3), 4).tolist())
        arrays = {n: a.copy() for n, a in state.arrays().items()}
        other = strategy.restore(arrays, state.scalars(), parameters)
        state, other = strategy.accumulate(state, update, number), strategy.accumulate(other, update, number)
        if strategy.ready(state, 0.0):
            state, new = strategy.aggregate(state, parameters)
            _, again = strategy.aggregate(other, parameters)
            assert new["predictions"].tobytes() == again["predictions"].tobytes()
            parameters = new
    np.testing.assert_allclose(parameters["predictions"].sum(axis=1), 1, atol=1e-6)


def test_a_dropped_buffer_leaves_the_mean() -> None:
    strategy = Distillation(buffer_size=2)
    state = strategy.accumulate(strategy.init(START), sent([1.0, 0.0]), 0)
    state.drop(None)
    assert state.count == 0
    assert state.mean["predictions"].tolist() == [[0.5, 0.5]]
    assert not state.sums["predictions"].any()


def test_a_model_that_is_no_predictions_is_refused_with_what_to_do() -> None:
    with pytest.raises(AppError, match=r"tensor 'w' of version 0 has the shape \[3\]: give the app build_student"):
        Distillation().init(Parameters({"w": np.zeros(3, np.float32)}))
    assert Distillation().init(Parameters({"one": np.zeros(1, np.float32)})).count == 0
    with pytest.raises(ValidationError, match="min_updates = 3 has no effect"):
        Distillation(min_updates=3)
    with pytest.raises(ValidationError, match="temperature"):
        Distillation(temperature=0)


@pytest.mark.parametrize(
    ("average", "codec", "fits"),
    [
        ("probabilities", "none", True),
        ("probabilities", "bf16", True),
        ("probabilities", "int8", True),
        ("probabilities", "int4", False),
        ("probabilities", "topk", False),
        ("probabilities", "powersgd", False),
        ("logits", "bf16", True),
        ("logits", "int8", False),
    ],
)
def test_a_codec_that_leaves_no_distribution_is_refused_with_its_key(average: str, codec: str, fits: bool) -> None:
    strategy = Distillation(average=average)  # type: ignore[arg-type]
    found = [place for place, _ in UplinkSettings(codec=codec).unmet(strategy)]
    assert found == ([] if fits else ["uplink.codec"])


@pytest.mark.parametrize("codec", ["bf16", "hidden"])
def test_a_consensus_goes_down_as_it_is(codec: str) -> None:
    (found,) = DownlinkSettings(codec=codec).unmet(Distillation())  # type: ignore[arg-type]
    assert found == ("downlink.codec", f"got {codec!r}, allowed with the strategy distillation: none")


def test_int8_moves_no_probability_by_more_than_a_127th_and_their_mean_by_less() -> None:
    rng = np.random.default_rng(2)
    rows = rng.dirichlet(np.full(10, 0.1), 200).astype(np.float32)
    order = Uplink(codec="int8", rounding="stochastic")
    codec = codec_of(order)
    assert codec is not None
    wire = UplinkCodec(order, codec).wire(spec_of(Parameters({"predictions": rows})))
    update = ClientUpdate("u", "p", 0, Parameters({"predictions": rows}), num_examples=1)
    strategy = Distillation(buffer_size=40, staleness=Constant())
    state, start = strategy.init(Parameters({"predictions": np.full_like(rows, 0.1)})), np.full_like(rows, 0.1)
    for seed in range(40):
        decoded = wire.encode(update.payload, seed, None, {}).received
        assert np.abs(decoded["predictions"] - rows).max() < 1 / 127
        state = strategy.accumulate(state, update._replace(payload=decoded), 0)
    new = strategy.aggregate(state, Parameters({"predictions": start}))[1]["predictions"]
    np.testing.assert_allclose(new.sum(axis=1), 1, atol=1e-6)
    assert np.abs(new - rows).max() < 4 / 127 / np.sqrt(40)  # without a bias
