"""The envelope from outside: the view of a plain msgpack library, and the contents that are refused."""

from __future__ import annotations

import math

import msgpack
import numpy as np
import pytest
from pydantic import ValidationError

from fedmq.schemas.codec import Decoded, Limits, decode, encode
from fedmq.schemas.errors import LimitExceeded, MalformedMessage, NotFinite, UnsupportedVersion
from fedmq.schemas.messages import Hello, Update
from fedmq.schemas.parameters import Parameters
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


@pytest.mark.parametrize("message", PLAIN_MESSAGES, ids=lambda m: m.kind)
def test_a_message_without_tensors_comes_back_equal(message):
    assert decode(encode(message)) == Decoded(message, None)


@pytest.mark.parametrize("message", [TASK, UPDATE], ids=lambda m: m.kind)
def test_a_message_with_tensors_comes_back_equal_with_its_tensors_and_flags(message):
    decoded = decode(encode(message, small_model()))
    assert decoded.message == message
    assert decoded.parameters is not None
    assert list(decoded.parameters) == ["000/kernel", "001/bias", "002/count"]
    assert decoded.parameters.non_trainable == {"002/count"}
    assert decoded.parameters["000/kernel"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert decoded.parameters["002/count"].shape == ()


def test_any_msgpack_library_can_read_an_envelope():
    head, padding, blob = msgpack.unpackb(encode(UPDATE, small_model()))
    assert list(head) == ["fedmq", "kind", "body", "tensors"]
    assert head["fedmq"] == 1
    assert head["kind"] == "update"
    assert head["body"] == UPDATE_FIELDS
    assert head["tensors"] == [
        entry("000/kernel", "float32", [2, 3]),
        entry("001/bias", "float64", [1]),
        entry("002/count", "int64", [], trainable=False),
    ]
    assert set(padding) <= {0}
    # 24 bytes of kernel, 8 of gap, 8 of bias, 8 of gap, 8 of count.
    assert len(blob) == 56
    assert np.frombuffer(blob, "<f4", 6).tolist() == [1, 2, 3, 4, 5, 6]
    assert np.frombuffer(blob, "<f8", 1, 32).tolist() == [0.5]
    assert np.frombuffer(blob, "<i8", 1, 48).tolist() == [7]


def test_an_envelope_made_by_another_msgpack_library_decodes():
    body = envelope(tensors_header(entry("w", "float32", [2])), np.array([1, 2], "<f4").tobytes())
    decoded = decode(body)
    assert decoded.message == UPDATE
    assert decoded.parameters is not None
    assert decoded.parameters["w"].tolist() == [1, 2]


@pytest.mark.parametrize("name_length", range(1, 70))
def test_the_blob_starts_at_a_multiple_of_64_whatever_the_header_is(name_length):
    values = np.arange(3, dtype=np.float32)
    body = encode(UPDATE, Parameters({"n" * name_length: values}))
    assert body.index(values.tobytes()) % 64 == 0


@pytest.mark.parametrize("num_values", [0, 255, 256, 65_535, 65_536])
def test_every_length_form_of_a_bin_is_written_and_read(num_values):
    values = np.ones(num_values, np.uint8)
    decoded = decode(encode(UPDATE, Parameters({"w": values})))
    assert decoded.parameters is not None
    np.testing.assert_array_equal(decoded.parameters["w"], values)


def test_decoded_tensors_share_the_memory_of_the_body_and_cannot_be_written():
    body = encode(UPDATE, small_model())
    decoded = decode(body)
    assert decoded.parameters is not None
    whole = np.frombuffer(body, np.uint8)
    for array in decoded.parameters.values():
        assert np.shares_memory(array, whole)
        assert array.flags.aligned
        assert not array.flags.writeable


def test_tensors_decoded_from_a_bytearray_cannot_be_written_either():
    decoded = decode(bytearray(encode(UPDATE, small_model())))
    assert decoded.parameters is not None
    assert not decoded.parameters["001/bias"].flags.writeable


def test_only_a_goodbye_has_a_field_that_older_coordinators_do_not_know():
    goodbye = Hello(participant_id="a", session_id="s", num_examples=1, leaving=True)
    assert decode(encode(goodbye)).message == goodbye
    assert b"leaving" in encode(goodbye)
    assert b"leaving" not in encode(goodbye.model_copy(update={"leaving": False}))


def test_a_future_version_is_told_apart_before_anything_else_is_looked_at():
    future = msgpack.packb([{"fedmq": 2, "shape": "unknown to us"}, 1, 2, 3, 4])
    with pytest.raises(UnsupportedVersion, match=r"version 2, .* speaks version 1"):
        decode(future)


@pytest.mark.parametrize("version", [0, -1, 1.0, True, "1", [1], None, {"a": 1}])
def test_a_version_that_is_not_a_positive_integer_is_malformed(version):
    with pytest.raises(MalformedMessage, match="schema version is"):
        decode(msgpack.packb([{"fedmq": version, "kind": "hello", "body": {}}, b"", b""]))


HUGE_TEXT = "x" * 30_000
BAD_ENVELOPES = {
    "nothing": (b"", "ends inside its header"),
    "not an array": (msgpack.packb({"fedmq": 1}), "not a fedmq envelope"),
    "no map": (msgpack.packb([1, b"", b""]), "not a fedmq envelope"),
    "an empty map": (msgpack.packb([{}, b"", b""]), "first key"),
    "another first key": (envelope({"kind": "update", "fedmq": 1, "body": {}}), "first key"),
    "four parts": (msgpack.packb([header(), b"", b"", b""]), "4 parts"),
    "an unknown header key": (envelope(header(extra=1)), "'extra' is unknown"),
    "no body": (envelope(header(body=None, tensors=[])), "kind and body"),
    "two keys": (envelope({"fedmq": 1, "kind": "hello"}), "2 header keys"),
    "an unknown kind": (envelope(header(kind="weights")), "unknown kind of message 'weights'"),
    "a kind that is no text": (envelope(header(kind=[1])), "unknown kind of message a tuple of 1"),
    "a body that is no map": (envelope(header(body=[1])), "must be a map"),
    "kind inside the body": (envelope(header(body={"kind": "update"})), "must be a map"),
    "an unknown field": (envelope(header(body=UPDATE_FIELDS | {"weights": 1})), r"update\.weights: got 1"),
    "an unknown field of a huge name": (envelope(header(body=UPDATE_FIELDS | {HUGE_TEXT: HUGE_TEXT})), r"\(30000 char"),
    "bytes in the header": (envelope(header(body={"detail": b"12"})), "not a fedmq envelope"),
    "text that is not UTF-8": (envelope(header()).replace(b"sensor-1", b"sensor-\xff"), "UnicodeDecodeError"),
    "a number as a map key": (envelope(header(body={1: 2})), "not a fedmq envelope"),
    "an extension type": (envelope(header(body={"a": msgpack.ExtType(5, b"x")})), "not a fedmq envelope"),
    "a timestamp": (envelope(header(body={"a": msgpack.Timestamp(1)})), "not a fedmq envelope"),
    "a padding that is text": (b"\x93" + msgpack.packb(header()) + b"\xa1x" + b"\xc4\0", "expected the padding"),
    "a blob that is text": (b"\x93" + msgpack.packb(header()) + b"\xc4\0" + b"\xa1x", "expected the tensor blob"),
    "no blob": (b"\x93" + msgpack.packb(header()) + b"\xc4\0", "expected the tensor blob"),
    "a cut length": (b"\x93" + msgpack.packb(header()) + b"\xc4\0" + b"\xc6\0\0", "inside the length"),
    "a length past the end": (b"\x93" + msgpack.packb(header()) + b"\xc4\0\xc6\xff\xff\xff\xff", "only 0 are left"),
    "bytes after the end": (envelope(header()) + b"\0", "1 bytes follow"),
    "a blob out of line": (envelope(header(), padding=b"123"), "expected a multiple of 64"),
    "a blob that nothing describes": (envelope(header(), b"1234"), "4 bytes and the header describes no tensors"),
    "an update without its tensors": (envelope(header(body=UPDATE_FIELDS)), "must carry tensors"),
    "a hello with tensors": (
        envelope(header(kind="hello", body={"participant_id": "p", "session_id": "s", "num_examples": 1}, tensors=[])),
        "kind hello must not carry tensors",
    ),
    "deep arrays": (b"\x93\x83\xa5fedmq\x01\xa4body" + b"\x91" * 100_000, "not a fedmq envelope"),
    "deep maps": (b"\x93\x83\xa5fedmq\x01\xa4body" + b"\x81\xa1a" * 100_000, "not a fedmq envelope"),
    "deep arrays as the version": (b"\x93\x83\xa5fedmq" + b"\x91" * 1000 + b"\xc0", "schema version is a tuple of 1"),
    "a repeated field": (
        b"\x93\x83\xa5fedmq\x01\xa4kind\xa5hello\xa4body\x82\xa1a\x01\xa1a\x01\xc4\0\xc4\0",
        "same key twice",
    ),
    "a repeated header key": (b"\x93\x83\xa5fedmq\x01\xa4kind\xa5hello\xa4kind\xa5hello", "'kind' is unknown or repe"),
    "the version twice": (b"\x93\x83\xa5fedmq\x01\xa5fedmq\x01\xa4kind\xa5hello", "'fedmq' is unknown or repeated"),
    "a header key that is a map": (b"\x93\x83\xa5fedmq\x01\x81\xa1a\x01\x01", "header key a dict of 1"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "complaint"), BAD_ENVELOPES.values(), ids=BAD_ENVELOPES.keys())
def test_a_malformed_envelope_is_refused_in_one_short_sentence(body, complaint):
    with pytest.raises(MalformedMessage, match=complaint) as caught:
        decode(body)
    assert len(str(caught.value)) < 600
    assert caught.value.__cause__ is None


def test_a_field_of_the_wrong_type_is_named_with_what_was_got_and_expected():
    fields = UPDATE_FIELDS | {"num_examples": "ten", "payload": "none"}
    with pytest.raises(MalformedMessage, match=r"update\.num_examples: got 'ten'; Input should be a valid integer$"):
        decode(envelope(header(body=fields)))


def test_a_nested_field_is_named_by_its_path():
    fields = TASK.model_dump(exclude={"kind"}) | {"training": {"epochs": 0, "batch_size": -1}}
    with pytest.raises(MalformedMessage, match=r"task\.training\.epochs: got 0; .* greater .* 1 \(and 1 more\)$"):
        decode(envelope(header(kind="task", body=fields)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_named(value):
    message = Update(**(UPDATE_FIELDS | {"payload": "none", "metrics": {"accuracy": 0.5, "loss": value}}))
    with pytest.raises(NotFinite, match="metric 'loss' is"):
        decode(encode(message), check_finite=False)


def test_a_field_that_is_not_finite_is_named():
    with pytest.raises(NotFinite, match=r"update\.train_s: got nan; Input should be a finite number"):
        decode(envelope(header(body=UPDATE_FIELDS | {"payload": "none", "train_s": math.nan})))


def test_limits_are_inclusive_and_each_is_kept():
    body = encode(UPDATE, small_model())
    header_bytes = len(body) - len(msgpack.packb(msgpack.unpackb(body)[1:])) + 1
    assert decode(body, Limits(max_body_bytes=len(body), max_header_bytes=header_bytes, max_tensors=3, max_rank=2))
    with pytest.raises(LimitExceeded, match=f"has {len(body)} bytes, the limit is {len(body) - 1}"):
        decode(body, Limits(max_body_bytes=len(body) - 1))
    with pytest.raises(LimitExceeded, match=f"within {header_bytes - 1} bytes"):
        decode(body, Limits(max_header_bytes=header_bytes - 1))
    with pytest.raises(LimitExceeded, match="3 tensors in one message, the limit is 2"):
        decode(body, Limits(max_tensors=2))
    with pytest.raises(LimitExceeded, match="'000/kernel' has 2 dimensions, the limit is 1"):
        decode(body, Limits(max_rank=1))


def test_tensors_beside_a_message_that_carries_none_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="kind hello must not carry tensors"):
        encode(PLAIN_MESSAGES[0], small_model())
    with pytest.raises(ValueError, match="kind update with payload 'none' must not carry tensors"):
        encode(PLAIN_MESSAGES[-1], small_model())
    with pytest.raises(ValueError, match="kind task must carry tensors"):
        encode(TASK)


def test_a_message_from_trusted_values_equals_the_one_that_was_checked() -> None:
    values = {name: getattr(UPDATE, name) for name in type(UPDATE).model_fields}
    trusted = Update.trusted(values)
    assert trusted == UPDATE
    assert repr(trusted) == repr(UPDATE)
    assert trusted.model_dump() == UPDATE.model_dump()
    assert trusted.model_copy(update={"num_steps": 9}).num_steps == 9
    with pytest.raises(ValidationError, match="frozen"):
        trusted.num_steps = 3
