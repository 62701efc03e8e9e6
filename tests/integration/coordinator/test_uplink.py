"""Whole runs with coded updates, both services in one process: what is counted is what was sent, once."""

from __future__ import annotations

import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.coordinator.audit import audit
from fedmq.coordinator.decisions.task_desk import task_seed
from fedmq.coordinator.decisions.tasks.names import parsed
from fedmq.coordinator.settings import ArchiveSettings, CommitSettings, UplinkSettings
from fedmq.coordinator.state import archive
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.uplink import uplink_codec
from fedmq.participant.spool.spool import Spool
from fedmq.schemas.codecs.checked import RESIDUAL
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.views.status import read_status
from tests.integration.chunks.federation import Federation, Result, Trainer, added
from tests.support.full import in_full

VALUES = 12_000
"""Values of the model: a matrix of 240 · 50, beside three."""


def small() -> Parameters:
    return Parameters(
        {"000/w": np.linspace(0, 1, VALUES, dtype=np.float32).reshape(240, 50), "001/b": np.zeros(3, np.float32)}
    )


class Recording(Trainer):
    """A trainer that notes the delta of each training, by the seed of its task."""

    def __init__(self) -> None:
        super().__init__()
        self.deltas: dict[int, np.ndarray] = {}

    def train(self, parameters: Any, config: TrainingConfig) -> Any:
        local = {name: array + added(config.seed, name, array) for name, array in parameters.items()}
        self.deltas[config.seed] = np.concatenate([(local[n] - parameters[n]).reshape(-1) for n in parameters])
        return Result(local)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    broker = EmbeddedBroker()
    one = Federation(tmp_path, Topology("p"), lambda name: EmbeddedTransport(broker, name))
    yield one
    one.close()


def run(federation: Federation, settings: UplinkSettings, versions: int = 4, **sizes: int) -> dict[str, Recording]:
    """Run to the end with two participants. Return their trainers."""
    trainers = {name: Recording() for name in ("a", "b")}
    ended = federation.coordinator(
        versions, initial_parameters=small, archive=ArchiveSettings(max_bytes=2**30),
        uplink=uplink_codec(settings, "delta"), **sizes,
    )  # fmt: skip
    left = [federation.participant(name, trainer, **sizes) for name, trainer in trainers.items()]
    assert ended.result(60).version == versions
    for one in left:
        assert one.result(60) == "run_finished"
    assert [check for check in audit.verify(RunFolder(federation.run_dir)) if not check.holds] == []
    return trainers


def accepted(federation: Federation, since: int = 0) -> dict[str, tuple[np.ndarray, set[int]]]:
    """Return, of each participant, the sum of what was accepted, from the archive, and the seeds of these tasks. Leave
    out the first updates, up to `since`."""
    sums: dict[str, Any] = defaultdict(float)
    seeds: dict[str, set[int]] = defaultdict(set)
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        kept = {row.accepted_order: row for row in ledger.archived(0, 10**9)}
        for row in ledger.updates(after=since):
            tensors = archive.read_update(federation.run_dir / "archive", kept[row.accepted_order])
            values = np.concatenate([array.astype(np.float64).reshape(-1) for array in tensors.values()])
            sums[row.participant_id] = sums[row.participant_id] + values
            name = parsed(row.task_id)
            assert name is not None
            seeds[row.participant_id].add(task_seed(0, name.seq))
    return {name: (sums[name], seeds[name]) for name in sums}


def made(trainer: Recording, seeds: set[int]) -> np.ndarray:
    """Return the sum of the deltas of these tasks, as they were before the codec."""
    return np.sum([trainer.deltas[seed].astype(np.float64) for seed in seeds], axis=0)


def residual(federation: Federation, name: str) -> np.ndarray:
    """Return what a participant's disk says was not sent yet."""
    spool = Spool(federation.folder / "spool", name)
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        memory = spool.read_memory(ledger.run().run_uid)
    spool.close()
    assert memory is not None
    return memory.tensors[RESIDUAL].astype(np.float64)


@pytest.mark.parametrize(
    "settings",
    [
        {"codec": "bf16"},
        {"codec": "int8", "lossless": "zstd"},
        {"codec": "int4"},
        {"codec": "topk", "fraction": 0.02, "values": "int8", "lossless": "zstd"},
        {"codec": "powersgd"},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
@pytest.mark.parametrize(
    "max_message_bytes", [4096, pytest.param(65_536, marks=in_full("front/test_features.py"))], ids=["chunks", "whole"]
)
def test_a_run_in_each_codec_ends_and_its_ledger_gives_the_model_bit_for_bit(federation, settings, max_message_bytes):
    trainers = run(federation, UplinkSettings(**settings), max_message_bytes=max_message_bytes, chunk_bytes=2048)
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        up, down, model = ledger.bytes_up(), ledger.bytes_down(), small().num_bytes
        assert (up.messages, up.decoded_bytes) == (ledger.accepted(), ledger.accepted() * model)
        assert up.wire_bytes < up.decoded_bytes / 1.9
        assert down.decoded_bytes >= ledger.accepted() * model, "each update had its task"
        assert down.decoded_bytes < down.wire_bytes < 1.1 * down.decoded_bytes, "headers and manifests"
        assert audit.explain(ledger, 1).to_json()["uplink"]["codec"] == settings["codec"]
    assert read_status(federation.run_dir).forms.uplink == UplinkSettings(**settings).order("delta")
    for name, (total, seeds) in accepted(federation).items():
        wanted = made(trainers[name], seeds)
        assert 0 < np.linalg.norm(total - wanted) < np.linalg.norm(wanted)


@pytest.mark.parametrize(
    "settings",
    [
        {"codec": "topk", "fraction": 0.02},
        {"codec": "topk", "fraction": 0.02, "values": "bf16", "lossless": "zstd"},
        {"codec": "int4", "error_feedback": True},
        {"codec": "powersgd", "rank": 1},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_what_was_accepted_and_what_is_left_is_what_was_made(federation, monkeypatch, settings):
    monkeypatch.setattr(Spool, "clear_memory", lambda _self, _run_id: None)  # at the end of the run
    trainers = run(federation, UplinkSettings(**settings), versions=6)
    for name, (total, seeds) in accepted(federation).items():
        assert len(seeds) > 1
        wanted = made(trainers[name], seeds)
        left = residual(federation, name)
        assert np.abs(left).max() > 0.01
        assert np.linalg.norm(total + left - wanted) <= 1e-5 * np.linalg.norm(wanted)


class Until(Recording):
    """A trainer that does some trainings, and stands in the next one until its participant leaves."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self.stands, self.cancelled = threading.Event(), threading.Event()

    def train(self, parameters: Any, config: TrainingConfig) -> Any:
        if len(self.deltas) == self._most:
            self.stands.set()
            assert self.cancelled.wait(60)
            raise RuntimeError("cancelled")
        return super().train(parameters, config)

    def cancel(self) -> None:
        self.cancelled.set()


def balance(federation: Federation, trainings: int, since: int, least: int) -> int:
    """Let the participant do so many trainings, and check the books of what was accepted of them. Return the number of
    all accepted updates."""
    trainer = Until(trainings)
    federation.participant("a", trainer, max_message_bytes=65_536)
    assert trainer.stands.wait(60)  # it has all verdicts: else it would take no task
    federation.stop("a")
    total, seeds = accepted(federation, since)["a"]
    assert len(seeds) >= least
    wanted, left = made(trainer, seeds), residual(federation, "a")
    assert np.linalg.norm(total + left - wanted) <= 1e-5 * np.linalg.norm(wanted)
    return since + len(seeds)


@pytest.mark.parametrize("codec", ["topk", "powersgd"])
def test_a_lost_disk_starts_at_zero_and_an_older_one_is_refused_once_and_begins_anew(federation, codec):
    settings = uplink_codec(UplinkSettings(codec=codec), "delta")
    federation.coordinator(
        100, 1, initial_parameters=small, archive=ArchiveSettings(max_bytes=2**30), uplink=settings,
        max_message_bytes=65_536,
    )  # fmt: skip
    spool, backup = federation.folder / "spool" / "a", federation.folder / "backup"
    count = balance(federation, 3, since=0, least=3)
    shutil.copytree(spool, backup)
    shutil.rmtree(spool)
    count = balance(federation, 3, since=count, least=3)
    shutil.rmtree(spool)
    shutil.copytree(backup, spool)
    assert "wrong_memory" not in federation.discarded()
    balance(federation, 5, since=count, least=3)
    assert federation.discarded()["wrong_memory"] == 1


def test_participants_without_the_codec_send_plain_tensors(federation, monkeypatch):
    monkeypatch.setattr("fedmq.participant.service.service.capabilities", lambda _own: ())
    trainers = run(federation, UplinkSettings(codec="int8"))
    for name, (total, seeds) in accepted(federation).items():
        assert np.allclose(total, made(trainers[name], seeds), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("codec", "window"), [(None, 21), ("int8", 42)])
def test_coded_updates_have_a_wider_window_in_the_same_memory(federation, monkeypatch, codec, window):
    windows, consume = {}, EmbeddedTransport.consume

    def noted(transport: EmbeddedTransport, queue: str, on_delivery: Any, prefetch: int) -> None:
        windows[queue] = prefetch
        consume(transport, queue, on_delivery, prefetch)

    monkeypatch.setattr(EmbeddedTransport, "consume", noted)
    federation.coordinator(
        1, 1, initial_parameters=small, max_message_bytes=65_536, commit=CommitSettings(memory_budget_bytes=2**20),
        uplink=None if codec is None else uplink_codec(UplinkSettings(codec=codec), "delta"),
    )  # fmt: skip
    federation.participant("a", Recording(), max_message_bytes=65_536).result(60)
    assert windows[federation.topology.updates.name] == window
