"""Limits that follow from what an honest message can be at most."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from fedmq.schemas.codec import decode, encode, entry_bytes
from fedmq.schemas.errors import AppError, LimitExceeded
from fedmq.schemas.limits import DEFAULT_LIMITS, PLAIN, Limits, header_bytes, limits_for, update_bytes
from fedmq.schemas.messages import Decline, Hello, Update
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of
from tests.unit.schemas.samples import UPDATE, envelope, header, small_model

WIDE = "\U0001f600"
"""A character of four bytes."""


def test_the_largest_hello_and_decline_fit_the_limits_of_plain_messages():
    name = "x" * 64
    hello = Hello(
        participant_id=name, session_id=name, num_examples=2**53, task_ids=(name,) * 64, software=WIDE * 4000,
        replies=("delta", "parameters", "change", "scaffold"),
    )  # fmt: skip
    decline = Decline(task_id=name, run_id=name, participant_id=name, reason="busy", detail=WIDE * 4000)
    assert decode(encode(hello), PLAIN).message == hello
    assert decode(encode(decline), PLAIN).message == decline


def test_a_plain_message_may_carry_no_tensors_and_no_large_header():
    with pytest.raises(LimitExceeded, match="3 tensors in one message, the limit is 0"):
        decode(encode(UPDATE, small_model()), PLAIN)
    with pytest.raises(LimitExceeded, match="bytes, the limit is"):
        decode(envelope(header(body={"a": "x" * 32_000, "b": "x" * 32_000})), PLAIN)


def test_the_largest_update_of_a_model_fits_the_models_limits():
    model = Parameters({f"{i}/{'n' * 500}": np.zeros((1,) * 6, np.float32) for i in range(5)})
    metrics = {f"{i:02d}{WIDE * 62}": 1.0 for i in range(64)}
    update = Update(**UPDATE.model_dump() | {"metrics": metrics, "chunks": None})
    limits = limits_for(2**20, 5, entry_bytes(spec_of(model)))
    assert decode(encode(update, model), limits).message == update


def test_a_models_limits_follow_its_number_of_tensors():
    assert limits_for(9, 4, 240) == Limits(9, 32 * 1024 + 256 * 72, 72)
    assert limits_for(9, 3000, 180_000).max_tensors == 4096
    assert limits_for(9, 3000, 180_000, max_tensors=3000).max_tensors == 3000
    assert limits_for(9, 4, 100_000).max_header_bytes == 32 * 1024 + 200_000


def test_a_header_of_many_maps_or_arrays_is_refused_at_the_limit():
    head = b"\x93\x83\xa5fedmq\x01\xa4kind\xa6update\xa4body"
    limits = Limits(max_tensors=10)
    for leaf, what in ((b"\x80", "maps"), (b"\x90", "arrays")):
        row = b"\xdc\x00\x40" + leaf * 64
        with pytest.raises(LimitExceeded, match=f"more than {limits.max_containers} maps and arrays"):
            decode(head + b"\x92" + row + row + b"\xc4\x00\xc4\x00", limits)
        assert what


def test_the_tensors_of_a_message_count_against_no_other_limit():
    for num in (1, 7, DEFAULT_LIMITS.max_tensors):
        parameters = Parameters({f"t{i}": np.zeros((1, 2), np.float32) for i in range(num)})
        assert len(decode(encode(UPDATE, parameters), Limits(max_tensors=num)).parameters) == num  # type: ignore[arg-type]


def test_a_raised_number_of_tensors_raises_the_room_for_the_header():
    assert header_bytes(10) == DEFAULT_LIMITS.max_header_bytes
    assert header_bytes(100_000) == 32 * 1024 + 256 * 100_000
    parameters = Parameters({f"{i:06d}/{'n' * 60}": np.zeros((), np.float32) for i in range(12_000)})
    body = encode(UPDATE, parameters)
    assert len(msgpack.unpackb(body, max_array_len=20_000)[0]["tensors"]) == 12_000
    with pytest.raises(AppError, match="too long names"):
        encode(UPDATE, Parameters({f"{i}{'n' * 510}": np.zeros((), np.float32) for i in range(3000)}))


def test_a_name_longer_than_the_receiver_reads_is_found_in_a_message_of_any_kind():
    body = encode(UPDATE, Parameters({"n" * 512: np.zeros((), np.float32)}))
    assert decode(body).parameters is not None
    with pytest.raises(Exception, match="at most 512 characters"):
        decode(encode(UPDATE, Parameters({"n" * 513: np.zeros((), np.float32)})))


def test_an_update_has_room_for_the_tensors_of_a_model_twice_as_large():
    header = limits_for(0, 4, 240).max_header_bytes
    assert update_bytes(1000, 4, 240) == 2000 + header + 256 * 1024
