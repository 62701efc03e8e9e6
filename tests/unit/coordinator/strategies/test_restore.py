from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.ledger.memories import Row, from_rows, to_rows
from fedmq.coordinator.strategies import (
    AnyStrategy,
    Area,
    Ca2fl,
    Fadas,
    FedAsync,
    FedAvg,
    FedBuff,
    FedCompass,
    FedNova,
    FedStaleWeight,
    ParticipationCorrection,
    Port,
    Scaffold,
)
from fedmq.coordinator.strategies.math.server_optimizers import Adagrad, Adam, AmsGrad, SgdMomentum, Yogi
from fedmq.coordinator.strategies.math.staleness_weights import Polynomial
from fedmq.coordinator.strategies.protocol import RemembersParticipants, arrivals
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.methods import CONTROL, trained
from fedmq.schemas.parameters import Parameters
from tests.unit.coordinator.strategies.twins import model, payload_bytes, update

STRATEGIES: list[AnyStrategy] = [
    FedAsync(),
    FedBuff(buffer_size=3),
    FedBuff(buffer_size=3, server_learning_rate=0.3, normalize="weights"),
    FedBuff(buffer_size=3, server_optimizer=Adam()),
    FedBuff(buffer_size=3, server_optimizer=Yogi()),
    FedBuff(buffer_size=3, server_optimizer=Adagrad()),
    FedAvg(cohort_size=3, server_optimizer=SgdMomentum()),
    FedAvg(cohort_size=3),
    FedBuff(buffer_size=3, server_optimizer=AmsGrad()),
    Fadas(buffer_size=3, learning_rate=0.6, delay_threshold=1),
    FedNova(cohort_size=3, local_momentum=0.5),
    FedNova(buffer_size=3, staleness=Polynomial(1.0)),
    FedStaleWeight(buffer_size=3),
    ParticipationCorrection(buffer_size=3),
    ParticipationCorrection(buffer_size=3, measure="duration"),
    ParticipationCorrection(buffer_size=3, measure="interval", max_weight=1.5),
    Port(buffer_size=3, history=2),
    Ca2fl(num_participants=5, buffer_size=3, server_learning_rate=0.7),
    Area(num_participants=5, buffer_size=3),
    Scaffold(num_participants=5, buffer_size=3, staleness=Polynomial(1.0)),
    Scaffold(num_participants=5, cohort_size=3),
    FedCompass(num_participants=5),
]


GROUPS = (1, 2, 1, None, 2, 3, 1, None, 4, 3, 4)
"""Arrival groups of the updates, two or three at a time."""
ENDS = {4: 2, 6: 1, 9: 3}


def start() -> Parameters:
    rng = np.random.default_rng(1)
    return model(
        {
            "w": rng.normal(size=(5, 7)).astype(np.float32),
            "half": rng.normal(size=3).astype(np.float16),
            "brain": rng.normal(size=3).astype(ml_dtypes.bfloat16),
            "double": rng.normal(size=()),
            "moving_mean": rng.normal(size=7).astype(np.float32),
            "seed": np.array([1, 2], np.uint32),
        },
        {"moving_mean", "seed"},
    )


def run(
    folder: Path, strategy: AnyStrategy, restart_after: set[int], updates: int = 11
) -> tuple[Parameters, dict, dict]:
    """Return parameters and state after some updates; the state is written and read again after the given ones."""
    parameters = start()
    rng = np.random.default_rng(2)
    state = strategy.init(parameters)
    kept: dict[str, dict] = {}
    for number in range(updates):
        if strategy.cohort and state.count == 0:
            state = strategy.open_round(state, float(number) / 3)
        staleness = 0 if strategy.cohort else number % 4
        payload = {n: rng.normal(size=parameters[n].shape).astype(parameters[n].dtype) for n in parameters.averaged()}
        one = update(
            Parameters(payload), rng.uniform(0.1, 2), number, f"p{number % 5}", num_steps=number,
            train_s=rng.exponential(), beside={CONTROL: Parameters({n: payload[n] for n in trained(parameters)})},
        )  # fmt: skip
        if arrivals(strategy):
            one = one._replace(group=GROUPS[number])
        state = strategy.accumulate(state, one, staleness)
        if number in restart_after:
            checkpoint.write(folder / "state", state.arrays())
            if isinstance(state, RemembersParticipants):
                kept.update(from_rows(copied(to_rows(state.changed_memories()))))
            arrays = checkpoint.read(folder / "state").arrays
            arrays |= {f"memory/{p}/{n}": x.copy() for p, memory in kept.items() for n, x in memory.items()}
            for x in arrays.values():
                x.flags.writeable = False
            scalars = json.loads(json.dumps(state.scalars()))
            state = strategy.restore(arrays, scalars, parameters)
        if arrivals(strategy) and number in ENDS:
            state = strategy.close_group(state, ENDS[number])
        if strategy.ready(state, 0.0):
            state, parameters = strategy.aggregate(state, parameters)
    return parameters, state.arrays(), state.scalars()


def copied(rows: Iterable[Row]) -> list[Row]:
    """Return the state as SQLite gives it back."""
    return [(*row[:-1], bytes(row[-1])) for row in rows]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("restart_after", [{0}, {1, 4}, {2, 5, 8}, set(range(11))], ids=str)
def test_a_restored_run_gives_the_same_bytes_as_one_that_never_stopped(
    strategy: AnyStrategy, restart_after: set[int], tmp_path: Path
) -> None:
    straight, arrays, scalars = run(tmp_path, strategy, set())
    resumed, resumed_arrays, resumed_scalars = run(tmp_path, strategy, restart_after)
    assert payload_bytes(straight) != payload_bytes(start())
    assert payload_bytes(resumed) == payload_bytes(straight)
    assert payload_bytes(resumed_arrays) == payload_bytes(arrays)
    assert resumed_scalars == scalars


def test_a_state_that_was_restored_is_writeable_and_apart_from_the_checkpoint() -> None:
    strategy = FedBuff(buffer_size=3)
    parameters = model({"x": [0.0]})
    state = strategy.accumulate(strategy.init(parameters), update({"x": [1.0]}), 0)
    arrays = dict(state.arrays())
    restored = strategy.restore(arrays, state.scalars(), parameters)
    strategy.accumulate(restored, update({"x": [1.0]}), 0)
    assert arrays["sum/x"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("strategy", "other"),
    [
        (FedBuff(), FedBuff(server_optimizer=Adam())),
        (FedBuff(server_optimizer=Adam()), FedBuff(server_optimizer=SgdMomentum())),
        (FedBuff(), FedAsync()),
        (FedBuff(), FedStaleWeight()),
        (FedStaleWeight(), FedBuff()),
        (FedBuff(), Fadas()),
        (FedBuff(), Ca2fl(num_participants=1)),
        (Ca2fl(num_participants=1), FedBuff()),
        (FedBuff(), Area(num_participants=1)),
        (Area(num_participants=1), Ca2fl(num_participants=1)),
        (FedBuff(), Scaffold(num_participants=1, buffer_size=2)),
        (FedBuff(), FedCompass(num_participants=1)),
        (FedCompass(num_participants=1), FedBuff()),
    ],
)
def test_a_checkpoint_of_another_strategy_is_refused(strategy: AnyStrategy, other: AnyStrategy) -> None:
    parameters = model({"x": [0.0]})
    state = strategy.accumulate(strategy.init(parameters), update({"x": [1.0]}), 0)
    with pytest.raises(CheckpointError, match="resume with the strategy and model that wrote it"):
        other.restore(state.arrays(), state.scalars(), parameters)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    strategy = FedBuff()
    state = strategy.init(model({"x": [0.0, 1.0]}))
    with pytest.raises(CheckpointError, match=r"float32\[2\], expected float32\[1\]"):
        strategy.restore(state.arrays(), state.scalars(), model({"x": [0.0]}))
    with pytest.raises(CheckpointError, match=r"float32\[2\], expected float64\[2\]"):
        strategy.restore(state.arrays(), state.scalars(), model({"x": [0.0, 1.0]}, dtype=np.float64))


def test_peak_memory_is_accumulator_and_new_parameters() -> None:
    import tracemalloc

    parameters = Parameters({f"w{i}": np.ones(250_000, np.float32) for i in range(8)})
    delta = Parameters({n: np.ones_like(x) for n, x in parameters.items()})
    size = parameters.num_bytes
    strategy = FedBuff(buffer_size=2, staleness=Polynomial())
    tracemalloc.start()
    try:
        state = strategy.init(parameters)
        for number in range(4):
            state = strategy.accumulate(state, update(delta, 1.0, number), 0)
            if strategy.ready(state, 0.0):
                state, new = strategy.aggregate(state, parameters)
                del new
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.1 * size
