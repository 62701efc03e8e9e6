"""Files of ours with a right checksum over whatever content: what somebody writes who knows our formats."""

from __future__ import annotations

import hashlib
import json
import zlib

DEEP = "[" * 100_000 + "]" * 100_000


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


def frozen_file(entries: object, blob: bytes = b"", length: int | None = None) -> bytes:
    """Return a file of a frozen part with whatever content."""
    head = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(head) if length is None else length).to_bytes(4, "big") + head + blob


def _frozen(name: str, shape: object, dtype: str = "float32") -> dict[str, object]:
    return {"name": name, "dtype": dtype, "shape": shape, "trainable": False}


FROZEN = {
    "entries of 4 GiB": frozen_file([], length=2**32 - 1),
    "deep entries": frozen_file(DEEP.encode()),
    "entries of numbers": frozen_file([1, None]),
    "entries are an object": frozen_file({"name": "x"}),
    "another model's tensors": frozen_file([_frozen("frozen:0:w", [3])], bytes(12)),
    "names of nobody": frozen_file([_frozen("../../w", [3])], bytes(12)),
    "larger than the world": frozen_file([_frozen("frozen:0:w", [2**40, 2**40])], bytes(12)),
    "a shape of text": frozen_file([_frozen("frozen:0:w", "333")], bytes(12)),
    "a dtype of nobody": frozen_file([_frozen("frozen:0:w", [3], "object")], bytes(12)),
    "less than it says": frozen_file([_frozen("frozen:0:w", [3])], bytes(11)),
}


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
