"""Any bytes give a message or one typed error: never a crash, and never more RAM than the bytes pay for."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.schemas.codec import Decoded, Limits, decode, encode
from fedmq.schemas.errors import MalformedMessage, NotFinite, PeerError, UnsupportedVersion
from fedmq.schemas.messages import AnyMessage
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import DTYPES
from tests.unit.schemas.samples import (
    PLAIN_MESSAGES,
    TASK,
    UPDATE,
    UPDATE_FIELDS,
    entry,
    envelope,
    header,
    small_model,
    tensors_header,
)

FUZZ = settings(deadline=None, max_examples=120, derandomize=True)
MAX_ALLOCATED_BYTES = 1_000_000
BODY = encode(UPDATE, small_model())
HUGE_LENGTHS = {
    "array": b"\xdd\xff\xff\xff\xff",
    "map": b"\xdf\xff\xff\xff\xff",
    "text": b"\xdb\xff\xff\xff\xff",
    "bin": b"\xc6\xff\xff\xff\xff",
    "extension": b"\xc9\xff\xff\xff\xff\x01",
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from(["fedmq", "kind", "body", "tensors", "update", "delta", math.nan, 1])
)
things = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def outcome(body: bytes, limits: Limits | None = None) -> Decoded | PeerError:
    """Return the message or the typed error. Any other exception, and any large allocation, fails the test."""
    most = MAX_ALLOCATED_BYTES + 2 * len(body)
    for _ in range(2):  # a table of Python's own, such as that of interned names, may grow while we look
        tracemalloc.start()
        try:
            result: Decoded | PeerError = decode(body, limits or Limits())
        except PeerError as error:
            result = error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        if peak < most:
            break
    assert peak < most
    assert isinstance(result, Decoded) or 0 < len(str(result)) < 1000
    return result


@FUZZ
@given(st.binary(max_size=300))
def test_random_bytes_give_a_typed_error(body):
    assert isinstance(outcome(body), PeerError)


@FUZZ
@given(st.integers(0, len(BODY)), st.binary(max_size=100))
def test_a_good_beginning_with_random_bytes_after_it_gives_a_typed_error(length, rest):
    if BODY[length:] != rest:
        outcome(BODY[:length] + rest)


@pytest.mark.parametrize("message", [*PLAIN_MESSAGES, TASK, UPDATE], ids=lambda m: m.kind)
def test_a_message_cut_anywhere_is_malformed(message):
    body = encode(message, small_model() if message in (TASK, UPDATE) else None)
    for length in range(len(body)):
        assert type(outcome(body[:length])) is MalformedMessage


def test_any_single_flipped_bit_gives_a_message_or_a_typed_error():
    errors = 0
    for position in range(len(BODY)):
        for bit in range(8):
            flipped = bytearray(BODY)
            flipped[position] ^= 1 << bit
            errors += isinstance(outcome(bytes(flipped)), PeerError)
    # A flip inside a value, a name or the padding can go unseen (TCP and the broker guard those). One in the structure
    # is always found.
    assert errors > len(BODY)


@pytest.mark.parametrize("length", HUGE_LENGTHS.values(), ids=HUGE_LENGTHS.keys())
def test_a_huge_declared_length_anywhere_allocates_nothing(length):
    for position in range(len(BODY)):
        outcome(BODY[:position] + length)
        outcome(BODY[:position] + length + BODY[position:])
        outcome(BODY[:position] + length + BODY[position + len(length) :])


@pytest.mark.parametrize("array", [b"\xdc\x00\x40", b"\xdc\x27\x10", b"\xde\x00\x40\xa1a", b"\x91", b"\x81\xa1a"])
def test_nested_declarations_cannot_multiply(array):
    for position in range(len(BODY) - 56):
        assert isinstance(outcome(BODY[:position] + array * 3000), PeerError)


@FUZZ
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 2**64 - 1), max_size=6)),
        min_size=1, max_size=4,
    ),
    st.binary(max_size=64),
)  # fmt: skip
def test_declared_shapes_allocate_nothing(tensors, blob):
    entries = [entry(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(tensors)]
    result = outcome(envelope(tensors_header(*entries), blob))
    if isinstance(result, Decoded):
        assert result.parameters is not None
        assert result.parameters.num_bytes <= len(blob)


@FUZZ
@given(things, things, things, st.binary(max_size=70))
def test_arbitrary_values_in_the_header_give_a_typed_error(kind, fields, tensors, blob):
    assert isinstance(
        outcome(envelope({"fedmq": 1, "kind": kind, "body": fields, "tensors": tensors}, blob)), PeerError
    )
    assert isinstance(outcome(envelope(tensors_header() | {"tensors": tensors}, blob)), Decoded | PeerError)


@FUZZ
@given(things)
def test_arbitrary_values_instead_of_the_header_give_a_typed_error(head):
    assert isinstance(outcome(envelope(head)), PeerError)


def fields_of(message: AnyMessage) -> dict[str, Any]:
    return message.model_dump(exclude={"kind"})


@pytest.mark.parametrize("message", [*PLAIN_MESSAGES[:4], TASK, UPDATE], ids=lambda m: m.kind)
@FUZZ
@given(data=st.data())
def test_a_wrong_value_in_any_field_is_told_by_its_name(message, data):
    fields = fields_of(message)
    name = data.draw(st.sampled_from(sorted(fields)))
    head = {"fedmq": 1, "kind": message.kind, "body": fields | {name: data.draw(things)}}
    if message in (TASK, UPDATE):
        head["tensors"] = []
    result = outcome(envelope(head))
    if type(result) is MalformedMessage:
        assert (
            f"{message.kind}.{name}" in str(result) or "not a fedmq envelope" in str(result) or "carry" in str(result)
        )
    else:
        assert isinstance(result, Decoded | NotFinite)


@pytest.mark.parametrize("wrong", [b"bytes", [[1]], {"a": {"b": 1}}, -1.5], ids=repr)
@pytest.mark.parametrize("message", [*PLAIN_MESSAGES[:4], TASK, UPDATE], ids=lambda m: m.kind)
def test_a_wrong_type_is_refused_in_every_field(message, wrong):
    for name in fields_of(message):
        head = {"fedmq": 1, "kind": message.kind, "body": fields_of(message) | {name: wrong}}
        if message in (TASK, UPDATE):
            head["tensors"] = []
        assert type(outcome(envelope(head))) is MalformedMessage, name


@pytest.mark.parametrize("message", [*PLAIN_MESSAGES, TASK, UPDATE], ids=lambda m: m.kind)
def test_an_unknown_field_and_a_missing_one_are_malformed(message):
    fields = fields_of(message)
    kind = {"kind": message.kind, "tensors": [] if message in (TASK, UPDATE) else None}
    assert isinstance(outcome(envelope(header(**kind, body=fields))), Decoded)
    unknown = outcome(envelope(header(**kind, body=fields | {"weights": 1})))
    assert type(unknown) is MalformedMessage
    assert f"{message.kind}.weights" in str(unknown)
    required = next(iter(fields))
    missing = outcome(envelope(header(**kind, body={n: v for n, v in fields.items() if n != required})))
    assert type(missing) is MalformedMessage
    assert f"{message.kind}.{required}" in str(missing)


@FUZZ
@given(st.integers(2, 2**64 - 1), things)
def test_a_future_version_is_unsupported_whatever_follows(version, rest):
    assert type(outcome(msgpack.packb([{"fedmq": version, "other": rest}, rest]))) is UnsupportedVersion


@FUZZ
@given(st.integers(0, 999), st.sampled_from([math.nan, math.inf, -math.inf]), st.sampled_from(["<f2", "<f4", "<f8"]))
def test_a_value_that_is_not_finite_anywhere_is_found(position, value, dtype):
    values = np.ones(1000, dtype)
    values[position] = value
    assert type(outcome(encode(UPDATE, Parameters({"w": values})))) is NotFinite


@FUZZ
@given(st.dictionaries(st.text(max_size=10), st.floats(), max_size=5))
def test_metrics_come_back_or_are_not_finite(metrics):
    head = header(body=UPDATE_FIELDS | {"payload": "none", "metrics": metrics})
    result = outcome(envelope(head))
    if all(math.isfinite(value) for value in metrics.values()):
        assert isinstance(result, Decoded)
        assert result.message.model_dump()["metrics"] == metrics
    else:
        assert type(result) is NotFinite
