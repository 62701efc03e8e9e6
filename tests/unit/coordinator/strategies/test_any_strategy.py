from __future__ import annotations

import dataclasses
import tomllib

import pytest
from pydantic import TypeAdapter, ValidationError

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
from fedmq.coordinator.strategies.fedasync import PendingUpdate
from fedmq.coordinator.strategies.math.server_optimizers import AmsGrad, Yogi
from fedmq.coordinator.strategies.math.staleness_weights import DelayAdaptive, Hinge, Polynomial
from fedmq.coordinator.strategies.protocol import Strategy, Synchronous
from fedmq.coordinator.strategies.states.buffer import BufferState

ADAPTER: TypeAdapter[AnyStrategy] = TypeAdapter(AnyStrategy)


def from_toml(text: str) -> AnyStrategy:
    return ADAPTER.validate_python(tomllib.loads(text))


def test_a_table_becomes_a_strategy() -> None:
    assert from_toml('name = "fedbuff"\nbuffer_size = 5\nstaleness = {name = "polynomial", a = 0.5}') == FedBuff(
        buffer_size=5, staleness=Polynomial(0.5)
    )
    assert from_toml('name = "fedasync"\nalpha = 0.9\n[staleness]\nname = "hinge"\na = 10\nb = 4') == FedAsync(
        0.9, Hinge(10, 4)
    )
    assert from_toml('name = "fedavg"\ncohort_size = 4\nserver_optimizer = {name = "yogi"}') == FedAvg(
        cohort_size=4, server_optimizer=Yogi()
    )


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ('name = "fadas"\nlearning_rate = 0.01\ndelay_threshold = 3', Fadas(learning_rate=0.01, delay_threshold=3)),
        ('name = "participation"\nmeasure = "interval"', ParticipationCorrection(measure="interval")),
        ('name = "fedstaleweight"\nbuffer_size = 3', FedStaleWeight(buffer_size=3)),
        ('name = "port"\nhistory = 2\nbeta = 4', Port(history=2, beta=4.0)),
        ('name = "ca2fl"\nnum_participants = 7', Ca2fl(num_participants=7)),
        ('name = "area"\nnum_participants = 7', Area(num_participants=7)),
        ('name = "scaffold"\nnum_participants = 7\nbuffer_size = 2', Scaffold(num_participants=7, buffer_size=2)),
        ('name = "fednova"\nbuffer_size = 3\nstaleness = {name = "hinge", a = 1, b = 2}',
         FedNova(buffer_size=3, staleness=Hinge(1, 2))),
        ('name = "fedcompass"\nnum_participants = 7\nmin_steps = 5\nlatest_factor = 1.2',
         FedCompass(num_participants=7, min_steps=5, latest_factor=1.2)),
        ('name = "fedbuff"\nstaleness = {name = "delay_adaptive", concurrency = 16}',
         FedBuff(staleness=DelayAdaptive(16))),
        ('name = "fedbuff"\nserver_optimizer = {name = "amsgrad"}', FedBuff(server_optimizer=AmsGrad())),
    ],
)  # fmt: skip
def test_each_of_the_others_too_and_through_json_and_back(text: str, strategy: AnyStrategy) -> None:
    assert from_toml(text) == strategy
    assert ADAPTER.validate_json(ADAPTER.dump_json(strategy)) == strategy


def test_values_print_compare_hash_and_cannot_be_changed() -> None:
    strategy = FedBuff(buffer_size=5)
    assert "buffer_size=5" in repr(strategy)
    assert "Polynomial(a=0.5" in repr(strategy)
    assert strategy == FedBuff(buffer_size=5) != FedBuff(buffer_size=6)
    assert len({strategy, FedBuff(buffer_size=5), FedAsync()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.buffer_size = 6  # type: ignore[misc]


def test_a_strategy_goes_through_json_and_back() -> None:
    strategy = FedBuff(buffer_size=7, normalize="weights", server_optimizer=Yogi(tau=0.01))
    assert ADAPTER.validate_json(ADAPTER.dump_json(strategy)) == strategy


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ('name = "fedbuf"', (), "'fedasync', 'fedbuff', 'fedavg'"),
        ("buffer_size = 3", (), "discriminator 'name'"),
        ('name = "fedbuff"\nbufer_size = 3', ("fedbuff", "bufer_size"), "Unexpected keyword"),
        ('name = "fedbuff"\nbuffer_size = 0', ("fedbuff", "buffer_size"), "greater than or equal to 1"),
        ('name = "fedbuff"\nnormalize = "sum"', ("fedbuff", "normalize"), "'count' or 'weights'"),
        ('name = "fedbuff"\nserver_learning_rate = inf', ("fedbuff", "server_learning_rate"), "finite"),
        ('name = "fedbuff"\nstaleness = {name = "poly"}', ("fedbuff", "staleness"), "'polynomial'"),
        ('name = "fedasync"\nalpha = 1.5', ("fedasync", "alpha"), "less than or equal to 1"),
        ('name = "fedasync"\nalpha = 0', ("fedasync", "alpha"), "greater than 0"),
        ('name = "fedavg"\nover_selection = 0.5', ("fedavg", "over_selection"), "greater than or equal to 1"),
        ('name = "ca2fl"', ("ca2fl", "num_participants"), "required"),
        ('name = "participation"\nmeasure = "speed"', ("participation", "measure"), "'staleness', 'duration' or"),
        ('name = "fednova"\nbuffer_size = 2\ncohort_size = 3', ("fednova",), "makes fednova asynchronous"),
        ('name = "fedavg"\ncohort_size = 3\nmin_updates = 4', ("fedavg",), "more than cohort_size = 3"),
        (
            'name = "fedbuff"\nserver_learning_rate = 0.5\nserver_optimizer = {name = "adam"}',
            ("fedbuff",),
            "has no effect beside a server_optimizer",
        ),
    ],
)
def test_mistakes_are_named_with_their_place(text: str, place: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        from_toml(text)
    (error,) = caught.value.errors()
    assert error["loc"] == place
    assert said in error["msg"]


def test_the_strategies_are_what_the_core_expects() -> None:
    fedasync: Strategy[PendingUpdate] = FedAsync()
    fedbuff: Strategy[BufferState] = FedBuff()
    fedavg: Synchronous[BufferState] = FedAvg()
    assert [s.name for s in (fedasync, fedbuff, fedavg)] == ["fedasync", "fedbuff", "fedavg"]
