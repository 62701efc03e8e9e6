"""Updates that lie in one block make the same versions, to the last byte, as the same tensors one by one."""

import ml_dtypes
import numpy as np
import pytest

from fedmq.coordinator.strategies import Area, Ca2fl, Fadas, FedAsync, FedAvg, FedBuff, FedNova, FedStaleWeight
from fedmq.coordinator.strategies.math.arithmetic import CHUNK_ELEMENTS
from fedmq.coordinator.strategies.math.next_version import next_version
from fedmq.coordinator.strategies.math.server_optimizers import Adagrad, Adam, Yogi
from fedmq.schemas.parameters import Parameters
from tests.unit.coordinator.strategies.twins import update

STRATEGIES = [
    FedBuff(buffer_size=3),
    FedBuff(buffer_size=3, server_optimizer=Adam(learning_rate=0.1)),
    FedAvg(cohort_size=3),
    FedAsync(),
    FedNova(buffer_size=3),
]
RNG = np.random.default_rng(8)


def made_of(strategy, start, payloads):
    parameters, state = start, strategy.init(start)
    for i, payload in enumerate(payloads):
        state = strategy.accumulate(state, update(payload, q=0.3 + i, number=i, num_steps=i + 1), 0)
        if strategy.ready(state, 0.0):
            state, parameters = strategy.aggregate(state, parameters)
    state = strategy.accumulate(state, update(payloads[0]), 0)
    return parameters, state


def same(ours, theirs):
    return [(n, a.tobytes()) for n, a in ours.items()] == [(n, a.tobytes()) for n, a in theirs.items()]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("flags", [set(), {"mean"}], ids=["all trainable", "with a mean that is not"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_a_block_changes_no_byte(strategy, flags, dtype):
    def tensors():
        shapes = {"w": (5, 3), "b": (3,), "mean": (), "none": (0, 2)}
        return Parameters({n: np.asarray(RNG.standard_normal(s)).astype(dtype) for n, s in shapes.items()}, flags)

    start, payloads = tensors(), [tensors() for _ in range(6)]
    plain, plain_state = made_of(strategy, start, payloads)
    packed, packed_state = made_of(strategy, start.packed(), [p.packed() for p in payloads])
    mixed, mixed_state = made_of(strategy, start, [p.packed() if i % 2 else p for i, p in enumerate(payloads)])
    assert plain.block is not None, "versions are in a block whatever the first one was in"
    assert same(plain, packed)
    assert same(plain, mixed)
    assert same(plain_state.arrays(), packed_state.arrays())
    assert same(plain_state.arrays(), mixed_state.arrays())


def test_a_model_with_integers_beside_its_floats_is_carried_on_as_it_is():
    start = Parameters({"w": np.ones(3, np.float32), "steps": np.array(4)}, {"steps"})
    after, _ = made_of(FedBuff(buffer_size=1), start, [Parameters({"w": np.ones(3, np.float32)}).packed()])
    assert after["w"].tolist() == pytest.approx([1.3] * 3)
    assert after["steps"] is start["steps"]


def test_a_model_of_integers_alone_is_carried_on_as_it_is_too():
    start = Parameters({"steps": np.array([4, 5])}, {"steps"})
    made, new = next_version(start)
    assert made["steps"] is start["steps"]
    assert new == {}


LARGE = [
    *STRATEGIES,
    FedBuff(buffer_size=3, server_optimizer=Yogi()),
    FedAvg(cohort_size=3, server_optimizer=Adagrad()),
    Fadas(buffer_size=3),
    Ca2fl(num_participants=4, buffer_size=3, server_learning_rate=0.5),
    Area(num_participants=4, buffer_size=3),
    FedStaleWeight(buffer_size=3),
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("strategy", LARGE, ids=repr)
def test_a_tensor_of_several_chunks_is_stepped_as_its_parts_are(strategy, dtype):
    size, parts = 2 * CHUNK_ELEMENTS + 4000, 8
    whole = [np.random.default_rng(i).standard_normal(size).astype(dtype) for i in range(7)]

    def version(cut):
        made = [Parameters({f"w{i}": piece for i, piece in enumerate(np.split(x, cut))}) for x in whole]
        parameters, state = made_of(strategy, made[0], made[1:])
        named = sorted(state.arrays().items(), key=lambda pair: (pair[0].rpartition("w")[0], pair[0]))
        return np.concatenate([*parameters.values()]), np.concatenate([a.ravel().astype(np.float64) for _, a in named])

    one, several = version(1), version(parts)
    assert one[0].tobytes() == several[0].tobytes()
    assert one[1].tobytes() == several[1].tobytes()
    assert (one[0] != whole[0]).mean() > 0.5
