"""The archive: the accepted updates' tensors, kept in the run's folder for replays. It is off by default.

    archive/<orders>-<epoch>-<token>.updates      tensors one after the other; the ledger has the place of each. Those
                                                  of versions that were distilled are among them
    archive/<orders>-<epoch>-<token>.safetensors  a base: the whole state after <orders> updates; replays start there

Rules
 1. An update is appended when it is accepted, and synced before the transaction of its commit. The transaction's rows
    hold its place and its checksum. Bytes that no row names do not count.
 2. Each start appends to a file of its own, so a coordinator that was deposed cannot write into another one's file.
 3. A file whose sync failed is not synced again. The system may have dropped the bytes that it could not write, and the
    next sync would succeed all the same (as PostgreSQL found in 2018). Updates that are in no transaction are copied to
    a new file, compared with their checksums, and synced there.
 4. There is always a base with all updates since it. A new base is written when a quarter of a limit is used up since
    the last one, but not before the updates since then take as many bytes as a base. Afterwards, as long as the limits
    are exceeded, the oldest base is removed with the updates up to the next base. The newest base and the updates after
    it stay.
 5. Nothing is removed for its age because somebody set a clock. Within one boot of the machine the clock that cannot be
    set counts (schemas.local.clocks). Across boots there is only wall time; if that went back, nothing becomes old.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedmq.coordinator.decisions.records import Snapshot
from fedmq.coordinator.settings import ArchiveSettings
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.checkpoint_files import epoch_of
from fedmq.coordinator.state.ledger.rows import ArchivedUpdate, ArchivedVersion, Base
from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.coordinator.strategies.protocol import MEMORY
from fedmq.schemas.errors import CheckpointError, FedmqError
from fedmq.schemas.limits import MAX_PAYLOAD_BYTES, Limits
from fedmq.schemas.local.clocks import Moment, age_s, moment_now
from fedmq.schemas.local.durable import sync_folder
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.local.files import make_folder, open_in_place, open_to_read, parse_json, remove
from fedmq.schemas.parameters import Array, Parameters
from fedmq.schemas.tensors import TENSOR_ALIGNMENT_BYTES, pack, read_entries, spec_of, unpack

log = EventLog(__name__)

PART_OF_LIMIT = 4
"""A new base is written when 1/PART_OF_LIMIT of a limit is used up. This is also how much is removed at a time."""


class Archive:
    """The writing side, in the coordinator's thread. Everything that it writes belongs to the ledger's epoch."""

    def __init__(
        self, folder: Path, settings: ArchiveSettings, ledger: Ledger, now: Callable[[], Moment] = moment_now
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._ledger = ledger
        self._now = now
        self._name = ""
        self._file: int | None = None
        self._end = 0
        self._broken = False
        """True after a sync of the file failed."""
        self._named = False
        """True if a transaction may name the file."""
        self._accepted = 0
        self._waiting: list[tuple[Row, int, Parameters]] = []
        """(kind of row, its number, tensors) that are not written yet because the disk refused."""
        self._rows: list[ArchivedUpdate | ArchivedVersion] = []
        """Rows of what is written, and not in the ledger yet."""
        self._bases = ledger.bases()
        newest = self._bases[-1] if self._bases else None
        self._since_bytes = 0 if newest is None else ledger.archived_bytes(newest.accepted, newest.version)
        self._updates_bytes = ledger.archived_bytes()

    def open(self, snapshot: Snapshot, accepted: int, version: int) -> None:
        """Begin to append, from the state that the run goes on with. Raises CheckpointError if the disk refuses."""
        try:
            make_folder(self._folder)
            for path in set(self._folder.iterdir()) - {self._folder / name for name in self._ledger.archive_files()}:
                if epoch_of(path.name) <= self._ledger.epoch:  # a newer file belongs to a successor
                    remove(path)  # no row names it
            if not self._bases or self._ledger.archived_up_to() != accepted:
                self._add_base(snapshot, accepted, version)  # the archive is new, or was off for a while
            self._next_file(accepted)
        except OSError as error:
            raise CheckpointError(
                f"the archive in {self._folder} cannot be written: {error}. Make room, or leave the [archive] table out"
            ) from error

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def keep(self, order: int, payload: Parameters) -> None:
        """Append an accepted update. If the disk refuses, it waits for `sync`."""
        self._accepted = order
        self._append(ArchivedUpdate, order, payload)

    def keep_version(self, version: int, tensors: Parameters) -> None:
        """Append the floating tensors of a distilled version. If the disk refuses, they wait for `sync`."""
        self._append(ArchivedVersion, version, tensors)

    def _append(self, row: Row, number: int, tensors: Parameters) -> None:
        self._waiting.append((row, number, tensors))
        with contextlib.suppress(OSError):
            self._write_waiting()

    def sync(self) -> list[ArchivedUpdate | ArchivedVersion]:
        """Make all of it durable and return their rows for the transaction.

        Raises OSError if the disk refuses; nothing is lost, and the next try has the same updates. Raises
        CheckpointError if the disk has lost some of them; the broker still has those updates.
        """
        self._write_waiting()
        if self._rows and self._file is not None:
            try:
                os.fsync(self._file)
            except OSError:
                self._broken = True
                raise
            self._named = True
        return list(self._rows)

    def committed(self, snapshot: Snapshot, accepted: int, version: int) -> None:
        """Note that the rows are in the ledger, with this state, and remove what is beyond the limits."""
        new_bytes = sum(row.num_bytes for row in self._rows)
        self._since_bytes += new_bytes
        self._updates_bytes += new_bytes
        self._rows.clear()
        try:
            if accepted > self._bases[-1].accepted and self._is_full(self._bases[-1]):
                self._add_base(snapshot, accepted, version)
                self._next_file(accepted)
            self._forget()
        except OSError as error:
            log.warning("archive_part_not_begun", error=error, detail="the archive goes on with the old part")

    def _is_full(self, base: Base) -> bool:
        limit = self._settings.max_bytes
        full = limit is not None and base.num_bytes + self._since_bytes >= limit // PART_OF_LIMIT
        return self._is_older(base, PART_OF_LIMIT) or (full and self._since_bytes >= base.num_bytes)

    def _add_base(self, snapshot: Snapshot, accepted: int, version: int) -> None:
        name = f"{accepted:010d}-e{self._ledger.epoch:04d}-{secrets.token_hex(4)}.safetensors"
        memories = {
            f"strategy/{MEMORY}{participant_id}/{tensor}": array
            for participant_id, arrays in self._ledger.memories().items()
            for tensor, array in arrays.items()
        }
        arrays = dict(snapshot.arrays) | memories
        digest = checkpoint.write(self._folder / name, arrays, {"scalars": dict(snapshot.scalars)})
        num_bytes = (self._folder / name).stat().st_size
        base = Base(accepted, version, name, digest, num_bytes, self._now())
        self._ledger.add_base(base)
        self._bases = [*(old for old in self._bases if old.accepted < accepted), base]
        self._since_bytes = 0

    def _forget(self) -> None:
        while len(self._bases) > 1 and self._beyond_limits():
            gone = self._ledger.forget_archived(self._bases[1].accepted)
            self._bases.pop(0)
            self._updates_bytes = self._ledger.archived_bytes()
            for name in gone:
                with contextlib.suppress(OSError):  # no row names it any more, so the next start removes it
                    (self._folder / name).unlink()

    def _beyond_limits(self) -> bool:
        limit = self._settings.max_bytes
        used = sum(base.num_bytes for base in self._bases) + self._updates_bytes
        # All updates between the oldest base and the next one are older than the next one.
        return self._is_older(self._bases[1]) or (limit is not None and used > limit)

    def _is_older(self, base: Base, part: int = 1) -> bool:
        """Return True if the base is older than 1/`part` of the age limit, as far as the clocks can tell."""
        limit_s, old_s = self._settings.max_age_s, age_s(base.made, self._now())
        return limit_s is not None and old_s is not None and old_s > limit_s / part

    def _next_file(self, accepted: int) -> None:
        self._accepted = accepted
        self._go_on_in(*self._new_file(accepted))

    def _new_file(self, accepted: int) -> tuple[int, str]:
        name = f"{accepted:010d}-e{self._ledger.epoch:04d}-{secrets.token_hex(4)}.updates"
        file = open_in_place(self._folder / name)
        try:
            sync_folder(self._folder)
        except OSError:
            self._drop(file, name)
            raise
        return file, name

    def _drop(self, file: int, name: str) -> None:
        os.close(file)
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()

    def _leave_broken_file(self) -> None:
        """Go on in a new file with the updates that no transaction has. Raises OSError if the disk refuses that too."""
        broken, named = self._folder / self._name, self._named
        file, name = self._new_file(self._accepted)
        rows: list[ArchivedUpdate | ArchivedVersion] = []
        end = 0
        try:
            for row in self._rows:
                _write_all(file, _bytes_of(broken, row))
                rows.append(replace(row, file=name, offset=end))
                end += row.num_bytes
        except (OSError, CheckpointError) as error:
            self._drop(file, name)
            if isinstance(error, OSError):
                raise
            raise CheckpointError(
                f"the disk could not write the updates that were accepted last, and has lost them: {error}. None of "
                "them was acked, so the broker still has them: look at the disk, then start again by the same command"
            ) from error
        self._go_on_in(file, name, end)
        self._rows = rows
        log.warning(
            "archive_goes_on",
            file=name,
            broken=broken.name,
            detail="the disk could not write its end",
        )
        if not named:
            with contextlib.suppress(OSError):
                broken.unlink()

    def _go_on_in(self, file: int, name: str, end: int = 0) -> None:
        self.close()
        self._file, self._name, self._end = file, name, end
        self._broken = self._named = False

    def _write_waiting(self) -> None:
        if self._broken:
            self._leave_broken_file()
        assert self._file is not None
        while self._waiting:
            row, number, payload = self._waiting[0]
            pieces = _pieces(payload)
            crc, length = 0, 0
            for piece in pieces:
                crc, length = zlib.crc32(piece, crc), length + memoryview(piece).nbytes
            try:
                os.lseek(self._file, self._end, os.SEEK_SET)
                for piece in pieces if length > _JOINED_BYTES else [b"".join(pieces)]:
                    _write_all(self._file, memoryview(piece))
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
                raise
            self._rows.append(row(number, self._name, self._end, length, crc))
            self._end += length
            self._waiting.pop(0)


Row = type[ArchivedUpdate] | type[ArchivedVersion]
_JOINED_BYTES = 1024**2
_MOST_UPDATE_BYTES = 2 * MAX_PAYLOAD_BYTES
"""Most bytes of one archived update, its header included."""


def _write_all(file: int, data: memoryview) -> None:
    while data.nbytes:
        data = data[os.write(file, data) :]


def _pieces(payload: Parameters) -> list[memoryview | bytes]:
    """Return an update's bytes: 8 bytes little-endian header length, the padded JSON header, the tensors as packed by
    schemas.tensors."""
    entries = [[t.name, t.dtype, list(t.shape), t.trainable] for t in spec_of(payload)]
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % TENSOR_ALIGNMENT_BYTES)
    return [len(header).to_bytes(8, "little") + header, *pack(payload)]


def read_update(folder: Path, row: ArchivedUpdate | ArchivedVersion) -> Parameters:
    """Read the tensors of an archived update, or of a distilled version, and check them.

    Raises CheckpointError if they are damaged or gone.
    """
    path = folder / row.file
    data = _bytes_of(path, row)
    length = int.from_bytes(data[:8], "little")
    names = ("name", "dtype", "shape", "trainable")
    try:
        entries = [
            dict(zip(names, (e[0], e[1], tuple(e[2]), e[3]), strict=True)) for e in parse_json(data[8 : 8 + length])
        ]
        spec = read_entries(entries, Limits(max_tensors=2**31))
        return unpack(data[8 + length :], spec)
    except (FedmqError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{_named(row)} in {path} was written by another version of fedmq: {error}") from error


def _named(row: ArchivedUpdate | ArchivedVersion) -> str:
    return f"update {row.accepted_order}" if isinstance(row, ArchivedUpdate) else f"the distilled version {row.version}"


def _bytes_of(path: Path, row: ArchivedUpdate | ArchivedVersion) -> memoryview:
    try:
        with open_to_read(path, 2**63 - 1) as file:
            inside = 0 <= row.offset <= os.fstat(file.fileno()).st_size - row.num_bytes
            file.seek(row.offset if inside else 0)
            data = memoryview(file.read(row.num_bytes if inside and 0 <= row.num_bytes <= _MOST_UPDATE_BYTES else 0))
    except OSError as error:
        raise CheckpointError(f"{_named(row)} cannot be read from the archive: {error}") from error
    if data.nbytes != row.num_bytes or zlib.crc32(data) != row.crc32:
        raise CheckpointError(f"{_named(row)} is damaged in the archive: {path}, byte {row.offset}")
    return data


def read_base(folder: Path, base: Base) -> Snapshot:
    """Read the state that a base holds. Raises CheckpointError if it is damaged or gone."""
    found = checkpoint.read(folder / base.file, base.digest)
    arrays: Mapping[str, Array] = found.arrays
    scalars: Mapping[str, Any] = found.meta["scalars"]
    return Snapshot(arrays, scalars)
