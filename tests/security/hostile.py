"""Somebody who may write into our folders, and what each of our readers makes of it: one JSON line for each case.

    python -m tests.security.hostile ROOM FOLDER

It is a process of its own, because a hang is one of the failures, and a huge allocation another.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from fedmq.schemas.errors import FedmqError
from tests.security.forged import CHECKPOINTS, DEEP, FROZEN, IDS, LEDGERS, SPOOLED, spool_file
from tests.support.full import FULL

GIANT_BYTES = 2**42
MOST_MORE_BYTES = 2**30
"""Address space that the process may take beyond what it has once everything is imported."""


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
    from fedmq.participant.spool.spool import KeptModel, SentRecord, Spool
    from fedmq.schemas.codec import Limits
    from fedmq.schemas.frozen import frozen_part
    from fedmq.schemas.local.clocks import Moment
    from fedmq.schemas.messages import ChunkedPayload, HeldModel
    from fedmq.schemas.parameters import Parameters

    part = frozen_part(Parameters({"frozen:0:w": np.ones(3, np.float32)}))
    payload = ChunkedPayload(payload_id="p", num_bytes=5000, chunk_bytes=1024, count=5, digest="0" * 64)

    def use() -> None:
        with closing(Spool(folder, "p0")) as opened:
            restore(opened, Limits())
            opened.read_memory("uid")
            opened.adopt_soft_memory("u2", ("uid", "u3"))
            opened.forget_soft_memory("uid")
            opened.read_model()
            opened.frozen.digests()
            opened.frozen.read(part.digest)
            opened.frozen.keep(part)
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
            model = KeptModel(HeldModel(version=1, digest="0" * 64), part.tensors)
            opened.write_model(model, "r1")
            kept = opened.read_model()
            assert kept is not None
            assert kept.held == model.held
        victims_are_whole(folder)

    names = (
        "task.fedmq", "sent.json", "task.payload", "task.chunks", "lock", "outbox/u1.fedmq", "outbox/u1.sent",
        "outbox/u1.chunks", "memory/uid.fedmq", "memory/next/u1.fedmq", "task.fedmq.tmp", "outbox/u2.fedmq.tmp",
        "model.fedmq", "frozen", f"frozen/{part.digest}", "model.fedmq.tmp",
        "set-aside", "outbox/\udcff.fedmq", "outbox", "memory", "memory/next", "",
    )  # fmt: skip
    for name in names:
        forms: dict[str, str | bytes] = {form: form for form in FORMS}
        if name.endswith((".fedmq", ".sent", ".json")):
            forms |= SPOOLED
        if name.startswith("frozen/"):
            forms |= FROZEN
        for form, content in forms.items():
            clear(folder)
            for made in ("outbox", "memory/next", "frozen"):
                (folder / "p0" / made).mkdir(parents=True)
            (folder / "p0" / "outbox" / "u1.fedmq").write_bytes(spool_file(IDS, b"one"))
            put(folder / "p0" / name, content)
            report(name or "the folder", form, use)


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
