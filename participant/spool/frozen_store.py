"""Frozen parts of models on a participant's disk: spool_dir/<participant_id>/frozen/<digest>, one file each.

    u32 length of the entries, most significant byte first, the entries as JSON, the blob of `schemas.tensors`

The file's name is the digest of what it holds, so every read shows a damaged file, which counts as missing: the
coordinator sends the part again. The newest MOST_PARTS files stay. Nothing here is needed for correctness, so nothing
here ends a participant: a disk that refuses only costs the part's bytes once more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fedmq.schemas.errors import PeerError
from fedmq.schemas.frozen import Frozen, frozen_part
from fedmq.schemas.limits import MAX_PAYLOAD_BYTES, Limits
from fedmq.schemas.local.durable import write_whole
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.local.files import content, make_folder, parse_json, remove
from fedmq.schemas.messages import is_digest
from fedmq.schemas.tensors import pack, read_entries, spec_of, unpack

log = EventLog(__name__)

MOST_PARTS = 4
"""Frozen parts that are kept. A participant that is in more runs at a time gets them more than once."""
_MOST_HEAD_BYTES = 100_000_000
_OWN_FILES = Limits(max_tensors=2**31)
_WRONG = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, PeerError)


class FrozenStore:
    """The frozen parts of one participant. Only the service's thread uses it."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the participant's own."""
        self._folder = folder / "frozen"
        self._unread: set[str] = set()
        """Digests whose files the disk did not give: no hello names them, or their tasks would be declined for ever."""

    def digests(self) -> tuple[str, ...]:
        """Return the digests of the parts that are here, the newest first. Their content is not looked at."""
        try:
            files = sorted(self._files(), key=lambda path: -path.lstat().st_mtime_ns)
            files = [path for path in files if path.name not in self._unread]
        except OSError:
            return ()
        return tuple(path.name for path in files[:MOST_PARTS])

    def read(self, digest: str, moving: Collection[str] = ()) -> Frozen | None:
        """Return a part; None if it is not here, or damaged. A damaged file is removed.

        It is also found in an earlier part of the model, one that has some of the tensors that are `moving` by now
        beside it.
        """
        found = self._read(digest)
        if found is not None or not moving:
            return found
        for earlier in self.digests():
            whole = self._read(earlier)
            part = None if whole is None else whole.less(moving)
            if part is not None and part.digest == digest:
                return part
        return None

    def _read(self, digest: str) -> Frozen | None:
        path = self._folder / digest
        try:
            part = _read(content(path, MAX_PAYLOAD_BYTES + _MOST_HEAD_BYTES))
            if part.digest == digest:
                os.utime(path, follow_symlinks=False)
                return part
            why = f"its digest is {part.digest}"
        except FileNotFoundError:
            return None
        except OSError as error:
            log.error("frozen_part_not_read", file=path, detail=error, next="the coordinator sends it again")
            self._unread.add(digest)
            return None
        except _WRONG as error:
            why = f"{type(error).__name__}: {error}"
        log.error("frozen_part_damaged", file=path, detail=why, next="the coordinator sends it again")
        self._remove(path)
        return None

    def keep(self, part: Frozen) -> None:
        """Write a part, unless it is here. The oldest ones make room."""
        path = self._folder / part.digest
        if path.exists() and part.digest not in self._unread:
            return
        entries = [
            {"name": s.name, "dtype": s.dtype, "shape": s.shape, "trainable": s.trainable}
            for s in spec_of(part.tensors)
        ]
        head = json.dumps(entries).encode()
        try:
            make_folder(self._folder)
            if part.digest in self._unread:
                remove(path)
            write_whole(path, [len(head).to_bytes(4, "big"), head, *pack(part.tensors)])
            self._unread.discard(part.digest)
            kept = self.digests()
            for old in self._files():
                if old.name not in kept:
                    self._remove(old)
        except OSError as error:
            detail = "the model's frozen part comes with each task until there is room"
            log.warning("frozen_part_not_kept", file=path, error=error, detail=detail)

    def _files(self) -> Iterator[Path]:
        if self._folder.is_dir():
            yield from (path for path in self._folder.iterdir() if is_digest(path.name))

    def _remove(self, path: Path) -> None:
        try:
            remove(path)
        except OSError as error:
            log.warning("frozen_part_not_removed", file=path, error=error)


def _read(written: Any) -> Frozen:
    view = memoryview(written)
    length = int.from_bytes(view[:4], "big")
    if length > min(_MOST_HEAD_BYTES, len(view)):
        raise ValueError(f"its entries have {length} bytes")
    listed = parse_json(view[4 : 4 + length])
    entries = read_entries([entry | {"shape": tuple(entry["shape"])} for entry in listed], _OWN_FILES)
    return frozen_part(unpack(view[4 + length :], entries))
