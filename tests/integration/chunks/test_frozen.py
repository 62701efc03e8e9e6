"""Models with a frozen part: it goes down once, in chunks, and never up; everybody gets a whole model all the same."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.coordinator.audit import audit
from fedmq.coordinator.settings import ArchiveSettings, DownlinkSettings, UplinkSettings
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import Area, FedAsync, FedBuff, Scaffold
from fedmq.coordinator.uplink import uplink_codec
from fedmq.participant.service import publishing
from fedmq.participant.service.publishing import ParticipantPublisher
from fedmq.schemas.codec import decode
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import Decline, Task, TrainingConfig, Update
from fedmq.schemas.parameters import Parameters
from tests.integration.chunks.federation import DEADLINE_S, Federation, Result, Trainer, added, is_chunk, until

FROZEN = ("000/base", "003/moving_mean")
MOVING_BYTES = 4 * (500 + 3) + 8


def initial() -> Parameters:
    tensors = {
        "000/base": np.linspace(0, 1, 20_000, dtype=np.float32).reshape(200, 100),
        "001/w": np.ones((100, 5), np.float32),
        "002/running": np.zeros(3, np.float32),
        "003/moving_mean": np.full(7, 0.5, np.float32),
        "004/steps": np.array(7),
    }
    return Parameters(tensors, {"000/base", "002/running", "003/moving_mean", "004/steps"})


class HeadTrainer(Trainer):
    """A trainer that must get the whole model, and moves all but its frozen part."""

    def __init__(self, moves: tuple[str, ...] = ("001/w", "002/running")) -> None:
        super().__init__()
        self._moves = moves

    def train(self, parameters: Any, config: TrainingConfig, correction: Any = None) -> Any:
        self.trainings += 1
        if self.gate is not None:
            assert self.gate.wait(DEADLINE_S)
        whole = initial()
        assert list(parameters) == list(whole)
        assert all(np.array_equal(parameters[name], whole[name]) for name in FROZEN)
        assert correction is None or list(correction) == ["001/w"]
        return Result({n: a + added(config.seed, n, a) if n in self._moves else a for n, a in parameters.items()})


class Watched(EmbeddedTransport):
    """A transport that keeps what it publishes: messages, and bytes of chunks by their queue."""

    def __init__(self, broker: EmbeddedBroker, name: str, log: list[tuple[str, Any]]) -> None:
        super().__init__(broker, name)
        self._log = log

    def publish(self, message: Any, timeout_s: float = 60.0) -> Any:
        self._log.append(("chunk" if is_chunk(message) else "message", message))
        return super().publish(message, timeout_s)


class Watching(Federation):
    """A federation that knows what was sent."""

    def __init__(self, folder: Path, broker: EmbeddedBroker) -> None:
        self.log: list[tuple[str, Any]] = []
        super().__init__(folder, Topology("p"), lambda name: Watched(broker, name, self.log))

    def begin(self, versions: int, **changed: Any) -> Any:
        given: dict[str, Any] = {"initial_parameters": initial, "frozen": lambda: FROZEN}
        return self.coordinator(versions, **given | {"archive": ArchiveSettings(max_bytes=2**30)} | changed)

    def sent(self, kind: type[Any]) -> list[tuple[Any, int]]:
        """Return the messages of a kind, with their bytes."""
        bodies = [m.body for what, m in list(self.log) if what == "message" and "kind" in m.headers]
        decoded = [(decode(body).message, len(body)) for body in bodies]
        return [(message, size) for message, size in decoded if isinstance(message, kind)]

    def tasks_of(self, name: str) -> list[tuple[Task, int]]:
        return [(task, size) for task, size in self.sent(Task) if task.participant_id == name]

    def final(self) -> Parameters:
        found = checkpoint.read(self.run_dir / "final.safetensors")
        return Parameters(found.arrays, set(found.meta["non_trainable"]))

    def check_whole(self) -> None:
        assert [check for check in audit.verify(RunFolder(self.run_dir)) if not check.holds] == []
        final, first = self.final(), initial()
        assert list(final) == list(first)
        assert final.non_trainable == first.non_trainable
        assert all(final[name].tobytes() == first[name].tobytes() for name in (*FROZEN, "004/steps"))
        assert not np.array_equal(final["001/w"], first["001/w"])


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    one = Watching(tmp_path, EmbeddedBroker())
    yield one
    one.close()


STRATEGIES = [FedBuff(buffer_size=2), FedAsync(), Area(num_participants=2), Scaffold(buffer_size=2, num_participants=2)]


def test_with_a_hidden_state_and_signatures_as_well(watching):
    def sign(signed: bytes) -> str:
        return (signed[-32:].hex() * 2)[:128]

    ended = watching.begin(6, downlink=DownlinkSettings(codec="hidden"), sign=sign, buffer_size=1)
    left = watching.participant("a", HeadTrainer(), verify=lambda signed, signature: sign(signed) == signature)
    assert ended.result(DEADLINE_S).version == 6
    assert left.result(DEADLINE_S) == "run_finished"
    assert watching.sent(Decline) == []
    assert len([task for task, _ in watching.tasks_of("a") if task.chunks is not None]) == 1
    watching.check_whole()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_the_frozen_part_goes_down_once_and_never_up(watching, strategy):
    ended = watching.begin(8, strategy=strategy, training=TrainingConfig(learning_rate=0.1))
    trainers = {name: HeadTrainer() for name in ("a", "b")}
    left = [watching.participant(name, trainer) for name, trainer in trainers.items()]
    assert ended.result(DEADLINE_S).version == 8
    assert [one.result(DEADLINE_S) for one in left] == ["run_finished"] * 2
    groups = 2 if strategy.name == "scaffold" else 1
    for name in trainers:
        (first, _), *others = watching.tasks_of(name)
        assert first.chunks is not None
        assert first.chunks.num_bytes > 80_000
        assert others
        assert all(task.chunks is None and size < groups * MOVING_BYTES + 1500 for task, size in others)
        assert {task.frozen for task, _ in others} == {first.frozen}
    updates = watching.sent(Update)
    assert updates
    assert all(u.chunks is None and size < groups * MOVING_BYTES + 1500 for u, size in updates)
    for file in (watching.run_dir / "checkpoints").glob("*.safetensors"):
        assert file.stat().st_size < 40_000
    watching.check_whole()


def test_with_a_codec_and_signatures_as_well(watching):
    def sign(signed: bytes) -> str:
        return (signed[-32:].hex() * 2)[:128]

    ended = watching.begin(4, uplink=uplink_codec(UplinkSettings(codec="topk", fraction=0.1), "delta"), sign=sign)
    left = watching.participant("a", HeadTrainer(), verify=lambda signed, signature: sign(signed) == signature)
    assert ended.result(DEADLINE_S).version == 4
    assert left.result(DEADLINE_S) == "run_finished"
    assert {update.codec for update, _ in watching.sent(Update)} == {"topk"}
    assert watching.sent(Decline) == []
    watching.check_whole()


def test_a_part_that_was_lost_or_damaged_is_sent_again(watching):
    trainer = HeadTrainer()
    trainer.gate = threading.Event()
    ended = watching.begin(8, buffer_size=1)
    left = watching.participant("a", trainer)
    until(lambda: trainer.trainings == 1)
    parts = list((watching.folder / "spool" / "a" / "frozen").iterdir())
    assert len(parts) == 1
    parts[0].write_bytes(parts[0].read_bytes()[:-1] + b"\x01")
    trainer.gate.set()
    assert ended.result(DEADLINE_S).version == 8
    assert left.result(DEADLINE_S) == "run_finished"
    assert [decline.reason for decline, _ in watching.sent(Decline)] == ["frozen_lost"]
    whole = [task for task, _ in watching.tasks_of("a") if task.chunks is not None]
    assert len(whole) == 2
    watching.check_whole()


@pytest.mark.parametrize("strategy", [FedBuff(buffer_size=1), Area(num_participants=1)], ids=lambda s: s.name)
def test_restarts_of_both_sides_send_nothing_again_and_a_damaged_file_has_a_copy(watching, strategy):
    trainer = HeadTrainer()
    trainer.gate = threading.Event()
    watching.begin(6, strategy=strategy)
    watching.participant("a", trainer)
    until(lambda: trainer.trainings == 1)
    watching.stop_coordinator()
    trainer.gate.set()
    watching.stop("a")
    (file,) = (watching.run_dir / "checkpoints" / "frozen").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    ended = watching.begin(6, strategy=strategy, initial_parameters=None)
    left = watching.participant("a", HeadTrainer())
    assert ended.result(DEADLINE_S).version == 6
    assert left.result(DEADLINE_S) == "run_finished"
    assert len([task for task, _ in watching.tasks_of("a") if task.chunks is not None]) == 1
    assert file.read_bytes() == (watching.run_dir / "copies" / "frozen" / file.name).read_bytes()
    watching.check_whole()


@pytest.mark.parametrize("codec", [None, "int8"])
def test_an_older_participant_gets_whole_tasks_and_its_updates_are_cut(watching, monkeypatch, codec):
    def as_before(self: ParticipantPublisher, hello: Any) -> None:
        publishing.publish_control(self._context, hello)

    monkeypatch.setattr(ParticipantPublisher, "send_hello", as_before)
    uplink = None if codec is None else uplink_codec(UplinkSettings(codec=codec), "delta")
    ended = watching.begin(3, uplink=uplink)
    left = watching.participant("a", HeadTrainer())
    assert ended.result(DEADLINE_S).version == 3
    assert left.result(DEADLINE_S) == "run_finished"
    assert {task.frozen for task, _ in watching.tasks_of("a")} == {None}
    assert watching.discarded() == {}
    watching.check_whole()


def test_an_older_participant_that_trains_the_frozen_part_is_told(watching, monkeypatch):
    monkeypatch.setattr(
        ParticipantPublisher, "send_hello", lambda self, hello: publishing.publish_control(self._context, hello)
    )
    watching.begin(3)
    watching.participant("a", HeadTrainer(moves=("000/base", "001/w")))
    until(lambda: bool(watching.sent(Update)))
    until(lambda: watching.discarded().get("wrong_shape", 0) >= 1)


def test_a_trainer_that_changes_a_frozen_tensor_gets_one_clear_error(watching):
    watching.begin(3)
    left = watching.participant("a", HeadTrainer(moves=("000/base", "001/w")))
    with pytest.raises(AppError, match="changed the tensor '000/base', which is frozen in this federation"):
        left.result(DEADLINE_S)
    declined = [decline for decline, _ in watching.sent(Decline)]
    assert [decline.reason for decline in declined] == ["unsupported"]


def test_a_folder_that_is_copied_elsewhere_goes_on(watching, tmp_path):
    trainer = HeadTrainer()
    trainer.gate = threading.Event()
    watching.begin(4)
    watching.participant("a", trainer)
    until(lambda: trainer.trainings == 1)
    watching.stop_coordinator()
    shutil.copytree(watching.run_dir, tmp_path / "elsewhere")
    watching.run_dir = tmp_path / "elsewhere"
    trainer.gate.set()
    assert watching.begin(4, initial_parameters=None).result(DEADLINE_S).version == 4
    watching.check_whole()
