"""Somebody who may write into our folders, and what each of our readers makes of it: one JSON line for each case.

    python -m tests.security.hostile ROOM FOLDER

It is a process of its own, because a hang is one of the failures, and a huge allocation another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import socket
import sqlite3
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from fedmq.schemas.errors import FedmqError
from tests.support.full import FULL

GIANT_BYTES = 2**42
MOST_MORE_BYTES = 2**30
"""Address space that the process may take beyond what it has once everything is imported."""
DEEP = "[" * 100_000 + "]" * 100_000


# Forms of a file


def _target(path: Path) -> Path:
    victim = path.parent / "victim"
    victim.write_bytes(b"nobody writes here")
    return victim


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has to be short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def _giant(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(GIANT_BYTES)


FORMS: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "link": lambda path: path.symlink_to(_target(path)),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path),
    "hard link": lambda path: path.hardlink_to(_target(path)),
    "folder": lambda path: (path / "inside").mkdir(parents=True),
    "socket": _socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "sparse giant": _giant,
    "empty": lambda path: path.write_bytes(b""),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe" * 300),
    "deep JSON": lambda path: path.write_text(DEEP),
}


def clear(path: Path) -> None:
    """Remove whatever is there. `shutil.rmtree` would wait for the other end of a FIFO."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put(path: Path, form: str | bytes) -> None:
    """Replace whatever is there."""
    clear(path)
    if isinstance(form, bytes):
        path.write_bytes(form)
    else:
        FORMS[form](path)


def spool_file(header: object, body: bytes = b"", *, raw: bytes | None = None, length: int | None = None) -> bytes:
    """Return a file of the spool with a right checksum over whatever content."""
    head = json.dumps(header).encode() if raw is None else raw
    digest = hashlib.blake2b(head, digest_size=16)
    digest.update(body)
    size = len(head) if length is None else length
    return b"fedmq spool 1\n" + digest.digest() + size.to_bytes(4, "little") + head + body


IDS = {"task_id": "t1", "run_id": "r1"}
SPOOLED = {
    "head of 4 GiB": spool_file({}, length=2**32 - 1),
    "deep head": spool_file({}, raw=DEEP.encode()),
    "head is a list": spool_file([1]),
    "head is no UTF-8": spool_file({}, raw=b"\xff{}"),
    "ids with spaces": spool_file({"task_id": "a b", "run_id": "../.."}),
    "ids that are objects": spool_file({"task_id": {"a": 1}, "run_id": ["x"]}),
    "times that are no times": spool_file({"wall_s": 10**400, "boot_s": "inf", "boot_id": []}),
    "times beyond all clocks": spool_file({"wall_s": 1e308, "boot_s": -1e308, "boot_id": "x"}, b"body"),
    "deep body": spool_file({}, DEEP.encode()),
    "sent is a list": spool_file({}, b'{"sent": [1], "done": 5}'),
    "sent with strange ids": spool_file({}, b'{"sent": {"a b": ["\\ud800", 1]}, "done": ["x"]}'),
    "a memory larger than the world": spool_file(
        {**IDS, "mark": "m", "tensors": [{"name": "w", "dtype": "float32", "shape": [2**40, 2**40], "trainable": True}]}
    ),
    "a memory without bytes": spool_file(
        {**IDS, "mark": "m", "tensors": [{"name": "w", "dtype": "float32", "shape": [5], "trainable": True}]}
    ),
    "a memory of strange tensors": spool_file({**IDS, "mark": "m", "tensors": [1, {"shape": None}, "x"]}),
}


# Cases


def report(kind: str, form: str, act: Callable[[], object]) -> None:
    """Say what came of it: nothing, an error of ours, or something raw."""
    print(json.dumps({"kind": kind, "form": form, "outcome": "begun"}), flush=True)
    text = ""
    try:
        act()
        outcome = "fine"
    except FedmqError as error:
        outcome, text = type(error).__name__, str(error)
    except BaseException:  # noqa: BLE001  that is what is looked for
        outcome, text = "RAW", traceback.format_exc()
    print(json.dumps({"kind": kind, "form": form, "outcome": outcome, "text": text}), flush=True)


def victims_are_whole(folder: Path) -> None:
    for victim in folder.rglob("victim"):
        assert victim.read_bytes() == b"nobody writes here", victim


def spool(folder: Path) -> None:
    """Start a participant's spool over each form of each of its files, and use it."""
    from fedmq.participant.memory import Memory
    from fedmq.participant.service.startup import restore
    from fedmq.participant.spool.chunk_journal import ChunkJournal
    from fedmq.participant.spool.spool import SentRecord, Spool
    from fedmq.schemas.codec import Limits
    from fedmq.schemas.local.clocks import Moment
    from fedmq.schemas.messages import ChunkedPayload

    payload = ChunkedPayload(payload_id="p", num_bytes=5000, chunk_bytes=1024, count=5, digest="0" * 64)

    def use() -> None:
        with closing(Spool(folder, "p0")) as opened:
            restore(opened, Limits())
            opened.read_memory("uid")
            opened.manifest("u1")
            ChunkJournal(opened.journal_path("u1"), {"payload_id": "p"}).without_gap()
            opened.payload.holds(payload)
            opened.payload.open(payload)
            opened.payload.sync({0: b"d" * 32})
            opened.payload.close()
            ChunkJournal(opened.journal_path("u1"), {"payload_id": "q"}).add({0: b"d" * 32})
            opened.clear_memory("r1")
            opened.write_task(b"new", Moment(1.0, 1.0, "b"))
            found = opened.read_task()
            assert found is not None
            assert bytes(found[0]) == b"new"
            opened.write_sent(SentRecord({}, ()))
            assert opened.read_sent() == SentRecord({}, ())
            opened.write_update("u2", "t2", "r1", b"two")
            assert "u2" in opened.outbox()
            opened.write_next_memory("u1", "t1", "r1", Memory("m", {}))
            opened.move_memory("u1", "uid")
            opened.clear_upload("u1")
            opened.clear_task()
        victims_are_whole(folder)

    names = (
        "task.fedmq", "sent.json", "task.payload", "task.chunks", "lock", "outbox/u1.fedmq", "outbox/u1.sent",
        "outbox/u1.chunks", "memory/uid.fedmq", "memory/next/u1.fedmq", "task.fedmq.tmp", "outbox/u2.fedmq.tmp",
        "set-aside", "outbox/\udcff.fedmq", "outbox", "memory", "memory/next", "",
    )  # fmt: skip
    for name in names:
        forms: dict[str, str | bytes] = {form: form for form in FORMS}
        if name.endswith((".fedmq", ".sent", ".json")):
            forms |= SPOOLED
        for form, content in forms.items():
            clear(folder)
            for made in ("outbox", "memory/next"):
                (folder / "p0" / made).mkdir(parents=True)
            (folder / "p0" / "outbox" / "u1.fedmq").write_bytes(spool_file(IDS, b"one"))
            put(folder / "p0" / name, content)
            report(name or "the folder", form, use)


def checkpoint_file(entries: dict[str, object], size: int = 0, meta: object = None, crcs: object = None) -> bytes:
    """Return a safetensors file whose header has a right digest over whatever content."""
    crc = json.dumps({name: zlib.crc32(bytes(size)) for name in entries} if crcs is None else crcs)
    text = json.dumps({} if meta is None else meta)
    digest = hashlib.blake2b(json.dumps([entries, crc, text]).encode(), digest_size=16).hexdigest()
    head = {"__metadata__": {"fedmq_crc32": crc, "fedmq_meta": text, "fedmq_digest": digest}, **entries}
    header = json.dumps(head).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def _tensor(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


WEIGHTS = "000/w"
CHECKPOINTS = {
    "header of 8 EiB": (2**63).to_bytes(8, "little") + b"{}",
    "deep header": len(DEEP).to_bytes(8, "little") + DEEP.encode(),
    "header is a list": (2).to_bytes(8, "little") + b"[]",
    "header is no UTF-8": (2).to_bytes(8, "little") + b"\xff\xff",
    "no metadata": (2).to_bytes(8, "little") + b"{}",
    "larger than the world": checkpoint_file({WEIGHTS: _tensor([2**40, 2**40], [0, 20])}, 20),
    "a terabyte that is not there": checkpoint_file({WEIGHTS: _tensor([2**40], [0, 2**42])}, 20),
    "empty and wide": checkpoint_file({WEIGHTS: _tensor([2**61, 2**61, 0], [0, 0])}),
    "shape below nothing": checkpoint_file({WEIGHTS: _tensor([-5], [0, 20])}, 20),
    "shape of truth": checkpoint_file({WEIGHTS: _tensor([True], [0, 4])}, 4),
    "shape of text": checkpoint_file({WEIGHTS: _tensor("5", [0, 20])}, 20),
    "rank of 10,000": checkpoint_file({WEIGHTS: _tensor([1] * 10_000, [0, 4])}, 4),
    "offsets that overlap": checkpoint_file({"a": _tensor([5], [0, 20]), "b": _tensor([5], [10, 30])}, 30),
    "offsets backwards": checkpoint_file({WEIGHTS: _tensor([5], [20, 0])}, 20),
    "offsets with a gap": checkpoint_file({WEIGHTS: _tensor([5], [4, 24])}, 24),
    "one offset": checkpoint_file({WEIGHTS: _tensor([5], [0])}, 20),
    "a dtype of nobody": checkpoint_file({WEIGHTS: _tensor([5], [0, 20], "F4")}, 20),
    "a dtype that is a list": checkpoint_file({WEIGHTS: _tensor([5], [0, 20], ["F32"])}, 20),
    "no checksums": checkpoint_file({WEIGHTS: _tensor([5], [0, 20])}, 20, crcs=[]),
    "checksums of others": checkpoint_file({WEIGHTS: _tensor([5], [0, 20])}, 20, crcs={"x": 1}),
    "meta is a list": checkpoint_file({WEIGHTS: _tensor([5], [0, 20])}, 20, meta=[1]),
    "flags of nothing": checkpoint_file({WEIGHTS: _tensor([5], [0, 20])}, 20, meta={"non_trainable": {"a": [1]}}),
    "flags of lists": checkpoint_file({WEIGHTS: _tensor([5], [0, 20])}, 20, meta={"non_trainable": [["x"]]}),
}


def initial(folder: Path) -> None:
    """Read a file of initial parameters, which the user names, and one that the worker process wrote."""
    from fedmq.app.parameter_files import read_parameters

    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    for form, content in ({form: form for form in FORMS} | CHECKPOINTS).items():
        for by_user in (True, False):
            put(path, content)
            kind = "initial" if by_user else "evaluate"
            report(kind, form, lambda by_user=by_user: read_parameters(path, most_bytes=2**20, named_by_user=by_user))


def trace(folder: Path) -> None:
    """Read a study's trace."""
    from fedmq.studies.population.traces import read_traces

    folder.mkdir(exist_ok=True)
    contents: dict[str, str | bytes] = {form: form for form in FORMS}
    contents |= {
        "no number": b'[{"example_s": 1' + b"0" * 400 + b"}]",
        "object of objects": b'{"a": {"example_s": {"b": 1}}}',
        "times of lists": b'[{"active": [[1]], "inactive": [{}]}]',
        "rows of text": b'["a", 5, null]',
        "a cell of a megabyte": b"example_s\n" + b"1" * 2**20,
    }
    for suffix in ("csv", "json"):
        for form, content in contents.items():
            path = folder / f"trace.{suffix}"
            put(path, content)
            report(path.name, form, lambda path=path: read_traces(path))


LEDGERS = {
    "a view": "CREATE VIEW v AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "a view in place of a table": "DROP TABLE updates; CREATE VIEW updates AS WITH RECURSIVE n(i) AS (SELECT 1 UNION "
    "ALL SELECT i + 1 FROM n) SELECT i AS accepted_order FROM n",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON epochs BEGIN DELETE FROM updates; END",
    "no tables": "DROP TABLE updates",
    "settings are a list": "UPDATE run SET settings = '[1]'",
    "settings without tables": "UPDATE run SET settings = '{}'",
    "settings of numbers": """UPDATE run SET settings = '{"run": 5, "strategy": 7, "commit": [1], "training": 1}'""",
    "deep settings": f"UPDATE run SET settings = '{DEEP}'",
    "settings are no UTF-8": "UPDATE run SET settings = CAST(X'ff' AS TEXT)",
    "scalars are no object": "UPDATE checkpoints SET scalars = '5'",
    "scalars are empty": "UPDATE checkpoints SET scalars = '{}'",
    "no checkpoints": "DELETE FROM checkpoints",
    "a checkpoint elsewhere": "UPDATE checkpoints SET file = '../../../../etc/passwd'",
    "a checkpoint with a zero in its name": "UPDATE checkpoints SET file = 'a' || char(0) || 'b'",
    "an archive elsewhere": "UPDATE archive_updates SET file = '/etc/passwd'",
    "an archive of an exabyte": "UPDATE archive_updates SET num_bytes = 1152921504606846976, offset = 0",
    "an archive of 8 GiB": "UPDATE archive_updates SET num_bytes = 8589934592, offset = -4",
    "metrics are text": """UPDATE updates SET metrics = '{"loss": "x"}'""",
    "metrics are deep": f"UPDATE updates SET metrics = '{DEEP}'",
    "examples of nobody": "UPDATE updates SET num_examples = 0, num_steps = 0",
    "staleness below 0": "UPDATE updates SET staleness = -9000000000000000000, version = -7",
    "times beyond all clocks": "UPDATE epochs SET began_wall_s = 1e300, pid = 9223372036854775807, ended_wall_s = NULL",
    "a pid below 0": "UPDATE epochs SET pid = -5, ended_wall_s = NULL; UPDATE run SET finished = NULL",
    "infinite times": "UPDATE run SET elapsed_s = 9e999, committed_wall_s = -9e999, created_wall_s = 9e999",
    "participants of nothing": "UPDATE participants SET record = '{}'",
    "participants of lists": "UPDATE participants SET record = '[1]'",
    "digests of nobody": "UPDATE checkpoints SET digest = ''; UPDATE archive_bases SET digest = 'x'",
    "no run": "DELETE FROM run",
    "another program's": "PRAGMA application_id = 5",
}


def commands_on(run: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each command that reads a run folder. It ends by SystemExit(0, 1 or 2), or by an error of ours."""
    from fedmq.cli.cli import main
    from fedmq.studies.engine.replay import replay
    from fedmq.studies.population.recorded_runs import digest

    def command(*words: str) -> Callable[[], object]:
        def act() -> None:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                status: object = 0
                try:
                    main(list(words))
                except SystemExit as end:
                    status = end.code
                if status not in (None, 0, 1, 2):
                    raise ValueError(f"exit status {status}")

        return act

    yield "status", command("status", str(run))
    yield "status --json", command("status", str(run), "--json")
    yield "verify", command("verify", str(run))
    yield "explain", command("explain", str(run), "2")
    yield "from_run", lambda: digest(str(run))
    yield "replay", lambda: replay(run)


def run_folder(folder: Path) -> None:
    """Read a run's folder, and start a coordinator on it, over each form of each of its files."""
    from tests.integration.coordinator.federation import Federation

    good = folder.parent / "good"
    names = [str(path.relative_to(good)) for path in sorted(good.rglob("*"))]
    names += ["ledger.sqlite-wal", "ledger.sqlite-shm", "ledger.sqlite-journal", "final.safetensors.tmp", ""]
    cases: list[tuple[str, str, Callable[[], object]]] = []
    for name in names:
        cases += [(name or "the folder", form, lambda name=name, form=form: put(folder / name, form)) for form in FORMS]
        if name.endswith(".safetensors"):
            for form, content in CHECKPOINTS.items():
                cases.append((name, form, lambda name=name, content=content: put(folder / name, content)))
    cases = cases[:: 1 if FULL else 5]  # each file meets other forms: their number is no multiple of five
    for form, statement in LEDGERS.items():
        cases.append(("the ledger's content", form, lambda statement=statement: _tamper(folder, statement)))

    def start() -> None:
        federation = Federation(folder)
        try:
            federation.join("p0")
            federation.run()
        finally:
            federation.close()
        victims_are_whole(folder)

    for name, form, spoil in cases:
        clear(folder)
        shutil.copytree(good, folder)
        spoil()
        for command, act in commands_on(folder):
            if "/" not in name or command in ("verify", "replay"):  # the others read the ledger alone
                report(f"{command}: {name}", form, act)
        if form in STARTED or form in LEDGERS:
            report(f"coordinator: {name}", form, start)


def _tamper(folder: Path, statements: str) -> None:
    db = sqlite3.connect(folder / "ledger.sqlite")
    db.executescript(statements)
    db.close()


STARTED = ("FIFO", "hard link", "folder")
"""Forms over which a whole coordinator is started: that takes longer than a look."""
ROOMS = {"spool": spool, "initial": initial, "trace": trace, "run": run_folder}


def main(room: str, folder: str) -> None:
    """Try all cases of one room."""
    import fedmq.cli.commands.status
    import fedmq.coordinator.service.service
    import fedmq.participant.spool.spool
    import fedmq.studies.engine.replay  # noqa: F401

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MORE_BYTES, used + MOST_MORE_BYTES))
    ROOMS[room](Path(folder) / "tried")


if __name__ == "__main__":
    main(*sys.argv[1:])
