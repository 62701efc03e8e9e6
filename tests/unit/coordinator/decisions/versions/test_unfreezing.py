"""Frozen tensors begin to move at a version: exact numbers, for every strategy that can, and across restarts."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.coordinator.decisions.commands import Accept, Discard, IssueTask, NewVersion, TellUnfrozen
from fedmq.coordinator.decisions.requirements import check_requirements
from fedmq.coordinator.decisions.versions.unfreezing import FrozenParts, Unfrozen, check_growth, scheduled
from fedmq.coordinator.settings import DownlinkSettings, RunSettings, StopSettings, TrainingSettings, Unfreeze
from fedmq.coordinator.strategies import Area, Fadas, FedAsync, FedAvg, FedBuff, FedNova, Port, Scaffold
from fedmq.coordinator.strategies.math.server_optimizers import Adam, SgdMomentum
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.frozen import split_off
from fedmq.schemas.messages import UNFROZEN
from fedmq.schemas.parameters import Parameters
from tests.unit.coordinator.decisions.harness import Bench, of, only

FLAGS = {"base/a": True, "base/mean": False, "deep/b": True}


def tensors(**values) -> Parameters:
    return Parameters({name.replace("_", "/"): np.array(value, np.float32) for name, value in values.items()})


WHOLE = Parameters(tensors(base_a=[1, 2], base_mean=[9], w=[0], deep_b=[5]), set(FLAGS))
MOVING, PART = split_off(WHOLE, FLAGS)
assert PART is not None


def parts(*entries: tuple[int, str]) -> FrozenParts:
    made = scheduled(PART, FLAGS, [Unfreeze(version=version, tensors=(pattern,)) for version, pattern in entries])
    assert made is not None
    return made


def values(parameters) -> dict[str, list[float]]:
    return {name: array.tolist() for name, array in parameters.items()}


def bench(strategy=None, *entries, **more) -> Bench:
    frozen = parts(*(entries or ((1, "base/*"),)))
    return Bench(
        strategy or FedBuff(buffer_size=1, staleness={"name": "constant"}), model=MOVING, frozen=frozen, **more
    )


# The schedule


def test_a_pattern_takes_what_an_optimizer_could_step_and_leaves_the_rest_frozen():
    assert parts((3, "base/*"), (5, "*")).schedule == (Unfrozen(3, ("base/a",)), Unfrozen(5, ("deep/b",)))


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (((1, "bse/a"),), r"unfreeze\.0\.tensors: 'bse/a' matches none of the 2 frozen .*; did you mean base/a\?"),
        (((1, "x"),), r"'x' matches none of the 2 frozen tensors that can be trained: 'base/a', 'deep/b'"),
        (((1, "base/mean"),), r"'base/mean' matches only tensors that no optimizer steps, 'base/mean' the first"),
        (((1, "*/a"), (2, "base/*")), r"unfreeze\.1\.tensors: 'base/\*' matches only tensors that an earlier entry"),
    ],
)
def test_a_pattern_that_matches_nothing_is_told_with_the_nearest_name(entries, match):
    with pytest.raises(ConfigError, match=match):
        parts(*entries)


def test_a_schedule_without_frozen_tensors_is_refused():
    with pytest.raises(ConfigError, match=r"training\.unfreeze: the model has no frozen tensors"):
        scheduled(None, {}, [Unfreeze(version=1, tensors=("*",))])


def test_versions_must_rise_and_the_key_of_tasks_is_free():
    with pytest.raises(ValueError, match="versions 3, 3: each must be above the one before it"):
        TrainingSettings(unfreeze=[{"version": 3, "tensors": ["a"]}, {"version": 3, "tensors": ["b"]}])
    with pytest.raises(ValueError, match="unfreeze adds the key 'unfrozen' to extra"):
        TrainingSettings(extra={"unfrozen": 1}, unfreeze=[{"version": 3, "tensors": ["a"]}])


@pytest.mark.parametrize(
    "strategy", [Area(num_participants=2), Scaffold(num_participants=2), Port()], ids=lambda one: one.name
)
def test_a_strategy_whose_state_cannot_grow_is_refused_with_the_key(strategy):
    training = TrainingSettings(learning_rate=0.1, unfreeze=[{"version": 1, "tensors": ["*"]}])
    with pytest.raises(ConfigError, match=rf"training\.unfreeze: leave it out: the state of {strategy.name} cannot"):
        check_requirements(
            RunSettings(run_id="r", stop=StopSettings(max_versions=1)), strategy, training, evaluates=False
        )


class Stubborn(FedBuff):
    def restore(self, arrays, scalars, parameters):
        if "base/a" in parameters:
            raise KeyError("base/a")
        return super().restore(arrays, scalars, parameters)


def test_a_users_strategy_that_does_not_take_new_tensors_is_told_at_the_start():
    with pytest.raises(ConfigError, match=r"the state of Stubborn does not grow by new tensors: restore\(\) raised"):
        check_growth(Stubborn(), MOVING, parts((1, "base/*")))


# The parts of each version


def test_the_part_loses_tensors_at_their_versions_and_has_a_digest_of_its_own():
    made = parts((2, "base/*"), (4, "deep/*"))
    assert [sorted(made.at(v).by_name) for v in (0, 1, 2, 3, 4, 9)] == [
        ["base/a", "base/mean", "deep/b"], ["base/a", "base/mean", "deep/b"],
        ["base/mean", "deep/b"], ["base/mean", "deep/b"], ["base/mean"], ["base/mean"],
    ]  # fmt: skip
    assert made.digests() == [made.at(v).digest for v in (0, 2, 4)]
    assert len(set(made.digests())) == 3
    assert FrozenParts.restored(PART, made.scalars()).schedule == made.schedule


def test_the_whole_model_is_the_same_at_every_version_and_what_moves_is_trainable():
    made = parts((2, "base/*"), (4, "deep/*"))
    for version in range(6):
        moving = made.moving(version, WHOLE)
        assert values(made.whole(version, moving)) == values(WHOLE)
        assert made.beside(moving) is made.at(version)
        assert moving.non_trainable == frozenset()
    assert list(made.moving(4, WHOLE)) == ["base/a", "w", "deep/b"]


def test_nothing_is_frozen_any_more_if_all_of_it_moves():
    whole = Parameters(tensors(a=[1], w=[0]), {"a"})
    moving, part = split_off(whole, ["a"])
    made = scheduled(part, {"a": True}, [Unfreeze(version=1, tensors=("a",))])
    assert made.at(1) is None
    assert made.digests()[1] is None
    assert values(made.whole(1, made.grown(1, moving))) == values(whole)


# The run


def test_at_its_version_a_tensor_joins_the_model_and_its_updates_count():
    one = bench()
    first = only(IssueTask, one.hello("a"))
    assert UNFROZEN not in first.training.extra
    commands = one.update(first, tensors=tensors(w=[3]))
    assert only(TellUnfrozen, commands) == TellUnfrozen(1, ("base/a",))
    assert values(one.core.parameters) == {"base/a": [1, 2], "w": [3]}
    second = only(IssueTask, commands)
    assert second.training.extra[UNFROZEN] == 1
    assert values(one.core.task_tensors) == {"base/a": [1, 2], "w": [3]}
    one.update(second, tensors=tensors(base_a=[10, 0], w=[1]))
    assert values(one.core.parameters) == {"base/a": [11, 2], "w": [4]}


def test_an_update_of_an_older_version_counts_as_a_delta_of_zero_with_its_full_weight():
    one = bench(FedBuff(buffer_size=2, staleness={"name": "constant"}), (1, "base/*"), concurrency=3)
    slow, fast, also = (only(IssueTask, one.hello(name)) for name in "abc")
    one.update(fast, tensors=tensors(w=[2]))
    (next_one,) = of(IssueTask, one.update(also, tensors=tensors(w=[2])))[:1]
    assert one.core.version == 1
    assert only(Accept, one.update(slow, tensors=tensors(w=[4]))).staleness == 1
    commands = one.update(next_one, tensors=tensors(base_a=[8, 8], w=[0]))
    assert only(NewVersion, commands).weights == (0.5, 0.5)
    assert values(one.core.parameters) == {"base/a": [5, 6], "w": [4]}  # half of (8, 8), as if the other had sent 0


def test_an_update_of_parameters_counts_with_the_frozen_bytes_that_it_was_trained_with():
    one = bench(FedAsync(alpha=0.5, staleness={"name": "constant"}), (1, "base/*"), concurrency=2)
    slow, fast = (only(IssueTask, one.hello(name)) for name in "ab")
    (second,) = of(IssueTask, one.update(fast, tensors=tensors(w=[2])))
    (third,) = of(IssueTask, one.update(second, tensors=tensors(base_a=[5, 6], w=[1])))
    assert values(one.core.parameters) == {"base/a": [3, 4], "w": [1]}
    one.update(slow, tensors=tensors(w=[1]))
    assert values(one.core.parameters) == {"base/a": [2, 3], "w": [1]}  # half way back to (1, 2)
    assert third.base_version == 2


@pytest.mark.parametrize("lie", [{"base_a": [1, 1], "w": [1]}, {"w": [1], "deep_b": [1]}])
def test_an_update_with_the_tensors_of_another_version_is_discarded(lie):
    one = bench()
    first = only(IssueTask, one.hello("a"))
    assert only(Discard, one.update(first, tensors=tensors(**lie))).reason == "wrong_shape"


def test_after_the_unfreezing_an_update_without_the_tensor_is_discarded():
    one = bench()
    second = only(IssueTask, one.update(only(IssueTask, one.hello("a")), tensors=tensors(w=[1])))
    assert only(Discard, one.update(second, tensors=tensors(w=[1]))).reason == "wrong_shape"


def test_momentum_stays_and_that_of_a_new_tensor_begins_at_zero():
    strategy = FedBuff(buffer_size=1, staleness={"name": "constant"}, server_optimizer=SgdMomentum(momentum=0.5))
    one = bench(strategy)
    second = only(IssueTask, one.update(only(IssueTask, one.hello("a")), tensors=tensors(w=[4])))
    one.update(second, tensors=tensors(base_a=[2, 2], w=[0]))
    assert values(one.core.parameters) == {"base/a": [3, 4], "w": [6]}  # w goes on by half of 4


GROWING = [
    FedBuff(buffer_size=2),
    FedBuff(buffer_size=2, server_optimizer=Adam(learning_rate=0.1)),
    FedAsync(),
    FedNova(buffer_size=2),
    Fadas(buffer_size=2),
    FedAvg(cohort_size=2),
]


def run(strategy, restart_at: set[int], downlink: str = "none") -> list[bytes]:
    """Return all parameters and states of eight updates, with restarts after some of them."""
    one = bench(
        strategy, (1, "base/*"), (3, "deep/*"), concurrency=2, downlink=DownlinkSettings(codec=downlink), seed=3
    )
    tasks = [*of(IssueTask, one.hello("a", "b"))]
    seen = []
    for i in range(8):
        task = tasks.pop(0)
        names = one.core.spec_of_update(task.base_version)
        sent = Parameters({t.name: np.full(t.shape, i + len(t.name), np.float32) for t in names})
        tasks += of(IssueTask, one.update(task, tensors=sent))
        if i in restart_at:
            one.restart()
        snapshot = one.core.snapshot()
        seen.append(b"".join(name.encode() + array.tobytes() for name, array in sorted(snapshot.arrays.items())))
    assert {"base/a", "w", "deep/b"} == one.core.parameters.keys()
    return seen


@pytest.mark.parametrize("strategy", GROWING, ids=repr)
def test_a_restart_at_any_moment_goes_on_with_the_same_bits(strategy):
    assert run(strategy, set(range(8))) == run(strategy, set())


def test_a_restart_with_a_hidden_state_goes_on_with_the_same_bits():
    strategy = FedBuff(buffer_size=1)
    assert run(strategy, set(range(8)), "hidden") == run(strategy, set(), "hidden")


def test_a_hidden_state_begins_again_with_the_parameters_and_is_sent_whole():
    one = bench(FedBuff(buffer_size=1, staleness={"name": "constant"}), downlink=DownlinkSettings(codec="hidden"))
    second = only(
        IssueTask, one.update(only(IssueTask, one.hello("a", codecs=("downlink",))), tensors=tensors(w=[0.3]))
    )
    assert second.downlink is not None
    assert second.downlink.held is None
    assert values(one.core.tensors_of(second)) == values(one.core.parameters)
