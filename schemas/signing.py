"""The coordinator's signature on a task: the exact bytes that are signed, and the check.

TLS does not protect a device from whoever administers the broker. A signature does: it is made with the coordinator's
own key, which never goes through the broker (docs/decisions/0038-signed-tasks.md).

    signed  = "fedmq task 1" 00, text(run_uid), text(task_id), text(participant_id), u64(base_version),
              SHA-256(config), SHA-256(tensors)
    config  = all fields of the Task but those above, `kind`, `chunks`, `reference` and `signature`, as JSON
    tensors = u32(number of tensors), an entry for each tensor, blob
    entry   = text(name), text(dtype), u8(trainable), u32(rank), u64(dimension) for each dimension

    text(x) = u32(length in bytes), x in UTF-8
    u8, u32, u64 = an unsigned integer of so many bits, most significant byte first

Rules
1. The JSON is ASCII, its keys are sorted, and there is no space. A float is written as Python's `repr` writes it, with
   the fewest digits that give it back. So 1, 1.0 and true differ. The fields are `run_id`, `work`, `reply`, `training`
   and `lease_s`, `uplink` if the update is asked for in a codec, `frozen`, the digest of the frozen part, if the model
   has one, and `downlink` if the model travels in a codec. A field that is added to Task or to TrainingConfig is signed
   too. With `downlink`, the tensors are those that are trained from, in whatever form they travel.
2. The blob is that of `schemas.tensors`, with zeros in its gaps. It is hashed in place, and no copy is made.
3. `run_uid` is the part of the task_id that names the run.
4. Nothing here depends on how a message is encoded, or on whether it travels whole, in chunks or by reference.
5. Each part has a fixed length or tells its length. So no two tasks have the same bytes.

The signature is Ed25519's (RFC 8032). `fedmq.fleet.certificates` has the keys, so that no other room needs them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from fedmq.schemas.errors import BadSignature
from fedmq.schemas.messages import Task, run_uid
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import pack, spec_of

Sign = Callable[[bytes], str]
"""Return the signature of these bytes: 128 hexadecimal digits."""
Verify = Callable[[bytes, str], bool]
"""Return True if the signature, 128 hexadecimal digits, is the coordinator's for these bytes."""

PREFIX = b"fedmq task 1\0"
_LATER = ("uplink", "frozen", "downlink", "former")
_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
BY_THEMSELVES = frozenset({"kind", "task_id", "participant_id", "base_version", "chunks", "reference", "signature"})
"""Fields of a Task that are not part of `config`. The chunks, and where they are, are a way to send the tensors, and
these are signed."""


def tensors_digest(parameters: Parameters) -> bytes:
    """Return the 32 bytes of SHA-256 over a task's tensors. It takes one pass over them, and no copy."""
    specs = spec_of(parameters)
    head = [_number(len(specs), 4)]
    for tensor in specs:
        shape = [_number(len(tensor.shape), 4), *(_number(dimension, 8) for dimension in tensor.shape)]
        head += [_text(tensor.name), _text(tensor.dtype), _number(tensor.trainable, 1), *shape]
    digest = hashlib.sha256(b"".join(head))
    for piece in pack(parameters):
        digest.update(piece)
    return digest.digest()


def config_digest(task: Task) -> bytes:
    """Return the 32 bytes of SHA-256 over the fields of a task that do not stand by themselves."""
    absent = {name for name in _LATER if getattr(task, name) is None}  # as before there were such fields
    fields: dict[str, Any] = task.model_dump(exclude={*BY_THEMSELVES, *absent})
    return hashlib.sha256(_JSON.encode(fields).encode()).digest()


def signed_bytes(task: Task, tensors: bytes) -> bytes:
    """Return the bytes that the signature of a task is for. `tensors` is the digest of its tensors."""
    ids = (run_uid(task.task_id), task.task_id, task.participant_id)
    return b"".join([PREFIX, *map(_text, ids), _number(task.base_version, 8), config_digest(task), tensors])


def signed(task: Task, tensors: bytes, sign: Sign) -> Task:
    """Return the task with its signature. `tensors` is the digest of its tensors."""
    return task.model_copy(update={"signature": sign(signed_bytes(task, tensors))})


def check_signed(task: Task) -> None:
    """Raise BadSignature if the task has no signature. It is all that can be told before its tensors are here."""
    if task.signature is None:
        raise BadSignature(
            "the task has no signature, and this device's bundle asks for the coordinator's. Start the coordinator "
            "with the folder of its fleet ([security] fleet)"
        )


def check_signature(task: Task, parameters: Parameters, verify: Verify) -> None:
    """Raise BadSignature unless the coordinator has signed this task with these tensors."""
    check_signed(task)
    assert task.signature is not None
    if not verify(signed_bytes(task, tensors_digest(parameters)), task.signature):
        raise BadSignature(
            "the task's signature is not the coordinator's for this task and these parameters. Somebody changed it on "
            "its way, or the coordinator has another signing key than this device's bundle expects"
        )


def _text(value: str) -> bytes:
    written = value.encode()
    return _number(len(written), 4) + written


def _number(value: int, num_bytes: int) -> bytes:
    return int(value).to_bytes(num_bytes, "big")
