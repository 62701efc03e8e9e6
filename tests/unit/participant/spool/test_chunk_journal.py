"""Files on disk about payloads in chunks, across crashes at any byte."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from fedmq.participant.spool.chunk_journal import ChunkJournal, PayloadFile
from fedmq.schemas.chunks import digest_of, digest_of_all
from fedmq.schemas.errors import SpoolError
from fedmq.schemas.messages import ChunkedPayload

PARTS = [bytes([number]) * 1024 for number in range(3)]
DIGESTS = [digest_of(part) for part in PARTS]
PAYLOAD = ChunkedPayload(
    payload_id="one", num_bytes=3072, chunk_bytes=1024, count=3, digest=digest_of_all(DIGESTS)
)  # fmt: skip


def full_disk(_handle: int) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


def test_a_journal_knows_what_was_added_and_where_the_first_gap_is(tmp_path: Path) -> None:
    ChunkJournal(tmp_path / "j", {"of": 1}).add({0: DIGESTS[0], 2: DIGESTS[2]})
    again = ChunkJournal(tmp_path / "j", {"of": 1})
    assert again.digests == {0: DIGESTS[0], 2: DIGESTS[2]}
    assert again.without_gap() == DIGESTS[:1]
    again.add({1: DIGESTS[1]})
    assert ChunkJournal(tmp_path / "j", {"of": 1}).without_gap() == DIGESTS


def test_a_journal_of_something_else_counts_as_empty_and_is_replaced(tmp_path: Path) -> None:
    ChunkJournal(tmp_path / "j", {"of": 1}).add({0: DIGESTS[0]})
    other = ChunkJournal(tmp_path / "j", {"of": 2})
    assert other.digests == {}
    other.add({1: DIGESTS[1]})
    assert ChunkJournal(tmp_path / "j", {"of": 1}).digests == {}
    assert ChunkJournal(tmp_path / "j", {"of": 2}).digests == {1: DIGESTS[1]}


def test_a_torn_record_counts_for_nothing_and_is_written_over(tmp_path: Path) -> None:
    ChunkJournal(tmp_path / "j", {"of": 1}).add({0: DIGESTS[0], 1: DIGESTS[1]})
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(whole[:-5])
    torn = ChunkJournal(tmp_path / "j", {"of": 1})
    assert torn.digests == {0: DIGESTS[0]}
    torn.add({1: DIGESTS[1]})
    assert (tmp_path / "j").read_bytes() == whole


def test_a_record_that_could_not_be_written_leaves_no_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = ChunkJournal(tmp_path / "j", {"of": 1})
    journal.add({0: DIGESTS[0]})
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(OSError, match="no space"):
            journal.add({1: DIGESTS[1]})
    assert journal.without_gap() == DIGESTS[:1]
    journal.add({1: DIGESTS[1], 2: DIGESTS[2]})
    assert ChunkJournal(tmp_path / "j", {"of": 1}).without_gap() == DIGESTS


def test_a_payload_is_written_in_any_order_and_goes_on_after_a_crash(tmp_path: Path) -> None:
    first = PayloadFile(tmp_path)
    assert first.open(PAYLOAD) == {}
    first.write(2048, PARTS[2])
    first.sync({2: DIGESTS[2]})
    first.write(0, PARTS[0])  # not synced: it does not count
    second = PayloadFile(tmp_path)
    assert second.open(PAYLOAD) == {2: DIGESTS[2]}
    assert not second.holds(PAYLOAD)
    second.write(0, PARTS[0])
    second.write(1024, PARTS[1])
    second.sync({0: DIGESTS[0], 1: DIGESTS[1]})
    assert second.holds(PAYLOAD)
    assert second.read() == b"".join(PARTS)


def test_the_chunks_of_another_payload_are_not_taken_over(tmp_path: Path) -> None:
    file = PayloadFile(tmp_path)
    file.open(PAYLOAD)
    file.write(0, PARTS[0])
    file.sync({0: DIGESTS[0]})
    assert file.open(PAYLOAD.model_copy(update={"payload_id": "two"})) == {}


def test_a_flipped_bit_on_the_disk_is_found(tmp_path: Path) -> None:
    file = PayloadFile(tmp_path)
    file.open(PAYLOAD)
    for number, part in enumerate(PARTS):
        file.write(1024 * number, part)
    assert file.holds(PAYLOAD)
    file.write(1500, b"\xff")
    assert not file.holds(PAYLOAD)


def test_what_is_cleared_is_gone_but_stays_readable_where_it_was_mapped(tmp_path: Path) -> None:
    file = PayloadFile(tmp_path)
    file.open(PAYLOAD)
    file.write(0, PARTS[1])
    mapped = file.read()
    file.clear()
    assert list(tmp_path.iterdir()) == []
    assert mapped[:1024] == PARTS[1]
    with pytest.raises(SpoolError):
        file.read()
