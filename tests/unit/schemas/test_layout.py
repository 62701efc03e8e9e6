"""Tensors in one block."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

from fedmq.schemas.codec import decode, encode
from fedmq.schemas.layout import layout, layout_of
from fedmq.schemas.parameters import Parameters
from tests.unit.schemas.samples import UPDATE


def model(dtype=np.float32, b=4):
    return Parameters({"w": np.arange(8, dtype=dtype).reshape(2, 4), "b": np.ones(b, dtype)}, {"b"})


def test_a_packed_copy_has_the_same_tensors_in_one_array():
    plain = model()
    packed = plain.packed()
    assert packed.block.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 1, 1, 1, 1]
    assert packed.layout is layout_of(plain)
    assert [(n, a.tolist()) for n, a in packed.items()] == [(n, a.tolist()) for n, a in plain.items()]
    assert packed.non_trainable == {"b"}
    packed["b"][0] = 7
    assert packed.block[8] == 7
    assert plain["b"][0] == 1


@pytest.mark.parametrize(
    "tensors",
    [{}, {"a": np.ones(2, np.int32)}, {"a": np.ones(2, np.float32), "b": np.ones(2)}],
    ids=["no tensors", "integers", "two dtypes"],
)
def test_other_models_are_in_no_block(tensors):
    plain = Parameters(tensors)
    assert plain.packed() is plain
    assert plain.layout is plain.block is None


def test_equal_layouts_are_one_object_and_others_are_not():
    tensors = (("w", (2, 4)), ("b", (4,)))
    assert layout(np.dtype("f4"), tensors) is layout_of(model())
    others = [layout(np.dtype("f8"), tensors), layout(np.dtype("f4"), tensors[::-1]), layout_of(model(b=3))]
    assert not any(other is layout_of(model()) for other in others)


def test_parameters_in_a_block_can_be_copied_and_pickled():
    for again in (copy.copy(model().packed()), pickle.loads(pickle.dumps(model().packed()))):
        assert again["w"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        with pytest.raises(AttributeError, match="no attribute 'unknown'"):
            again.unknown  # noqa: B018


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_a_decoded_payload_without_gaps_is_one_block(dtype):
    decoded = decode(encode(UPDATE, model(dtype))).parameters
    assert decoded.layout is layout_of(model(dtype))
    assert decoded.block.tobytes() == b"".join(a.tobytes() for a in model(dtype).values())
    assert not decoded.block.flags.writeable


def test_a_decoded_payload_with_gaps_is_in_no_block():
    swapped = Parameters({"b": np.ones(3, np.float32), "w": np.ones(5, np.float32)})
    decoded = decode(encode(UPDATE, swapped)).parameters
    assert decoded.block is None
    assert decoded["w"].tolist() == [1] * 5
