"""Files that a participant keeps, so that a crash at any instruction loses nothing that was promised.

    spool_dir/<participant_id>/task.fedmq                the task in hand, as it came
                               outbox/<update_id>.fedmq  updates that the broker has not confirmed
                               sent.json                 updates without a receipt, and tasks that are over
                               memory/<run_uid>.fedmq    the method's memory of a run, after its accepted updates
                               memory/next/<update_id>.fedmq  the memory that counts once this update is accepted
                               frozen/<digest>           frozen parts of models (participant.spool.frozen_store)
                               model.fedmq               the newest hidden state, if tasks travel as steps
                               own/<run_uid>/            what the trainer itself keeps of a run
                               set-aside/                unreadable files, for somebody to look at
                               *.chunks, *.payload ...   payloads in chunks: see `participant.spool.chunk_journal`
                               lock                      held by the one process that may use the folder

Every file is a regular file of a bounded size, closed to other users (schemas.local.files). One that is anything else,
or whose content is not what fedmq writes, is set aside, and the participant goes on without it.

A file is written beside its place, synced and renamed into its place, and then the folder is synced: the file is there
whole or not at all. Its checksum shows a disk that lied. Every OSError becomes a SpoolError that names the file. After
a failed write the old content is still in place, so the caller can decline the task or try again
(`participant.decisions.agent`, rules 1 and 6).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from fedmq.participant.memory import Memory
from fedmq.participant.spool.chunk_journal import PayloadFile
from fedmq.participant.spool.frozen_store import FrozenStore
from fedmq.participant.spool.records import (
    MOST_HEAD_BYTES,
    WRONG,
    Body,
    as_spool_error,
    remove_file,
    tensor_entries,
    tensors_in,
    unwrap,
    wrap,
    write,
)
from fedmq.schemas.errors import PeerError, SpoolError
from fedmq.schemas.limits import MAX_PAYLOAD_BYTES
from fedmq.schemas.local.clocks import Moment
from fedmq.schemas.local.durable import sync_folder
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.local.files import UnfitFile, content, make_folder, parse_json, remove
from fedmq.schemas.local.locks import FileLock, holders
from fedmq.schemas.messages import HeldModel, Identifier
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import pack

log = EventLog(__name__)

MOST_MEMORIES = 4
"""Runs whose memories are kept. A run whose end was never announced loses its memory after so many later runs. So many
runs' own folders of the trainer are kept too, whether a run is over or not."""
MOST_BYTES = MAX_PAYLOAD_BYTES + MOST_HEAD_BYTES
MOST_NOTE_BYTES = 16 * 1024 * 1024
"""Largest sent.json, and largest manifest."""
_ID = TypeAdapter(Identifier)


@dataclass(frozen=True, slots=True)
class SentRecord:
    """The content of sent.json. `participant.decisions.events.Restored` explains the fields."""

    sent: Mapping[str, tuple[str, str]]
    done: tuple[str, ...]


def folders_of(spool_dir: Path, participant_id: str) -> tuple[Path, Path, Path, Path]:
    """Return a participant's own folder, and those in it: for the outbox, the memories and the next memories."""
    folder = spool_dir / participant_id
    return folder, folder / "outbox", folder / "memory", folder / "memory" / "next"


@dataclass(frozen=True, slots=True)
class KeptModel:
    """The hidden state that tasks in steps begin from (fedmq.schemas.codecs.hidden)."""

    held: HeldModel
    tensors: Parameters


class Spool:
    """One participant's folder. Raises SpoolError if another process uses it, or if it cannot be written."""

    def __init__(self, spool_dir: Path, participant_id: str) -> None:
        self.folder, self._outbox, self._memory, self._next = folders_of(spool_dir, participant_id)
        self._task = self.folder / "task.fedmq"
        self._sent = self.folder / "sent.json"
        self._model = self.folder / "model.fedmq"
        self.payload = PayloadFile(self.folder)
        """Parameters of a task that came in chunks. The task file then holds the manifest."""
        self.frozen = FrozenStore(self.folder)
        """Frozen parts of models, each kept from the first task with it."""
        with as_spool_error("make", self._outbox):
            for folder in (self.folder, self._outbox, self._memory, self._next):
                make_folder(folder)
            self._lock = FileLock(self.folder / "lock")
            alone = self._lock.take()
        if not alone:
            self._lock.close()
            raise SpoolError(
                f"{self.folder} is in use by another process: {holders(self._lock.path)}. Two participants must not "
                "share one id and spool_dir. Stop the other one, or start this one with another --id"
            )
        with as_spool_error("clean", self.folder):
            for left_over in (*self.folder.glob("*.tmp"), *self._outbox.glob("*.tmp"), *self._memory.rglob("*.tmp")):
                remove(left_over)
            for beside in (*self._outbox.glob("*.chunks"), *self._outbox.glob("*.sent")):
                if not beside.with_suffix(".fedmq").exists():
                    remove(beside)

    def check(self) -> None:
        """Make the folders again that somebody has removed because they were empty. Raises SpoolError if all is gone,
        or elsewhere: another process could use the place."""
        if not self._lock.in_place():
            raise SpoolError(
                f"{self.folder} was moved, replaced or removed while its participant ran, perhaps by a cleaner of old "
                "files. Start the participant again, with a spool_dir that nobody cleans"
            )
        for folder in (self._outbox, self._memory, self._next):
            if not folder.is_dir():
                with as_spool_error("make", folder):
                    make_folder(folder)
                log.warning("spool_folder_made_again", folder=folder)

    def close(self) -> None:
        """Let another process use the folder. Idempotent."""
        self._lock.close()

    # The task

    def write_task(self, body: bytes | bytearray | memoryview, received: Moment) -> None:
        """Write the task's message body, in place of the one before."""
        write(self._task, wrap(asdict(received), body))

    def read_task(self) -> tuple[Body, Moment] | None:
        """Return the task's body and the moment when it came; None if there is none that can be read."""
        found = self._read(self._task)
        if found is None:
            return None
        header, body, _ = found
        try:
            received = Moment(float(header["wall_s"]), float(header["boot_s"]), str(header["boot_id"]))
            if not (math.isfinite(received.wall_s) and math.isfinite(received.boot_s)):
                raise ValueError("a time that is not finite")
        except WRONG:
            self.set_aside(self._task, "its header is not a task's")
            return None
        return body, received

    def clear_task(self) -> None:
        remove_file(self._task)
        with as_spool_error("remove", self.folder):
            self.payload.clear()

    def set_aside_task(self, why: str) -> None:
        """Set aside a task file that is whole, but that this build cannot decode."""
        self.set_aside(self._task, why)

    # The hidden state

    def write_model(self, model: KeptModel, run_id: str) -> None:
        """Write the newest hidden state, in place of the one before."""
        header = {**model.held.model_dump(), "run_id": run_id, "tensors": tensor_entries(model.tensors)}
        write(self._model, wrap(header, *pack(model.tensors)))

    def read_model(self) -> KeptModel | None:
        """Return the newest hidden state; None if there is none that can be read."""
        found = self._read(self._model)
        if found is None:
            return None
        try:
            held = HeldModel(version=found[0]["version"], digest=found[0]["digest"])
            return KeptModel(held, tensors_in(found[0], found[1]))
        except (*WRONG, PeerError) as error:
            self.set_aside(self._model, f"its content is not as expected: {error}")
            return None

    # The outbox

    def write_update(self, update_id: str, task_id: str, run_id: str, *body: bytes | memoryview) -> None:
        """Write a finished update, given in one piece or several."""
        self.clear_upload(update_id)  # an earlier training of the same task may have left one
        write(self._update(update_id), wrap({"task_id": task_id, "run_id": run_id}, *body))

    def read_update(self, update_id: str) -> tuple[str, Body]:
        """Return the file's checksum, which names this very content, and the update's body.

        Raises SpoolError if the file is gone or not whole. In the latter case it is set aside.
        """
        found = self._read(self._update(update_id))
        if found is None:
            raise SpoolError(f"update {update_id} cannot be read from {self._outbox}: its task has to be trained again")
        return found[2], found[1]

    def clear_update(self, update_id: str) -> None:
        remove_file(self._update(update_id))

    def journal_path(self, update_id: str) -> Path:
        """Return the path of the journal of an upload's confirmed chunks."""
        return self._outbox / f"{update_id}.chunks"

    def write_manifest(self, update_id: str, body: bytes) -> None:
        """Write the manifest that announces an update which is uploaded whole."""
        write(self._manifest(update_id), wrap({}, body))

    def manifest(self, update_id: str) -> bytes | None:
        """Return the manifest of an update that is uploaded whole; None if it is not."""
        found = self._read(self._manifest(update_id), MOST_NOTE_BYTES)
        return None if found is None else bytes(found[1])

    def has_upload(self, update_id: str) -> bool:
        """True if there are notes about the update's chunks."""
        return self._manifest(update_id).exists() or self.journal_path(update_id).exists()

    def clear_upload(self, update_id: str) -> None:
        """Delete the notes about the update's chunks. The update itself stays."""
        for path in (self._manifest(update_id), self.journal_path(update_id)):
            with as_spool_error("remove", path):
                remove(path)

    def _manifest(self, update_id: str) -> Path:
        return self._outbox / f"{update_id}.sent"

    def outbox(self) -> dict[str, tuple[str, str]]:
        """Return update_id -> (task_id, run_id) of the updates that can be read, oldest first."""
        return self._listed(self._outbox)

    # Updates after their delivery

    def write_sent(self, record: SentRecord) -> None:
        """Replace sent.json."""
        text = json.dumps({"sent": record.sent, "done": record.done})
        write(self._sent, wrap({}, text.encode()))

    def read_sent(self) -> SentRecord:
        """Return the content of sent.json; empty if it cannot be read."""
        found = self._read(self._sent, MOST_NOTE_BYTES)
        if found is None:
            return SentRecord({}, ())
        try:
            written = parse_json(found[1])
            sent = {_id(uid): (_id(task_id), _id(run_id)) for uid, (task_id, run_id) in written["sent"].items()}
            return SentRecord(sent, tuple(_id(task_id) for task_id in written["done"]))
        except WRONG as error:
            self.set_aside(self._sent, f"its content is not as expected: {error}")
            return SentRecord({}, ())

    # The method's memory

    def write_next_memory(self, update_id: str, task_id: str, run_id: str, memory: Memory) -> None:
        """Write the memory that counts once this update is accepted."""
        tensors = Parameters(memory.tensors)
        of_task = {"task_id": task_id, "run_id": run_id, "mark": memory.mark}
        header = {**of_task, "tensors": tensor_entries(tensors), "soft": memory.soft}
        write(self._next / f"{update_id}.fedmq", wrap(header, b"".join(pack(tensors))))

    def move_memory(self, update_id: str, run_uid: str) -> None:
        """Make the memory that an accepted update left the memory of its run. Idempotent."""
        path, target = self._next / f"{update_id}.fedmq", self._memory / f"{run_uid}.fedmq"
        with as_spool_error("move", path):
            try:
                path.replace(target)
            except FileNotFoundError:
                return
            os.utime(target, follow_symlinks=False)
            for folder in (self._memory, self._next):
                sync_folder(folder)
            for old in sorted(self._memory.glob("*.fedmq"), key=lambda file: -file.lstat().st_mtime_ns)[MOST_MEMORIES:]:
                remove(old)

    def drop_next_memory(self, update_id: str) -> None:
        """Delete the memory that an update would have left, because it is not accepted. Idempotent."""
        remove_file(self._next / f"{update_id}.fedmq")

    def read_memory(self, run_uid: str) -> Memory | None:
        """Return the memory of a run; None if there is none that can be read."""
        path = self._memory / f"{run_uid}.fedmq"
        found = self._read(path)
        if found is None:
            return None
        try:
            soft = found[0].get("soft") is True
            return Memory(_id(found[0]["mark"]), tensors_in(found[0], found[1]), soft)
        except (*WRONG, PeerError) as error:
            self.set_aside(path, f"its content is not as expected: {error}")
            return None

    def adopt_soft_memory(self, run_uid: str, former: Iterable[str]) -> None:
        """Make what the participant remembers under an earlier id of a run its memory, if it has
        none yet. Idempotent."""
        target = self._memory / f"{run_uid}.fedmq"
        for uid in () if target.exists() else former:
            memory = self.read_memory(uid)
            if memory is not None and memory.soft:
                with as_spool_error("move", target):
                    (self._memory / f"{uid}.fedmq").replace(target)
                    sync_folder(self._memory)
                return

    def forget_soft_memory(self, run_uid: str) -> None:
        """Delete the memory of a run that its participant can go on without. Idempotent."""
        memory = self.read_memory(run_uid)
        if memory is not None and memory.soft:
            remove_file(self._memory / f"{run_uid}.fedmq")

    def unsettled(self) -> dict[str, tuple[str, str]]:
        """Return update_id -> (task_id, run_id) of the updates whose verdict decides on the memory, oldest first."""
        return self._listed(self._next)

    def _listed(self, folder: Path) -> dict[str, tuple[str, str]]:
        """Return update_id -> (task_id, run_id) of a folder's files, oldest first. Set aside those without ids."""
        found: dict[str, tuple[str, str]] = {}
        with as_spool_error("read", folder):
            paths = sorted(folder.glob("*.fedmq"), key=lambda path: path.lstat().st_mtime_ns)
        for path in paths:
            written = self._read(path)
            if written is not None:
                try:
                    found[_id(path.stem)] = _id(written[0]["task_id"]), _id(written[0]["run_id"])
                except WRONG:
                    self.set_aside(path, "its name or its header has no ids that fedmq writes")
        return found

    def clear_memory(self, run_id: str) -> None:
        """Delete the memory and the hidden state of a run that is over."""
        with as_spool_error("read", self._memory):
            paths = [*self._memory.glob("*.fedmq"), self._model]
        for path in paths:
            written = self._read(path)
            if written is not None and written[0].get("run_id") == run_id:
                remove_file(path)

    # The trainer's own files

    def own_folder(self, run_uid: str) -> Path:
        """Return the folder where the trainer keeps what it likes of a run. The oldest ones of other runs go."""
        folder = self.folder / "own" / run_uid
        with as_spool_error("make", folder):
            if not folder.is_dir():
                make_folder(folder)
                beside = folder.parent.iterdir()
                others = [path for path in beside if path != folder and path.is_dir() and not path.is_symlink()]
                for old in sorted(others, key=lambda path: -path.lstat().st_mtime_ns)[MOST_MEMORIES - 1 :]:
                    shutil.rmtree(old)
        return folder

    # Files

    def set_aside(self, path: Path, why: str) -> None:
        """Move a bad file out of the way and log that. The participant goes on without it."""
        folder = self.folder / "set-aside"
        target = folder / f"{time.time_ns()}-{path.name[:100]}"
        log.error("spool_file_set_aside", file=path, moved_to=target, why=why)
        with as_spool_error("set aside", path):
            make_folder(folder)
            path.replace(target)

    def _update(self, update_id: str) -> Path:
        return self._outbox / f"{update_id}.fedmq"

    def _read(self, path: Path, most_bytes: int = MOST_BYTES) -> tuple[dict[str, Any], Body, str] | None:
        with as_spool_error("read", path):
            try:
                return unwrap(content(path, most_bytes))
            except FileNotFoundError:
                return None
            except UnfitFile as error:
                why = error.strerror or "no plain file"
            except ValueError as error:
                why = str(error)
        self.set_aside(path, why)
        return None


def _id(value: object) -> str:
    """Return an id. Raises ValueError if it is none: it would go into a message."""
    return _ID.validate_python(value, strict=True)
