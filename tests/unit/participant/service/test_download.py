"""A task's chunks on their way to the disk: the moment of each ack, and failures of disk and broker."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from fedmq.broker_config.chunks.receiver import PATIENCE_S, ChunkArrived, Lost
from fedmq.broker_config.transport import Delivery
from fedmq.participant.service.download import TOGETHER, Download
from fedmq.participant.spool.chunk_journal import ChunkJournal, PayloadFile
from fedmq.schemas import chunks
from fedmq.schemas.errors import BrokerError
from fedmq.schemas.messages import ChunkedPayload, Task, TrainingConfig

COUNT = 12
PARTS = [bytes([number]) * 1024 for number in range(COUNT)]
DIGESTS = [chunks.digest_of(part) for part in PARTS]
PAYLOAD = ChunkedPayload(
    payload_id="one", num_bytes=COUNT * 1024, chunk_bytes=1024, count=COUNT, digest=chunks.digest_of_all(DIGESTS)
)
TASK = Task(
    task_id="t", run_id="r", participant_id="p", base_version=0, reply="delta", training=TrainingConfig(),
    lease_s=1.0, chunks=PAYLOAD,
)  # fmt: skip


class Queues:
    """A stand-in for a transport."""

    def __init__(self) -> None:
        self.ready: int | Exception = COUNT
        self.consumer: Callable[[Delivery], None] | None = None
        self.acked: list[Any] = []
        self.deleted = 0

    def depth(self, queue: str) -> int:
        if isinstance(self.ready, Exception):
            raise self.ready
        return self.ready

    def consume(self, queue: str, on_delivery: Callable[[Delivery], None], prefetch: int) -> None:
        self.consumer = on_delivery

    def ack(self, delivery: Delivery) -> bool:
        self.acked.append(delivery.token)
        return True

    def stop_consuming(self, queue: str) -> None:
        pass

    def delete_queue(self, name: str) -> Future[int]:
        self.deleted += 1
        return Future()


class Fetching:
    """A download that has begun, and its outcome."""

    def __init__(self, folder: Path, ready: int | Exception = COUNT) -> None:
        self.queues = Queues()
        self.queues.ready = ready
        self.file = PayloadFile(folder)
        self.arrived: list[ChunkArrived] = []
        self.outcomes: list[Lost | OSError | None] = []
        self.download = Download(
            self.queues, "q", TASK, self.file, put=self.arrived.append, on_done=self.outcomes.append  # type: ignore[arg-type]
        )  # fmt: skip
        self.download.begin(0.0)

    def chunk(self, index: int, body: bytes | None = None) -> None:
        assert self.queues.consumer is not None
        headers = chunks.headers("one", index, DIGESTS[index])
        self.queues.consumer(Delivery("q", body or PARTS[index], None, None, None, headers, False, 0, index))
        self.download.on_chunk(self.arrived.pop(), 0.0)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_chunks_are_acked_some_together_once_they_are_on_disk(tmp_path: Path) -> None:
    one = Fetching(tmp_path)
    for index in range(TOGETHER - 1):
        one.chunk(index)
    assert one.queues.acked == []
    one.chunk(TOGETHER - 1)
    assert one.queues.acked == list(range(TOGETHER))
    assert PayloadFile(tmp_path).open(PAYLOAD) == dict(enumerate(DIGESTS[:TOGETHER]))
    one.chunk(TOGETHER)
    one.download.tick(1.0)
    assert len(one.queues.acked) == TOGETHER + 1, "nothing waits for company"
    for index in range(TOGETHER + 1, COUNT):
        one.chunk(index)
    assert (one.outcomes, one.queues.deleted, len(one.queues.acked)) == ([None], 1, COUNT)
    assert one.file.holds(PAYLOAD)


def test_chunks_that_come_again_after_a_lost_connection_are_acked_and_not_written(tmp_path: Path) -> None:
    one = Fetching(tmp_path)
    one.chunk(0)
    one.download.disconnected()
    assert one.queues.acked == []
    one.chunk(0, body=PARTS[0])
    one.download.tick(1.0)
    assert one.queues.acked == [0]


@pytest.mark.parametrize(("ready", "after_s"), [(BrokerError("no such queue"), 0.0), (0, PATIENCE_S)])
def test_a_queue_without_the_rest_of_the_chunks_says_that_the_payload_is_lost(
    tmp_path: Path, ready: int | Exception, after_s: float
) -> None:
    one = Fetching(tmp_path, ready)
    one.download.tick(after_s)
    (lost,) = one.outcomes
    assert isinstance(lost, Lost)
    assert files(tmp_path) == []


def test_a_damaged_chunk_says_that_the_payload_is_lost(tmp_path: Path) -> None:
    one = Fetching(tmp_path)
    one.chunk(0, body=b"\xff" * 1024)
    assert one.outcomes == [Lost("chunk 0 of 12 was damaged on its way: its digest differs")]


@pytest.mark.parametrize("damage", ["a digest", "an index"])
def test_a_journal_that_says_wrong_things_costs_the_payload_and_not_the_participant(
    tmp_path: Path, damage: str
) -> None:
    digests = dict(enumerate(DIGESTS))
    if damage == "a digest":
        digests[3] = DIGESTS[4]
    else:
        digests[77] = digests.pop(3)
    (tmp_path / "task.payload").write_bytes(b"".join(PARTS))
    ChunkJournal(tmp_path / "task.chunks", PAYLOAD.model_dump()).add(digests)
    one = Fetching(tmp_path, ready=0)
    one.download.tick(PATIENCE_S)
    (lost,) = one.outcomes
    assert isinstance(lost, Lost)
    assert files(tmp_path) == []


def test_a_disk_that_is_read_only_ends_the_download_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux raises EROFS even if there is nothing to unlink."""

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refused)
    one = Fetching(tmp_path)
    (error,) = one.outcomes
    assert isinstance(error, OSError)
    assert one.queues.deleted == 1
