"""Frozen tensors that begin to move within a run: over both services, with codecs, restarts, standbys and backups."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker
from fedmq.coordinator.audit import audit
from fedmq.coordinator.decisions.commands import Distil
from fedmq.coordinator.decisions.events import Distilled
from fedmq.coordinator.service.leading import leadership
from fedmq.coordinator.settings import DownlinkSettings, TrainingSettings, UplinkSettings
from fedmq.coordinator.state.ledger.reader import LedgerReader, open_if_made
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import FedAsync, FedBuff
from fedmq.coordinator.strategies.math.server_optimizers import Adam
from fedmq.coordinator.strategies.protocol import Ensemble
from fedmq.coordinator.uplink import uplink_codec
from fedmq.participant.service import publishing
from fedmq.participant.service.publishing import ParticipantPublisher
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.frozen import Frozen
from fedmq.schemas.messages import UNFROZEN, Decline, TrainingConfig, Update
from fedmq.schemas.parameters import Parameters
from fedmq.studies.engine.replay import replay
from tests.integration.chunks.federation import DEADLINE_S, Result, Trainer, added, until
from tests.integration.chunks.test_frozen import Watching

FLAGS = {"000/base": True, "003/mean": False, "005/deep": True}
SCHEDULE = [{"version": 2, "tensors": ["*/deep"]}, {"version": 4, "tensors": ["*/base"]}]
BASE_BYTES, DEEP_BYTES = 80_000, 24_000


def initial() -> Parameters:
    tensors = {
        "000/base": np.linspace(0, 1, 20_000, dtype=np.float32).reshape(200, 100),
        "001/w": np.ones((100, 5), np.float32),
        "003/mean": np.full(7, 0.5, np.float32),
        "004/steps": np.array(7),
        "005/deep": np.full(6_000, 0.25, np.float32),
    }
    return Parameters(tensors, {"000/base", "003/mean", "004/steps", "005/deep"})


class FineTuner(Trainer):
    """A trainer that moves what its task says is trainable, and notes what that was by the version it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: dict[int, set[str]] = {}

    def train(self, parameters: Any, config: TrainingConfig) -> Any:
        self.trainings += 1
        if self.gate is not None:
            assert self.gate.wait(DEADLINE_S)
        assert list(parameters) == list(initial())
        moves = set(parameters) - parameters.non_trainable
        self.moved.setdefault(config.extra.get(UNFROZEN, 0), set()).update(moves)
        return Result({n: a + 0.01 * added(config.seed, n, a) if n in moves else a for n, a in parameters.items()})


class Unfreezing(Watching):
    def begin(self, versions: int = 6, **changed: Any) -> Any:
        given = {
            "initial_parameters": initial,
            "frozen": lambda: FLAGS,
            "training": TrainingSettings(learning_rate=0.1, unfreeze=SCHEDULE),
        }
        return super().begin(versions, **given | changed)

    def ledger(self) -> LedgerReader:
        return LedgerReader(self.run_dir / "ledger.sqlite")

    def version(self) -> int:
        reader = open_if_made(self.run_dir / "ledger.sqlite")
        if reader is None:
            return 0
        with reader as ledger:
            return 0 if ledger.is_new() else ledger.version()

    def bytes_of(self, name: str) -> dict[int, list[int]]:
        """Return base version -> bytes of each of a participant's tasks."""
        found: dict[int, list[int]] = {}
        for task, size in self.tasks_of(name):
            found.setdefault(task.base_version, []).append(size + (task.chunks.num_bytes if task.chunks else 0))
        return found

    def check_unfrozen(self) -> None:
        """Check that the run replays bit for bit, twice, and that all but the statistics moved."""
        checks = audit.verify(RunFolder(self.run_dir))
        assert [check for check in checks if not check.holds or check.left_out] == []
        final, first = self.final(), initial()
        assert list(final) == list(first)
        assert final.non_trainable == {"003/mean", "004/steps"}
        assert {name for name in first if not np.array_equal(final[name], first[name])} == {
            "000/base", "001/w", "005/deep",
        }  # fmt: skip
        again = replay(self.run_dir).parameters
        assert all(again[name].tobytes() == final[name].tobytes() for name in final)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Unfreezing]:
    one = Unfreezing(tmp_path, EmbeddedBroker())
    yield one
    one.close()


def sign(signed: bytes) -> str:
    return (signed[-32:].hex() * 2)[:128]


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "signed": {"sign": sign},
    "adam": {"strategy": FedBuff(buffer_size=2, server_optimizer=Adam(learning_rate=0.01))},
    "fedasync": {"strategy": FedAsync()},
    "topk": {"uplink": uplink_codec(UplinkSettings(codec="topk", fraction=0.1), "delta")},
    "powersgd": {"uplink": uplink_codec(UplinkSettings(codec="powersgd"), "delta")},
    "int8": {"uplink": uplink_codec(UplinkSettings(codec="int8"), "delta")},
    "bf16": {"downlink": DownlinkSettings(codec="bf16")},
    "hidden": {"downlink": DownlinkSettings(codec="hidden"), "sign": sign},
}


@pytest.mark.parametrize("way", WAYS)
def test_tensors_join_the_model_at_their_versions_and_the_run_replays_bit_for_bit(world, way):
    ended = world.begin(6, **WAYS[way])
    trainers = {name: FineTuner() for name in ("a", "b")}
    verify = {"verify": lambda signed, signature: sign(signed) == signature} if "sign" in WAYS[way] else {}
    left = [world.participant(name, trainer, **verify) for name, trainer in trainers.items()]
    assert ended.result(DEADLINE_S).version == 6
    assert [one.result(DEADLINE_S) for one in left] == ["run_finished"] * 2
    moved: dict[int, set[str]] = {}
    for trainer in trainers.values():
        for version, names in trainer.moved.items():
            moved.setdefault(version, set()).update(names)
    assert moved == {0: {"001/w"}, 2: {"001/w", "005/deep"}, 4: {"000/base", "001/w", "005/deep"}}
    assert world.sent(Decline) == []
    assert set(world.discarded()) <= {"run_finished", "task_closed"}
    world.check_unfrozen()


def test_the_frozen_part_comes_once_and_what_is_unfrozen_travels_from_its_version_on(world):
    ended = world.begin(6, buffer_size=1)
    world.participant("a", FineTuner())
    assert ended.result(DEADLINE_S).version == 6
    sizes = world.bytes_of("a")
    assert sizes[0][0] > BASE_BYTES + DEEP_BYTES
    assert max(sizes[1]) < 4_000
    assert all(DEEP_BYTES < size < DEEP_BYTES + 4_000 for size in [*sizes[2], *sizes[3]])
    assert all(BASE_BYTES + DEEP_BYTES < size < BASE_BYTES + DEEP_BYTES + 4_000 for size in [*sizes[4], *sizes[5]])
    digests = {task.base_version: task.frozen for task, _ in world.tasks_of("a")}
    assert digests[0] == digests[1] != digests[2] == digests[3] != digests[4]
    assert len(list((world.folder / "spool" / "a" / "frozen").iterdir())) == 1
    ups = {}
    for update, size in world.sent(Update):
        ups.setdefault(update.base_version, []).append(size + (update.chunks.num_bytes if update.chunks else 0))
    assert max(ups[0] + ups[1]) < 4_000
    assert min(ups[2] + ups[3]) > DEEP_BYTES
    assert min(ups[4] + ups[5]) > BASE_BYTES + DEEP_BYTES


def test_who_joins_late_gets_what_is_still_frozen_and_trains_what_moves(world):
    first, late = FineTuner(), FineTuner()
    ended = world.begin(8, buffer_size=1)
    world.participant("a", first)
    until(lambda: 2 in first.moved)
    first.gate = threading.Event()
    world.participant("late", late)
    until(lambda: bool(late.moved))
    first.gate.set()
    assert ended.result(DEADLINE_S).version == 8
    assert 0 not in late.moved
    (task, size), *_ = world.tasks_of("late")
    assert task.base_version >= 2
    assert size + (task.chunks.num_bytes if task.chunks else 0) > BASE_BYTES + DEEP_BYTES
    assert world.sent(Decline) == []
    world.check_unfrozen()


def test_an_update_that_was_trained_before_the_unfreezing_still_counts(world):
    slow, fast = FineTuner(), FineTuner()
    slow.gate = threading.Event()
    ended = world.begin(6, buffer_size=1)
    world.participant("slow", slow)
    until(lambda: slow.trainings == 1)
    world.participant("fast", fast)
    until(lambda: 2 in fast.moved)
    slow.gate.set()
    assert ended.result(DEADLINE_S).version == 6
    with world.ledger() as ledger:
        stale = [row for row in ledger.updates() if row.base_version < 2 <= row.base_version + row.staleness]
    assert "slow" in {row.participant_id for row in stale}
    assert all(row.weight for row in stale if row.version is not None)
    world.check_unfrozen()


@pytest.mark.parametrize("way", ["plain", "topk", "hidden"])
def test_both_sides_restart_around_the_unfreezing_and_a_standby_takes_over(world, monkeypatch, way):
    monkeypatch.setattr(leadership, "ANSWER_S", 0.05)
    more = {"buffer_size": 1, **{key: value for key, value in WAYS[way].items() if key != "sign"}}
    for version in (1, 2, 4):
        world.begin(7, **more)
        trainer = FineTuner()
        world.participant("a", trainer)
        until(lambda: world.version() >= version)  # noqa: B023
        world.stop("a")
        if version == 2:
            active = world.newest_coordinator
            ended = world.begin(7, **more)
            active.stop()
        else:
            world.stop_coordinator()
    world.stop_coordinator()
    ended = world.begin(7, **more, frozen=None)
    world.participant("a", FineTuner())
    assert ended.result(DEADLINE_S).version == 7
    world.check_unfrozen()


def test_a_folder_that_is_restored_from_before_the_unfreezing_goes_on(world):
    world.begin(7, buffer_size=1)
    world.participant("a", FineTuner())
    until(lambda: world.version() >= 1)
    world.stop_coordinator()
    backup = world.folder / "backup"
    shutil.copytree(world.run_dir, backup)
    world.begin(7, buffer_size=1)
    until(lambda: world.version() >= 4)
    world.stop_coordinator()
    shutil.rmtree(world.run_dir)
    shutil.copytree(backup, world.run_dir)
    again = world.begin(7, buffer_size=1)
    assert again.result(DEADLINE_S).version == 7
    with world.ledger() as ledger:
        assert len(ledger.set_backs()) == 1
    world.check_unfrozen()


def test_lost_checkpoints_are_made_again_from_the_archive_over_an_unfreezing(world):
    ended = world.begin(6, buffer_size=1)
    world.participant("a", FineTuner())
    until(lambda: world.version() >= 4)
    world.stop_coordinator()
    assert not ended.result(DEADLINE_S).finished
    for folder in ("checkpoints", "copies"):
        for file in (world.run_dir / folder).glob("*.safetensors"):
            file.unlink()
    again = world.begin(6, buffer_size=1)
    assert again.result(DEADLINE_S).version == 6
    world.check_unfrozen()


def test_an_older_participant_gets_whole_tasks_all_along(world, monkeypatch):
    monkeypatch.setattr(
        ParticipantPublisher, "send_hello", lambda self, hello: publishing.publish_control(self._context, hello)
    )
    ended = world.begin(6, buffer_size=1)
    world.participant("a", FineTuner())
    assert ended.result(DEADLINE_S).version == 6
    assert {task.frozen for task, _ in world.tasks_of("a")} == {None}
    assert world.discarded() == {}


def test_a_run_keeps_its_schedule_for_life(world):
    world.begin(6, buffer_size=1)
    world.participant("a", FineTuner())
    until(lambda: world.version() >= 1)
    world.stop_coordinator()
    changed = TrainingSettings(learning_rate=0.1, unfreeze=SCHEDULE[:1])
    with pytest.raises(ConfigError, match=r"training\.unfreeze was .* and is now .*another run_id"):
        world.begin(6, buffer_size=1, training=changed).result(DEADLINE_S)
    with pytest.raises(ConfigError, match=r"training\.unfreeze was .* and is now None"):
        world.begin(6, buffer_size=1, training=TrainingConfig(learning_rate=0.1)).result(DEADLINE_S)


def test_a_pattern_that_matches_nothing_ends_the_start_before_the_broker_is_there(world):
    training = TrainingSettings(unfreeze=[{"version": 1, "tensors": ["005/depe"]}])
    with pytest.raises(ConfigError, match="did you mean 005/deep"):
        world.begin(6, training=training).result(DEADLINE_S)
    assert not (world.run_dir / "ledger.sqlite").exists()


@dataclass(frozen=True)
class Polishing(FedBuff):
    """A strategy of a user's own that distils each version from the one before, and takes new tensors."""

    distil_timeout_s: float = DEADLINE_S

    def ensemble(self, state: Any, parameters: Parameters) -> Ensemble:
        return Ensemble(parameters, (parameters,), (1.0,))

    def adopt(self, state: Any, parameters: Parameters, distilled: Parameters) -> tuple[Any, Parameters]:
        state.clear()
        return state, distilled


class Polisher:
    """A distiller that must get whole models, and moves all that it is asked for."""

    def submit(self, order: Distil, on_result: Callable[[Any], None], part: Frozen | None = None) -> None:
        (model,) = order.ensemble.models
        assert part is not None
        assert list(part.join(model)) == list(initial())
        made = {name: model[name] + np.float32(order.version) for name in model.averaged()}
        on_result(Distilled(order.version, Parameters(made)))

    def give_up(self) -> None:
        pass


def test_a_strategy_that_distils_and_takes_new_tensors_gets_whole_models_after_an_unfreezing(world):
    ended = world.begin(6, strategy=Polishing(buffer_size=2), distiller=Polisher())
    world.participant("a", FineTuner())
    assert ended.result(DEADLINE_S).version == 6
    with world.ledger() as ledger:
        assert ledger.distillations() == dict.fromkeys(range(1, 7), "")
    final, first = world.final(), initial()
    assert np.allclose(final["001/w"] - first["001/w"], 1 + 2 + 3 + 4 + 5 + 6)
    assert np.allclose(final["005/deep"] - first["005/deep"], 3 + 4 + 5 + 6)
    assert np.allclose(final["000/base"] - first["000/base"], 5 + 6)
    assert np.array_equal(final["003/mean"], first["003/mean"])
