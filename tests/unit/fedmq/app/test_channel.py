"""Frames between a process and its child."""

import socket
import threading

import ml_dtypes
import numpy as np
import pytest

from fedmq.app.channel import BrokenChannel, Channel
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of


@pytest.fixture
def ends():
    pair = tuple(Channel(end) for end in socket.socketpair())
    yield pair
    for one in pair:
        one.close()
        one.release()


def sent(ends, values, groups):
    sender = threading.Thread(target=ends[0].send, args=(values, groups))
    sender.start()
    received = ends[1].receive()
    sender.join()
    return received


def test_values_and_groups_of_tensors_arrive_as_they_are(ends):
    mixed = Parameters(
        {
            "a": np.arange(6, dtype=">f4").reshape(2, 3).T,
            "none": np.zeros((2, 0), "float16"),
            "scalar": np.int64(-7),
            "half": np.array([1.5, -2], ml_dtypes.bfloat16),
            "yes": np.array([True, False]),
        },
        {"half"},
    )
    block = Parameters({"w": np.linspace(0, 1, 400_000, dtype="float32"), "b": np.ones(4, "float32")}).packed()
    values, groups = sent(ends, {"seed": 2**63 - 1, "rate": 0.1, "text": "größe"}, {"mixed": mixed, "block": block})
    assert values == {"seed": 2**63 - 1, "rate": 0.1, "text": "größe"}
    assert spec_of(groups["mixed"]) == spec_of(mixed)
    assert [array.tolist() for array in groups["mixed"].values()] == [array.tolist() for array in mixed.values()]
    assert groups["block"].layout is block.layout
    assert groups["block"].block.tobytes() == block.block.tobytes()
    assert groups["block"].block.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        groups["block"]["w"][0] = 1


def framed(object_bytes):
    return len(object_bytes).to_bytes(4, "big") + object_bytes


def test_a_closed_end_is_the_end_and_half_a_frame_is_an_error(ends):
    ends[0].close()
    assert ends[1].receive() is None
    with pytest.raises(BrokenChannel):
        ends[1].send({})


@pytest.mark.parametrize(
    "written",
    [
        b"\0\0",
        b"\0\0\0\x05[1]",
        b"\0\0\0\x03[1]",
        b"\0\0\0\x02{}",
        b"\xff\xff\xff\xff",
        b'\0\0\0\x28{"tensors": {"g": [["w", "U8", [1], 1]]}}',
        b'\0\0\0\x32{"tensors": {"g": [["w", "float64", [99], true]]}}--',
        framed(b'{"tensors": {"g": [["w", "float64", [4611686018427387904, 4611686018427387904], true]]}}'),
        framed(b'{"tensors": {"g": [["w", "float64", [4611686018427387904], true]]}}'),
        framed(b'{"tensors": {"g": [["w", "int8", [99999999999999], true]]}}'),
        framed(b'{"tensors": {"g": [["w", "int8", [1], true], ["w", "int8", [1], true]]}}xy'),
        framed(b'{"tensors": {"g": [["w", "object", [1], true]]}}'),
        framed(b'{"tensors": {"g": [["w", "int8", [-1], true]]}}'),
        framed(b'{"tensors": {"g": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"),
        framed(b'{"tensors": {"g": ' + b"9" * 10_000 + b"}}"),
        framed(b"\x80\x04]q\x00."),
    ],
)
def test_what_is_no_frame_is_refused(written):
    left, right = socket.socketpair()
    channel = Channel(right)
    left.sendall(written)
    left.close()
    with pytest.raises(BrokenChannel):
        channel.receive()
    channel.release()
