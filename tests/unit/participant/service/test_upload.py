"""Uploads: the moment of each announcement, and a full disk, which holds back no finished update."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.broker_config.chunks.sender import WINDOW, News
from fedmq.participant.decisions import events as ev
from fedmq.participant.service.upload import Uploads
from fedmq.participant.spool import spool as spool_module
from fedmq.participant.spool.chunk_journal import ChunkJournal
from fedmq.participant.spool.spool import Spool
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.errors import SpoolError, Unroutable
from fedmq.schemas.messages import Update, update_id
from fedmq.schemas.parameters import Parameters
from tests.unit.broker_config.chunks.test_sender import Wire
from tests.unit.participant.service.contexts import make_context

UID = update_id("r", "t", "p0")
UPDATE = Update(
    update_id=UID, task_id="t", run_id="r", participant_id="p0", base_version=0, payload="delta", num_examples=1,
    num_steps=1, train_s=0.0,
)  # fmt: skip
BODY = encode(UPDATE, Parameters({"w": np.arange(4000, dtype=np.float32)}))
COUNT = -(-len(BODY) // 1024)


class Uploading:
    """One participant's uploads on its spool. `run` answers every question that they ask the broker."""

    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder, "p0")
        self.wire = Wire()
        self.inbox: list[Any] = []
        self.announced: list[Update] = []
        self.published: list[ev.PublishConfirmed | ev.PublishFailed] = []
        self.sent: list[int] = []
        self.depth = 0
        self.uploads = Uploads(make_context(self.wire, self.spool, "p0", put=self.inbox.append))

    def begin(self, payload_id: str = "one") -> None:
        self.uploads.begin(UID, payload_id, BODY)

    def run(self, most_chunks: int = 1000) -> None:
        while self.wire.asked:
            what, about, future = self.wire.asked.pop(0)
            manifest = what == "publish" and about.headers.get("kind") == "update"
            if what == "publish" and not manifest and len(self.sent) == most_chunks:
                return
            if manifest:
                self.announced.append(decode(about.body).message)  # type: ignore[arg-type]
            elif what == "publish":
                self.sent.append(about.headers["chunk"])
                self.depth += 1
            elif what == "delete":
                self.depth = 0
            future.set_result(self.depth)
            while self.inbox:
                item = self.inbox.pop(0)
                if isinstance(item, News):
                    self.uploads.on_news(item)
                else:
                    self.published.append(item)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Uploading]:
    found = Uploading(tmp_path)
    found.spool.write_update(UID, "t", "r", BODY)
    yield found
    found.spool.close()


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the disk refuse every note about an upload from now on."""

    def no(*_: object) -> None:
        raise OSError(number, "the disk says no")

    def no_removal(_self: Spool, _uid: str) -> None:
        raise SpoolError("cannot remove")

    monkeypatch.setattr(ChunkJournal, "add", no)
    monkeypatch.setattr(ChunkJournal, "clear", no)
    monkeypatch.setattr(spool_module, "write", lambda *_: (_ for _ in ()).throw(SpoolError("cannot write")))
    monkeypatch.setattr(Spool, "clear_upload", no_removal)


def test_an_upload_is_announced_when_it_is_whole_and_from_then_on_only_announced(one: Uploading) -> None:
    one.begin()
    one.run()
    assert one.sent == list(range(COUNT))
    (announced,) = one.announced
    assert announced.chunks is not None
    assert (announced.update_id, announced.chunks.count) == (UID, COUNT)
    assert one.published == [ev.PublishConfirmed(UID, kept=True)]
    one.begin()
    one.run()
    assert (one.announced, one.sent) == ([announced] * 2, list(range(COUNT)))
    manifest = one.uploads.manifest(UID)
    assert manifest is not None
    assert decode(manifest).message == announced


def test_an_upload_goes_on_where_it_was_noted(one: Uploading, tmp_path: Path) -> None:
    one.begin()
    one.run(most_chunks=WINDOW + 2)
    one.spool.close()
    two = Uploading(tmp_path)
    two.depth = one.depth
    two.begin()
    two.run()
    two.spool.close()
    assert two.sent == list(range(WINDOW, COUNT))
    assert len(two.announced) == 1


def test_what_was_trained_anew_is_uploaded_anew(one: Uploading) -> None:
    one.begin()
    one.run()
    one.begin(payload_id="two")
    one.run()
    assert [update.chunks.payload_id for update in one.announced if update.chunks] == ["one", "two"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_notes_keeps_no_update_back(
    one: Uploading, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(monkeypatch, number)
    one.begin()
    one.run()
    assert (len(one.announced), one.published) == (1, [ev.PublishConfirmed(UID, kept=True)])


def test_an_upload_that_the_broker_refuses_is_a_failed_publish(one: Uploading) -> None:
    one.begin()
    while one.wire.asked:
        what, _, future = one.wire.asked.pop(0)
        if what == "publish":
            future.set_exception(Unroutable("no such queue"))
        else:
            future.set_result(0)
        for item in [item for item in one.inbox if isinstance(item, News)]:
            one.inbox.remove(item)
            one.uploads.on_news(item)
    assert one.inbox == [ev.PublishFailed(UID, "Unroutable: no such queue", nowhere=True)]


def test_an_upload_begins_again_although_the_disk_cannot_forget_the_first(
    one: Uploading, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.begin()
    one.run()
    refuse(monkeypatch, errno.EROFS)
    one.uploads.start_over(UID)
    one.depth = 0
    one.sent.clear()
    one.begin()
    one.run()
    assert (one.sent, len(one.announced)) == (list(range(COUNT)), 2)


def test_a_manifest_that_is_not_there_or_not_to_be_read_is_none(
    one: Uploading, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert one.uploads.manifest(UID) is None

    def unreadable(_self: Spool, _uid: str) -> bytes:
        raise SpoolError("input/output error")

    monkeypatch.setattr(Spool, "manifest", unreadable)
    assert one.uploads.manifest(UID) is None
    one.begin()
    one.run()
    assert len(one.announced) == 1


def test_forgetting_deletes_the_queue_and_the_notes(one: Uploading) -> None:
    one.begin()
    one.run()
    one.uploads.forget(UID)
    assert [what for what, _, _ in one.wire.asked] == ["delete"]
    assert not one.spool.has_upload(UID)
