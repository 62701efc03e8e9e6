from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from fedmq.coordinator.settings import DownlinkSettings, UplinkSettings
from fedmq.coordinator.strategies.fedbuff import FedBuff
from fedmq.coordinator.strategies.feddf import EnsembleState, FedDf, moved
from fedmq.coordinator.strategies.math.staleness_weights import Constant, Polynomial
from fedmq.coordinator.strategies.protocol import ClientUpdate
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.parameters import Parameters

START = Parameters({"w": np.array([1.0, 2.0], np.float32), "steps": np.array(3)}, {"steps"})


def sent(*values: float, q: float = 1.0) -> ClientUpdate:
    payload = Parameters({"w": np.array(values, np.float32)})
    return ClientUpdate("u", "p", 0, payload, num_examples=1, client_weight=q)


def w(parameters: Parameters) -> list[float]:
    return parameters["w"].tolist()


def full(strategy: FedDf, *updates: tuple[ClientUpdate, int]) -> EnsembleState:
    state = strategy.init(START)
    for update, staleness in updates:
        state = strategy.accumulate(state, update, staleness)
    assert strategy.ready(state, 0.0)
    return state


def test_the_ensemble_has_the_models_that_were_trained_and_starts_from_fedbuffs_version() -> None:
    strategy = FedDf(buffer_size=2)
    state = full(strategy, (sent(1.0, 0.0), 0), (sent(0.0, 4.0), 0))
    found = strategy.ensemble(state, START)
    assert [w(model) for model in found.models] == [[2.0, 2.0], [1.0, 6.0]]
    assert found.weights == (0.5, 0.5)
    assert w(found.start) == [1.5, 4.0]
    assert all(model["steps"] == 3 and model.non_trainable == {"steps"} for model in (found.start, *found.models))
    assert w(START) == [1.0, 2.0]
    assert state.count == 2  # nothing has changed


def test_weights_are_staleness_times_client_weight_over_their_sum() -> None:
    strategy = FedDf(buffer_size=3, staleness=Polynomial(0.5))
    state = strategy.init(START)
    for _ in range(3):  # three former versions
        for _ in range(3):
            state = strategy.accumulate(state, sent(0.0, 0.0), 0)
        state, parameters = strategy.aggregate(state, state.current)
    for update, staleness in ((sent(1.0, 0.0), 0), (sent(1.0, 0.0, q=2.0), 3), (sent(1.0, 0.0), 8)):
        state = strategy.accumulate(state, update, staleness)
    # s(0) = 1, s(3) = 1/2, s(8) = 1/3; the base of the third is not kept
    assert strategy.weights(state) == (1 / 3, 1 / 3, 1 / 9)
    assert strategy.ensemble(state, parameters).weights == (0.5, 0.5)
    assert len(strategy.ensemble(state, parameters).models) == 2


def test_a_stale_updates_model_is_against_the_version_that_it_started_from() -> None:
    strategy = FedDf(buffer_size=1, staleness=Constant(), former_versions=2)
    state, parameters = strategy.init(START), START
    for _ in range(3):  # versions [2, 2], [3, 2], [4, 2]
        state, parameters = strategy.aggregate(strategy.accumulate(state, sent(1.0, 0.0), 0), parameters)
    assert w(parameters) == [4.0, 2.0]
    for staleness, expected in ((0, [[4.0, 7.0]]), (1, [[3.0, 7.0]]), (2, [[2.0, 7.0]]), (3, [])):
        state = strategy.accumulate(state, sent(0.0, 5.0), staleness)
        assert [w(model) for model in strategy.ensemble(state, parameters).models] == expected
        state.clear()


def test_an_adopted_version_is_the_base_of_later_updates() -> None:
    strategy = FedDf(buffer_size=1)
    state = full(strategy, (sent(1.0, 0.0), 0))
    state, new = strategy.adopt(state, START, START.replace({**START, "w": np.array([9.0, 9.0], np.float32)}))
    assert w(new) == [9.0, 9.0]
    assert (state.count, state.models) == (0, {})
    assert not state.sums["w"].any()
    state = strategy.accumulate(state, sent(0.5, 0.0), 0)
    assert w(strategy.ensemble(state, new).models[0]) == [9.5, 9.0]
    state.clear()
    state = strategy.accumulate(state, sent(0.5, 0.0), 1)
    assert w(strategy.ensemble(state, new).models[0]) == [1.5, 2.0]


def test_models_without_weight_are_in_no_ensemble() -> None:
    strategy = FedDf(buffer_size=2)
    found = strategy.ensemble(full(strategy, (sent(1.0, 0.0, q=0.0), 0), (sent(0.0, 1.0), 0)), START)
    assert [w(model) for model in found.models] == [[1.0, 3.0]]
    nobody = strategy.ensemble(full(strategy, (sent(1.0, 0.0, q=0.0), 0), (sent(0.0, 1.0, q=0.0), 0)), START)
    assert (nobody.models, nobody.weights, w(nobody.start)) == ((), (), w(START))


def test_a_plain_version_has_fedbuffs_bits() -> None:
    rng = np.random.default_rng(4)
    start = Parameters({"a": rng.normal(size=(7, 3)).astype(np.float32), "b": rng.normal(size=5).astype(np.float32)})
    start = start.packed()
    strategies = FedDf(buffer_size=3, server_learning_rate=0.7), FedBuff(buffer_size=3, server_learning_rate=0.7)
    states, models = [one.init(start) for one in strategies], [start, start]
    for number in range(9):
        delta = Parameters({n: rng.normal(size=x.shape).astype(np.float32) for n, x in start.items()}).packed()
        update = ClientUpdate("u", "p", 0, delta, num_examples=1, client_weight=1.0 + number / 10)
        for i, one in enumerate(strategies):
            states[i] = one.accumulate(states[i], update, number % 4)
            if one.ready(states[i], 0.0):
                assert i or w_of(one.ensemble(states[0], models[0]).start) == w_of(
                    one.aggregate(copied(one, states[0], models[0]), models[0])[1]
                )
                states[i], models[i] = one.aggregate(states[i], models[i])
    assert w_of(models[0]) == w_of(models[1]) != w_of(start)


def w_of(parameters: Parameters) -> list[bytes]:
    return [array.tobytes() for array in parameters.values()]


def copied(strategy: FedDf, state: EnsembleState, parameters: Parameters) -> EnsembleState:
    return strategy.restore({n: a.copy() for n, a in state.arrays().items()}, state.scalars(), parameters)


def test_a_restored_state_goes_on_with_the_same_bits() -> None:
    strategy = FedDf(buffer_size=2, former_versions=2)
    rng = np.random.default_rng(1)
    state, parameters = strategy.init(START), START
    for number in range(9):
        update = sent(*rng.normal(size=2))
        other = copied(strategy, state, parameters)
        assert other.arrays().keys() == state.arrays().keys()
        state, other = (strategy.accumulate(one, update, number % 4) for one in (state, other))
        if strategy.ready(state, 0.0):
            mine, theirs = strategy.ensemble(state, parameters), strategy.ensemble(other, parameters)
            assert [w_of(one) for one in (mine.start, *mine.models)] == [
                w_of(o) for o in (theirs.start, *theirs.models)
            ]
            assert mine.weights == theirs.weights
            distilled = mine.start.replace({**mine.start, "w": rng.normal(size=2).astype(np.float32)})
            state, parameters = strategy.adopt(state, parameters, distilled)
    assert len(state.former) == 2


def test_the_state_holds_no_more_models_than_it_says() -> None:
    strategy = FedDf(buffer_size=3, former_versions=2)
    state, parameters, most = strategy.init(START), START, 0
    for _ in range(5):
        for _ in range(3):
            state = strategy.accumulate(state, sent(0.0, 1.0), 0)
            most = max(most, len(state.arrays()))
        state, parameters = strategy.aggregate(state, parameters)
    assert most == 3 + 2 + 1  # K models, former versions, the sums


def test_a_checkpoint_of_another_model_is_refused() -> None:
    strategy = FedDf(buffer_size=2)
    state = strategy.accumulate(strategy.init(START), sent(1.0, 1.0), 0)
    arrays, scalars = state.arrays(), state.scalars()
    with pytest.raises(CheckpointError, match="'model/0/w' of the checkpoint's strategy state is nothing"):
        strategy.restore({n: a for n, a in arrays.items() if not n.startswith("model/")}, scalars, START)
    with pytest.raises(CheckpointError, match=r"'model/0/w' .* is float32\[3\], expected float32\[2\]"):
        strategy.restore(arrays | {"model/0/w": np.zeros(3, np.float32)}, scalars, START)
    with pytest.raises(CheckpointError, match="has other arrays"):
        strategy.restore(arrays | {"model/1/w": np.zeros(2, np.float32)}, scalars, START)


def test_a_lost_buffer_loses_its_models_and_no_version() -> None:
    strategy = FedDf(buffer_size=1)
    state, parameters = strategy.aggregate(full(strategy, (sent(1.0, 0.0), 0)), START)
    state = strategy.accumulate(state, sent(1.0, 0.0), 0)
    state.drop(None)
    assert (state.count, state.models, len(state.former)) == (0, {}, 1)
    assert not strategy.ensemble(strategy.accumulate(state, sent(0, 0, q=0.0), 0), parameters).models


def test_half_precision_is_added_in_single_and_rounded_once() -> None:
    base = Parameters({"w": np.array([1.0, 2048.0], np.float16)})
    made = moved(base, Parameters({"w": np.array([0.25, 1.0], np.float16)}))
    assert made["w"].dtype == np.float16
    assert made["w"].tolist() == [1.25, 2048.0]


def test_codecs_that_cannot_work_are_refused_with_their_key() -> None:
    assert [list(UplinkSettings(codec=c).unmet(FedDf())) for c in ("int8", "int4", "topk", "powersgd", "bf16")] == [
        []
    ] * 5
    assert list(DownlinkSettings(codec="bf16").unmet(FedDf())) == []
    assert list(DownlinkSettings(codec="hidden").unmet(FedDf())) == [
        ("downlink.codec", "got 'hidden', allowed with the strategy feddf: none, bf16")
    ]


def test_settings_without_sense_are_refused() -> None:
    for wrong in ({"former_versions": -1}, {"distil_timeout_s": 0.0}, {"buffer_size": 0}, {"min_updates": 3}):
        with pytest.raises(ValidationError):
            FedDf(**wrong)  # type: ignore[arg-type]
