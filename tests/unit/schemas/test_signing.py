"""The bytes under a task's signature, in exact values, and that no two tasks share them."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fedmq.fleet import certificates
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.errors import BadSignature
from fedmq.schemas.messages import ChunkedPayload, Task, TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import (
    BY_THEMSELVES,
    check_signature,
    config_digest,
    signed,
    signed_bytes,
    tensors_digest,
)

FIELDS: dict[str, Any] = {
    "task_id": "0a1b2c3d-7", "run_id": "run", "participant_id": "sensor-1", "base_version": 3, "reply": "delta",
    "lease_s": 60.0, "training": TrainingConfig(learning_rate=0.1, seed=5, extra={"n": 1, "x": 1.0, "é": "ß"}),
}  # fmt: skip
TASK = Task(**FIELDS)
TENSORS = Parameters({"a/w": np.array([[1, 2, 3]], np.float32), "b": np.array(7, np.int64)}, {"b"})
CONFIG = (
    rb'{"lease_s":60.0,"reply":"delta","run_id":"run","training":{"batch_size":32,"epochs":1,'
    rb'"extra":{"n":1,"x":1.0,"\u00e9":"\u00df"},"learning_rate":0.1,"max_steps":null,"proximal_mu":0.0,"seed":5},'
    rb'"work":"train"}'
)
PRIVATE = """-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
"""
"""The key of the first test of RFC 8032, 7.1."""
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def text(value: str) -> bytes:
    return struct.pack(">I", len(value)) + value.encode()


def test_the_signed_bytes_are_these():
    config, tensors = hashlib.sha256(CONFIG).digest(), bytes(range(32))
    assert config_digest(TASK) == config
    assert signed_bytes(TASK, tensors) == (
        b"fedmq task 1\0" + text("0a1b2c3d") + text("0a1b2c3d-7") + text("sensor-1") + struct.pack(">Q", 3)
        + config + tensors
    )  # fmt: skip
    assert (
        hashlib.sha256(signed_bytes(TASK, tensors)).hexdigest()
        == "d201d906a9ae6650900da052cc0095f65a74ceeca11a4fd53edeba1799fe84a2"
    )


def test_the_tensors_digest_is_over_these_bytes():
    head = struct.pack(">I", 2)
    head += text("a/w") + text("float32") + b"\1" + struct.pack(">IQQ", 2, 1, 3)
    head += text("b") + text("int64") + b"\0" + struct.pack(">I", 0)
    blob = struct.pack("<3f", 1, 2, 3) + bytes(4) + struct.pack("<q", 7)
    assert tensors_digest(TENSORS) == hashlib.sha256(head + blob).digest()
    assert tensors_digest(TENSORS).hex() == "93353e3f48b451f414039b959bbf2f720c53b561c3504429cec32a15ad4f6435"


def test_the_signature_is_this_one():
    assert certificates.public_signing_key(PRIVATE) == PUBLIC
    made = signed(TASK, tensors_digest(TENSORS), certificates.signer(PRIVATE))
    assert made.signature == (
        "2f20247030258b04529367cad8124e67eda45538ff829d4c65bb722317a32178"
        "67377e0bd544a40ee2d86f9b6ca7d22de81ecc48481105836841ec262447c10d"
    )
    check_signature(made, TENSORS, certificates.verifier(PUBLIC))


def test_a_signature_survives_the_way_whole_or_in_chunks():
    made = signed(TASK, tensors_digest(TENSORS), certificates.signer(PRIVATE))
    came = decode(encode(made, TENSORS))
    check_signature(came.message, came.parameters, certificates.verifier(PUBLIC))
    payload = ChunkedPayload(payload_id="p", num_bytes=2048, chunk_bytes=1024, count=2, digest="0" * 64)
    manifest = decode(encode(made.model_copy(update={"chunks": payload}))).message
    check_signature(manifest, came.parameters, certificates.verifier(PUBLIC))


def test_bytes_do_not_depend_on_the_tensors_place_or_byte_order():
    big = Parameters({"a/w": np.asarray(TENSORS["a/w"], ">f4"), "b": TENSORS["b"]}, {"b"})
    strided = Parameters({"a/w": np.array([[1, 0, 2, 0, 3]], np.float32)[:, ::2], "b": TENSORS["b"]}, {"b"})
    assert tensors_digest(big) == tensors_digest(strided) == tensors_digest(TENSORS)
    alone = Parameters({"w": np.ones(8, np.float32), "v": np.zeros(8, np.float32)})
    assert tensors_digest(alone) == tensors_digest(alone.packed())


@pytest.mark.parametrize(
    "changed",
    [
        {"task_id": "0a1b2c3d-8"}, {"task_id": "0a1b2c3e-7"}, {"participant_id": "sensor-2"}, {"base_version": 4},
        {"run_id": "other"}, {"reply": "parameters"}, {"work": "evaluate"}, {"lease_s": 61.0},
        *({"training": TrainingConfig(**FIELDS["training"].model_dump() | one)} for one in (
            {"epochs": 2}, {"batch_size": 1}, {"learning_rate": None}, {"proximal_mu": 1.0}, {"max_steps": 1},
            {"seed": 6}, {"extra": {}}, {"extra": {"n": True, "x": 1.0, "é": "ß"}},
            {"extra": {"n": 1.0, "x": 1.0, "é": "ß"}}, {"extra": {"n": 1, "x": -0.0, "é": "ß"}},
            {"extra": {"n": 1, "x": 1.0, "é": "\\u00df"}},
        )),
    ],
)  # fmt: skip
def test_a_task_that_differs_in_one_field_has_other_bytes(changed):
    made = signed(TASK, tensors_digest(TENSORS), certificates.signer(PRIVATE))
    other = Task(**FIELDS | {"signature": made.signature} | changed)
    assert signed_bytes(other, b"") != signed_bytes(TASK, b"")
    with pytest.raises(BadSignature, match="not the coordinator's"):
        check_signature(other, TENSORS, certificates.verifier(PUBLIC))


def test_every_field_of_a_task_is_signed_but_how_it_travels():
    """A new field is part of `config`, unless somebody adds it to BY_THEMSELVES."""
    assert BY_THEMSELVES - {"kind", "task_id", "participant_id", "base_version"} == {"chunks", "reference", "signature"}


@pytest.mark.parametrize(
    "tensors",
    [
        {"a/w": np.array([[1, 2, 4]], np.float32), "b": np.array(7, np.int64)},
        {"a/w": np.array([1, 2, 3], np.float32), "b": np.array(7, np.int64)},
        {"a/w": np.array([[1], [2], [3]], np.float32), "b": np.array(7, np.int64)},
        {"a/W": np.array([[1, 2, 3]], np.float32), "b": np.array(7, np.int64)},
        {"a/w": np.array([[1, 2, 3]], np.float32), "b": np.array(7, np.uint64)},
        {"b": np.array(7, np.int64), "a/w": np.array([[1, 2, 3]], np.float32)},
        {"a/w": np.array([[1, 2, 3]], np.float32).view(np.int32), "b": np.array(7, np.int64)},
        {"a/w": np.zeros((1, 6), ml_dtypes.bfloat16), "b": np.array(7, np.int64)},
    ],
)
def test_tensors_that_differ_in_a_value_a_shape_a_name_a_dtype_or_the_order_have_another_digest(tensors):
    assert tensors_digest(Parameters(tensors, {"b"})) != tensors_digest(TENSORS)


def test_a_flag_of_a_tensor_is_signed():
    assert tensors_digest(Parameters(dict(TENSORS))) != tensors_digest(TENSORS)


def test_a_task_without_a_signature_or_with_another_key_s_is_refused():
    check = certificates.verifier(PUBLIC)
    with pytest.raises(BadSignature, match="no signature"):
        check_signature(TASK, TENSORS, check)
    foreign = certificates.new_signing_key()
    with pytest.raises(BadSignature, match="not the coordinator's"):
        check_signature(signed(TASK, tensors_digest(TENSORS), certificates.signer(foreign.private)), TENSORS, check)


def test_a_task_without_a_signature_has_no_field_for_one_on_the_wire():
    assert b"signature" not in encode(TASK, TENSORS)
    assert decode(encode(TASK, TENSORS)).message == TASK
