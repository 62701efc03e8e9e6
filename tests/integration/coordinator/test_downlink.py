"""Whole runs with models in codecs, both services in one process: what is trained from is what the coordinator has."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Message
from fedmq.coordinator.audit import audit
from fedmq.coordinator.audit.replay import payloads
from fedmq.coordinator.audit.replay import replay as audit_replay
from fedmq.coordinator.settings import ArchiveSettings, DownlinkSettings, UplinkSettings
from fedmq.coordinator.state import archive, checkpoint
from fedmq.coordinator.state.ledger.reader import LedgerReader, open_if_made
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import FedBuff
from fedmq.coordinator.uplink import uplink_codec
from fedmq.schemas.codecs.rounded import narrow, wide
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.studies.engine import replay
from tests.integration.chunks.federation import Federation, Result, Trainer, added, until

SIZES = {"max_message_bytes": 65_536, "chunk_bytes": 2048}


FROZEN = 10_000


def small() -> Parameters:
    rng = np.random.default_rng(1)
    return Parameters({"000/w": rng.normal(size=(240, 50)).astype(np.float32), "001/b": np.zeros(3, np.float32)})


class Small(Trainer):
    """A trainer that takes small steps, and notes what it started from."""

    def __init__(self) -> None:
        super().__init__()
        self.bases: list[bytes] = []

    def train(self, parameters: Any, config: TrainingConfig) -> Any:
        self.trainings += 1
        self.bases.append(b"".join(np.ascontiguousarray(a).tobytes() for a in parameters.values()))
        moved = {n: a + np.float32(0.01) * added(config.seed, n, a) for n, a in parameters.items() if a.size != FROZEN}
        return Result({**parameters, **moved})


class Counting(EmbeddedTransport):
    """The coordinator's transport, which counts the bytes of tasks and of their chunks."""

    down_bytes = 0

    def publish(self, message: Message, *args: Any) -> Any:
        if ".participant." in message.routing_key or ".payload." in message.routing_key:
            type(self).down_bytes += len(message.body)
        return super().publish(message, *args)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    broker = EmbeddedBroker()
    Counting.down_bytes = 0
    kinds = {"coordinator": Counting}
    one = Federation(tmp_path, Topology("p"), lambda name: kinds.get(name, EmbeddedTransport)(broker, name))
    yield one
    one.close()


def coordinator(federation: Federation, versions: int, **changed: Any) -> Any:
    given = {"initial_parameters": small, "archive": ArchiveSettings(max_bytes=2**30), **SIZES}
    return federation.coordinator(versions, **(given | changed))


def checked(federation: Federation, versions: int) -> None:
    """Check that the ledger, the archive and the engine give the same states, the hidden one among them."""
    assert [check for check in audit.verify(RunFolder(federation.run_dir)) if not check.holds or check.left_out] == []
    final = checkpoint.read(federation.run_dir / "final.safetensors").arrays
    again = replay.replay(federation.run_dir).parameters
    assert {n: a.tobytes() for n, a in final.items()} == {n: a.tobytes() for n, a in again.items()}
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        assert ledger.version() == versions


def declined(federation: Federation) -> list[str]:
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        rows = ledger._db.execute("SELECT detail FROM tasks WHERE state = 'declined'").fetchall()
    return [detail for (detail,) in rows]


@pytest.mark.parametrize("sizes", [{}, {"max_message_bytes": 4096}], ids=["whole", "chunks"])
def test_steps_take_less_than_a_third_of_the_bytes_and_the_final_model_is_the_model(federation, sizes):
    names = ("a", "b", "c")
    ended = coordinator(federation, 40, downlink=DownlinkSettings(codec="hidden"), **sizes)
    left = [federation.participant(name, Small(), **(SIZES | sizes)) for name in names]
    assert ended.result(60).version == 40
    assert [one.result(60) for one in left] == ["run_finished"] * 3
    checked(federation, 40)
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        tasks = ledger._db.execute("SELECT count(*) FROM tasks").fetchone()[0]
    plain = tasks * small().num_bytes
    assert Counting.down_bytes < 0.3 * plain, Counting.down_bytes / plain
    assert declined(federation) == []


def test_with_a_step_every_fourth_version_participants_that_train_for_one_in_four_save_as_much(federation):
    names = [f"p{i}" for i in range(12)]
    ended = coordinator(federation, 48, downlink=DownlinkSettings(codec="hidden", step_every=4))  # buffers of three
    trainers = [Small() for _ in names]
    left = [federation.participant(name, one, **SIZES) for name, one in zip(names, trainers, strict=True)]
    assert ended.result(60).version == 48
    assert [one.result(60) for one in left] == ["run_finished"] * 12
    checked(federation, 48)
    known = states(federation)
    assert len(known) == 13, "a state for each step, and the first one"
    assert {base for trainer in trainers for base in trainer.bases} <= known
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        tasks = ledger._db.execute("SELECT count(*) FROM tasks").fetchone()[0]
    plain = (tasks - len(names)) * small().num_bytes  # the first task of each is whole
    assert Counting.down_bytes - len(names) * small().num_bytes < 0.3 * plain
    assert declined(federation) == []


def states(federation: Federation, codec: str = "hidden") -> set[bytes]:
    """Return the tensors that the tasks of each version are to train from, made again from the archive."""
    formed = {"hidden": lambda tensors: tensors, "bf16": lambda tensors: wide(narrow(tensors))}[codec]
    folder = RunFolder(federation.run_dir)
    with LedgerReader(folder.ledger) as ledger:
        rows = ledger.updates()
        payload_of = payloads(folder, ledger, 0, len(rows))
        assert payload_of is not None
        base = archive.read_base(folder.archive, ledger.bases()[0])
        return {
            b"".join(a.tobytes() for a in formed(point.model.task_tensors).values())
            for point in audit_replay(FedBuff(buffer_size=3), base, rows, payload_of)
        }


def reached(federation: Federation, number: int) -> None:
    """Wait until the ledger has this version."""

    def there() -> bool:
        reader = open_if_made(federation.run_dir / "ledger.sqlite")
        if reader is None:
            return False
        with reader as ledger:
            return not ledger.is_new() and ledger.version() >= number

    until(there)


def test_lost_disks_and_restarts_of_both_sides_cost_a_whole_task_and_no_bit(federation):
    hidden = DownlinkSettings(codec="hidden")
    trainers = [Small() for _ in range(8)]
    ended = coordinator(federation, 24, downlink=hidden, uplink=uplink_codec(UplinkSettings(codec="int8"), "delta"))
    for name, trainer in zip("abc", trainers, strict=False):
        federation.participant(name, trainer, **SIZES)

    reached(federation, 4)
    model = federation.folder / "spool" / "a" / "model.fedmq"
    federation.stop("a")
    model.write_bytes(model.read_bytes()[:-1])  # damaged: its next hello names none
    federation.participant("a", trainers[3], **SIZES)
    reached(federation, 8)
    (federation.folder / "spool" / "b" / "model.fedmq").unlink()  # lost without a word: its next task is declined
    reached(federation, 12)
    federation.stop_coordinator()
    ended = coordinator(federation, 24, downlink=hidden, uplink=uplink_codec(UplinkSettings(codec="int8"), "delta"))
    reached(federation, 16)
    federation.stop("c")
    left = federation.participant("c", trainers[4], **SIZES)
    assert ended.result(60).version == 24
    assert left.result(60) == "run_finished"
    checked(federation, 24)
    assert any(detail.startswith("model_differs") for detail in declined(federation))
    known = states(federation)
    assert {base for trainer in trainers for base in trainer.bases} <= known
    assert len(known) == 25
    assert all(trainer.trainings > 0 for trainer in trainers[:5])
    assert not model.exists(), "the run is over"


def test_a_participant_that_lacks_the_capability_trains_from_the_same_state(federation, monkeypatch):
    monkeypatch.setattr("fedmq.participant.service.service.capabilities", lambda _own: ())
    trainer = Small()
    ended = coordinator(federation, 4, downlink=DownlinkSettings(codec="hidden"), buffer_size=3)
    left = federation.participant("a", trainer, **SIZES)
    assert ended.result(60).version == 4
    assert left.result(60) == "run_finished"
    checked(federation, 4)
    assert set(trainer.bases) <= states(federation)
    assert Counting.down_bytes > small().num_bytes * 12


@pytest.mark.parametrize("sizes", [{}, {"max_message_bytes": 4096}], ids=["whole", "chunks"])
def test_a_run_in_bf16_takes_half_the_bytes_and_deltas_are_against_what_was_trained_from(federation, sizes):
    trainer = Small()
    ended = coordinator(federation, 5, downlink=DownlinkSettings(codec="bf16"), **sizes)
    left = federation.participant("a", trainer, **(SIZES | sizes))
    assert ended.result(60).version == 5
    assert left.result(60) == "run_finished"
    checked(federation, 5)
    tasks = trainer.trainings
    assert Counting.down_bytes < 0.55 * (tasks + 1) * small().num_bytes
    for base in trainer.bases:
        values = np.frombuffer(base, np.uint32)
        assert not (values & 0xFFFF).any()


def test_a_run_keeps_its_form_of_tasks_for_life(federation):
    ended = coordinator(federation, 2)
    left = federation.participant("a", Small(), **SIZES)
    assert ended.result(60).version == 2
    assert left.result(60) == "run_finished"
    with pytest.raises(ConfigError, match=r"downlink\.codec was 'none' and is now 'hidden'"):
        coordinator(federation, 4, downlink=DownlinkSettings(codec="hidden")).result(60)


@pytest.mark.parametrize("codec", ["hidden", "bf16"])
def test_a_frozen_part_goes_down_once_beside_a_coded_model(federation, codec):
    trainer, again = Small(), Small()
    given = {"downlink": DownlinkSettings(codec=codec), "frozen": lambda: {"001/b"}, "initial_parameters": with_frozen}
    ended = coordinator(federation, 8, **given)
    federation.participant("a", trainer, **SIZES)
    until(lambda: trainer.trainings > 6)
    federation.stop_coordinator()
    federation.stop("a")
    ended = coordinator(federation, 8, **given)
    left = federation.participant("a", again, **SIZES)
    assert ended.result(60).version == 8
    assert left.result(60) == "run_finished"
    assert [check for check in audit.verify(RunFolder(federation.run_dir)) if not check.holds or check.left_out] == []
    assert declined(federation) == []
    frozen = with_frozen()["001/b"].tobytes()
    known = states(federation, codec)
    for base in (*trainer.bases, *again.bases):
        assert base.endswith(frozen)
        assert base.removesuffix(frozen) in known
    assert Counting.down_bytes < 4 * len(frozen) + (trainer.trainings + again.trainings) * 0.6 * small().num_bytes


def with_frozen() -> Parameters:
    return Parameters({"000/w": small()["000/w"], "001/b": np.arange(FROZEN, dtype=np.float32)})


def test_a_restored_folder_and_a_standby_go_on_with_their_own_hidden_state(federation):
    hidden = {"downlink": DownlinkSettings(codec="hidden")}
    trainers = [Small() for _ in range(3)]
    coordinator(federation, 24, **hidden)
    left = [federation.participant(name, t, **SIZES) for name, t in zip("abc", trainers, strict=True)]
    reached(federation, 4)
    federation.stop_coordinator()
    backup = federation.folder / "backup"
    shutil.copytree(federation.run_dir, backup)
    first = coordinator(federation, 24, **hidden)
    reached(federation, 9)
    standby = coordinator(federation, 24, **hidden)
    active, ended = federation._services[-2], first
    active.stop()
    assert ended.result(60).finished is None
    reached(federation, 14)
    federation.stop_coordinator()
    assert standby.result(60).version >= 14
    shutil.rmtree(federation.run_dir)
    backup.rename(federation.run_dir)
    seen = [len(trainer.bases) for trainer in trainers]
    last = coordinator(federation, 24, **hidden)
    assert last.result(60).version == 24
    assert [one.result(60) for one in left] == ["run_finished"] * 3
    assert [check for check in audit.verify(RunFolder(federation.run_dir)) if not check.holds or check.left_out] == []
    known = states(federation)
    late = [base for trainer, count in zip(trainers, seen, strict=True) for base in trainer.bases[count + 1 :]]
    assert len(late) > 30
    assert set(late) <= known


@pytest.mark.parametrize("codec", ["hidden", "bf16"])
@pytest.mark.parametrize("sizes", [{}, {"max_message_bytes": 4096}], ids=["whole", "chunks"])
def test_signatures_are_for_what_is_trained_from(federation, codec, sizes):
    given = {"downlink": DownlinkSettings(codec=codec), "sign": signature, "frozen": lambda: {"001/b"}} | sizes
    checked = {"verify": lambda signed, told: signature(signed) == told} | SIZES | sizes
    trainer = Small()
    ended = coordinator(federation, 4, initial_parameters=with_frozen, **given)
    left = federation.participant("a", trainer, **checked)
    assert ended.result(60).version == 4
    assert left.result(60) == "run_finished"
    assert declined(federation) == []
    assert trainer.trainings >= 12


def test_steps_that_nobody_has_signed_are_refused_and_leave_no_state(federation):
    coordinator(federation, 4, downlink=DownlinkSettings(codec="hidden"), sign=lambda signed: signature(signed[1:]))
    trainer = Small()
    federation.participant("a", trainer, **SIZES, verify=lambda signed, told: signature(signed) == told)
    reached(federation, 0)
    until(lambda: bool(declined(federation)))
    assert declined(federation)[0].startswith("bad_signature: the task's signature is not the coordinator's")
    assert trainer.trainings == 0
    assert not (federation.folder / "spool" / "a" / "model.fedmq").exists()


def signature(signed: bytes) -> str:
    """Return what stands in for the coordinator's signature: 128 digits that follow from the bytes."""
    return hashlib.sha512(signed).hexdigest()
