"""Payloads in chunks: labels, assembling, and the mistakes that are found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedmq.schemas import chunks
from fedmq.schemas.chunks import Assembly, Pieces
from fedmq.schemas.codec import decode, encode, encode_in_pieces
from fedmq.schemas.errors import MalformedMessage
from fedmq.schemas.messages import ChunkedPayload, Task, TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import packed_bytes, spec_of

BODY = b"".join(chunks.digest_of(bytes([number])) for number in range(96))
SIZE = 1024
PARTS = [BODY[start : start + SIZE] for start in range(0, len(BODY), SIZE)]
TASK = Task(
    task_id="t", run_id="r", participant_id="p", base_version=0, reply="delta", training=TrainingConfig(), lease_s=1.0
)


def manifest(**changes: Any) -> ChunkedPayload:
    digest = chunks.digest_of_all(chunks.digest_of(part) for part in PARTS)
    fields = {"payload_id": "one", "num_bytes": len(BODY), "chunk_bytes": SIZE, "count": len(PARTS), "digest": digest}
    return ChunkedPayload(**fields | changes)


def label(index: int, **changes: Any) -> dict[str, object]:
    return {**chunks.headers("one", index, chunks.digest_of(PARTS[index])), **changes}


def arrive(assembly: Assembly, index: int) -> None:
    assert assembly.place(label(index), len(PARTS[index])) == index
    assembly.check(index, chunks.digest_of(PARTS[index]))


def test_chunks_in_any_order_make_the_payload() -> None:
    assembly = Assembly(manifest())
    for index in (2, 0, 1):
        arrive(assembly, index)
    assert assembly.missing == 0
    assembly.check_all()
    assert [assembly.offset(index) for index in range(3)] == [0, 1024, 2048]


def test_a_repeated_chunk_and_one_of_another_payload_are_not_wanted() -> None:
    assembly = Assembly(manifest())
    arrive(assembly, 1)
    assert assembly.place(label(1), SIZE) is None
    assert assembly.place(label(0, payload_id="other"), SIZE) is None
    assert assembly.missing == 2


def test_what_was_there_before_is_not_wanted_again() -> None:
    assembly = Assembly(manifest(), {0: chunks.digest_of(PARTS[0])})
    assert assembly.place(label(0), SIZE) is None
    arrive(assembly, 1)
    arrive(assembly, 2)
    assembly.check_all()


def test_missing_chunks_are_counted() -> None:
    assembly = Assembly(manifest())
    arrive(assembly, 0)
    with pytest.raises(MalformedMessage, match="2 of 3 chunks are missing"):
        assembly.check_all()


def test_a_damaged_chunk_is_found_by_its_digest() -> None:
    assembly = Assembly(manifest())
    assembly.place(label(1), SIZE)
    with pytest.raises(MalformedMessage, match="chunk 1 of 3 was damaged"):
        assembly.check(1, chunks.digest_of(PARTS[0]))


def test_whole_chunks_in_each_other_s_place_are_found_by_the_digest_of_all() -> None:
    assembly = Assembly(manifest())
    arrive(assembly, 1)
    for index, other in ((0, 2), (2, 0)):
        digest = chunks.digest_of(PARTS[other])
        assembly.place(chunks.headers("one", index, digest), SIZE)
        assembly.check(index, digest)
    with pytest.raises(MalformedMessage, match="the digest of all differs"):
        assembly.check_all()


@pytest.mark.parametrize(
    ("changes", "num_bytes", "problem"),
    [
        ({"chunk": 3}, SIZE, "chunk index 3, expected 0 to 2"),
        ({"chunk": -1}, SIZE, "chunk index -1"),
        ({"chunk": True}, SIZE, "chunk index True"),
        ({"chunk": None}, SIZE, "chunk index None"),
        ({}, SIZE - 1, "has 1023 bytes, expected 1024"),
        ({"digest": "00"}, SIZE, "has the digest '00'"),
        ({"digest": "x" * 64}, SIZE, "expected hexadecimal"),
        ({"digest": 7}, SIZE, "has the digest 7"),
    ],
)
def test_a_label_that_cannot_be_is_refused(changes: dict[str, Any], num_bytes: int, problem: str) -> None:
    with pytest.raises(MalformedMessage, match=problem):
        Assembly(manifest()).place(label(0, **changes), num_bytes)


def test_a_manifest_that_does_not_add_up_is_refused() -> None:
    body = encode(TASK.model_copy(update={"chunks": manifest()}))
    assert decode(body).message == TASK.model_copy(update={"chunks": manifest()})
    lying = TASK.model_copy(update={"chunks": manifest().model_copy(update={"count": 4})})
    with pytest.raises(MalformedMessage, match="3072 bytes in chunks of 1024 are 3, not 4"):
        decode(encode(lying))


def test_a_manifest_carries_no_tensors() -> None:
    parameters = Parameters({"w": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="task in chunks must not carry tensors"):
        encode(TASK.model_copy(update={"chunks": manifest()}), parameters)


def test_pieces_read_in_parts_are_the_body() -> None:
    parameters = Parameters({"a": np.arange(5, dtype=np.float32), "b": np.ones((3, 3)), "c": np.array(True)})
    body, pieces = encode(TASK, parameters), Pieces(encode_in_pieces(TASK, parameters))
    assert pieces.num_bytes == len(body)
    for size in (1, 7, 64, 10_000):
        assert b"".join(pieces.read(start, size) for start in range(0, len(body), size)) == body
    assert body.endswith(pieces.read(len(body) - packed_bytes(spec_of(parameters)), 10_000))
    assert packed_bytes(spec_of(parameters)) == 32 + 80 + 1
