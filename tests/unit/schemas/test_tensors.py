"""Tensors: a round trip of every dtype and layout, the model's spec, and the finite check."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq.schemas.codec import decode, encode
from fedmq.schemas.errors import AppError, LimitExceeded, MalformedMessage, NotFinite, SpecMismatch
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import DTYPES, TensorSpec, averaged_spec, check_finite, check_spec, spec_of
from tests.unit.schemas.samples import UPDATE, entry, envelope, small_model, tensors_header

FLOATS = ["float16", "bfloat16", "float32", "float64"]


def there_and_back(**tensors: np.ndarray) -> Parameters:
    decoded = decode(encode(UPDATE, Parameters(tensors)), check_finite=False).parameters
    assert decoded is not None
    return decoded


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    tensors=st.lists(
        st.tuples(st.sampled_from(sorted(DTYPES)), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)),
        max_size=6,
    ),
    data=st.data(),
)
def test_every_dtype_and_shape_comes_back_bit_for_bit(tensors, data):
    sent = {}
    for i, (dtype, shape) in enumerate(tensors):
        size = int(np.prod(shape, dtype=int)) * DTYPES[dtype].itemsize
        raw = data.draw(st.binary(min_size=size, max_size=size))
        if dtype == "bool":
            raw = bytes(byte & 1 for byte in raw)
        sent[f"t{i}"] = np.ndarray(shape, DTYPES[dtype], buffer=raw)
    got = there_and_back(**sent)
    assert spec_of(got) == spec_of(Parameters(sent))
    assert [a.tobytes() for a in got.values()] == [a.tobytes() for a in sent.values()]


@pytest.mark.parametrize("dtype", [name for name, d in DTYPES.items() if d.itemsize > 1])
def test_big_endian_tensors_arrive_little_endian_with_the_same_values(dtype):
    values = np.array([[0, 1], [2, 100]], DTYPES[dtype])
    swapped = values.astype(values.dtype.newbyteorder(">"))
    assert swapped.tobytes() != values.tobytes()
    got = there_and_back(w=swapped)["w"]
    assert got.dtype == DTYPES[dtype]
    assert got.tobytes() == values.tobytes()


def test_transposed_strided_and_reversed_tensors_arrive_in_c_order():
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    got = there_and_back(t=values.T, s=values[::2, 1::3], r=values[::-1], f=np.asfortranarray(values))
    np.testing.assert_array_equal(got["t"], values.T)
    np.testing.assert_array_equal(got["s"], [[1, 4], [13, 16]])
    np.testing.assert_array_equal(got["r"], values[::-1])
    np.testing.assert_array_equal(got["f"], values)


def test_nan_payloads_and_negative_zero_survive():
    values = np.array([0x7FC00001, 0x80000000, 0xFF800000], np.uint32).view(np.float32)
    assert there_and_back(w=values)["w"].view(np.uint32).tolist() == [0x7FC00001, 0x80000000, 0xFF800000]


@pytest.mark.parametrize("dtype", ["complex64", "U3", "datetime64[s]", object])
def test_a_dtype_that_cannot_travel_is_refused_with_the_list_of_those_that_can(dtype):
    with pytest.raises(AppError, match=r"tensor 'w' has dtype .* use one of float16, float32,"):
        encode(UPDATE, Parameters({"w": np.zeros(2, dtype)}))


# A peer's claims about its tensors.

BAD_TENSORS = {
    "too few bytes": ([entry("w", "float32", [2])], bytes(4), "needs more bytes than there are: 4"),
    "too many bytes": ([entry("w", "float32", [2])], bytes(12), "has 12 bytes, the tensor entries describe 8"),
    "bytes after the last": ([entry("w", "float32", [2])], bytes(16), "has 16 bytes, the tensor entries describe 8"),
    "no gap": ([entry("v", "int8", [1]), entry("w", "int8", [1])], bytes(2), "needs more bytes"),
    "the same name twice": ([entry("w", "int8", [1]), entry("w", "int8", [1])], bytes(17), "two tensors are named"),
    "an empty name": ([entry("", "int8", [1])], bytes(1), r"tensors\.name: got ''"),
    "a name that is no text": ([entry(3, "int8", [1])], bytes(1), r"tensors\.name: got 3"),
    "an unknown dtype": ([entry("w", "object", [1])], bytes(8), r"tensors\.dtype: got 'object'; .*float16"),
    "a numpy dtype string": ([entry("w", "<f4", [1])], bytes(4), r"tensors\.dtype: got '<f4'"),
    "a negative dimension": ([entry("w", "int8", [-1])], b"", r"tensors\.shape\.0: got -1"),
    "two negative dimensions": ([entry("w", "int8", [-2, -2])], bytes(4), r"tensors\.shape\.0: got -2"),
    "a float dimension": ([entry("w", "int8", [1.0])], bytes(1), r"tensors\.shape\.0: got 1\.0"),
    "a bool dimension": ([entry("w", "int8", [True])], bytes(1), r"tensors\.shape\.0: got True"),
    "a shape that is a number": ([entry("w", "int8", 1)], bytes(1), r"tensors\.shape: got 1"),
    "trainable as a number": ([entry("w", "int8", [1], 1)], bytes(1), r"tensors\.trainable: got 1"),
    "an unknown key": ([entry("w", "int8", [1]) | {"offset": 0}], bytes(1), r"tensors\.offset"),
    "an entry that is no map": (["w"], b"", "tensors: got 'w'"),
    "a huge dimension": ([entry("w", "int8", [2**62])], b"", "needs more bytes"),
    "a product past 64 bits": ([entry("w", "float64", [2**32, 2**32])], b"", "needs more bytes"),
    "a product that wraps to 0": ([entry("w", "int8", [2**32, 2**32])], b"", "needs more bytes"),
    "a dimension past int64": ([entry("w", "int8", [2**63])], b"", r"tensors\.shape\.0"),
    "empty, with huge others": ([entry("w", "float64", [0, 2**40, 2**40])], b"", "needs more bytes"),
    "bools that are not 0 or 1": ([entry("w", "bool", [2])], b"\1\2", "'w' is bool and holds bytes other than"),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "blob", "complaint"), BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_a_tensor_that_does_not_fit_its_bytes_or_the_rules_is_refused(entries, blob, complaint):
    with pytest.raises(MalformedMessage, match=complaint):
        decode(envelope(tensors_header(*entries), blob))


def test_more_dimensions_than_the_limit_are_refused():
    body = envelope(tensors_header(entry("w", "int8", [1] * 17)), bytes(1))
    with pytest.raises(LimitExceeded, match="'w' has 17 dimensions, the limit is 16"):
        decode(body)


# The model's spec.


def test_the_spec_lists_names_dtypes_shapes_and_flags_in_the_models_order():
    assert spec_of(small_model()) == (
        TensorSpec("000/kernel", "float32", (2, 3)),
        TensorSpec("001/bias", "float64", (1,)),
        TensorSpec("002/count", "int64", (), trainable=False),
    )
    assert [s.name for s in averaged_spec(spec_of(small_model()))] == ["000/kernel", "001/bias"]
    assert [s.num_bytes for s in spec_of(small_model())] == [24, 8, 8]


def test_the_averaged_part_of_a_model_fits_the_averaged_part_of_its_spec():
    model = small_model()
    part = model.select(model.averaged())
    assert part.non_trainable == set()
    check_spec(part, averaged_spec(spec_of(model)))


def test_a_model_fits_its_own_spec_whatever_its_flags_and_byte_order():
    model = small_model()
    check_spec(Parameters(dict(model)), spec_of(model))
    check_spec(model.replace({n: a.astype(a.dtype.newbyteorder(">")) for n, a in model.items()}), spec_of(model))


def test_a_spec_mismatch_names_what_differs():
    kernel = small_model()["000/kernel"]
    spec = spec_of(small_model())
    with pytest.raises(SpecMismatch, match=r"'000/kernel' float64\[2, 3\] was expected as float32\[2, 3\]\. Coord"):
        check_spec(Parameters(dict(small_model()) | {"000/kernel": kernel.astype(np.float64)}), spec)
    with pytest.raises(SpecMismatch, match=r"'000/kernel' float32\[3, 2\] was expected as float32\[2, 3\]"):
        check_spec(Parameters(dict(small_model()) | {"000/kernel": kernel.T}), spec)
    with pytest.raises(SpecMismatch, match=r"'002/count' int64\[\] is missing"):
        check_spec(small_model().select(["000/kernel", "001/bias"]), spec)
    with pytest.raises(SpecMismatch, match=r"'more' float32\[2, 3\] is not in the model"):
        check_spec(Parameters(dict(small_model()) | {"more": kernel}), spec)
    with pytest.raises(SpecMismatch, match=r"tensor 0 is '001/bias' where '000/kernel' was expected.*another order"):
        check_spec(small_model().select(["001/bias", "000/kernel", "002/count"]), spec)


def test_a_spec_mismatch_of_many_tensors_names_the_first_three_and_counts_the_others():
    model = Parameters({f"t{i}": np.zeros(1, np.float32) for i in range(100)})
    with pytest.raises(SpecMismatch, match=r"'t0' .*'t1' .*'t2' float32\[1\] is missing; and 97 more\. ") as caught:
        check_spec(Parameters({}), spec_of(model))
    assert len(str(caught.value)) < 400


# The finite check.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 3, 70_000])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype, value, size):
    for position in (0, size // 2, size - 1):
        values = np.ones(size, DTYPES[dtype])
        values[position] = value
        with pytest.raises(NotFinite, match=f"tensor 'bad': 1 of its {size} values"):
            check_finite(Parameters({"good": np.ones(2, np.float32), "bad": values}))


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_values_of_a_dtype_are_finite_although_their_sum_is_not(dtype):
    largest = ml_dtypes.finfo(DTYPES[dtype]).max
    values = np.full((300, 301), largest, DTYPES[dtype])
    check_finite(Parameters({"up": values, "down": -values, "mixed": np.concatenate([values, -values]).T}))


@pytest.mark.parametrize("dtype", FLOATS)
def test_infinities_of_both_signs_do_not_cancel_out(dtype):
    with pytest.raises(NotFinite, match="2 of its 2 values"):
        check_finite(Parameters({"w": np.array([np.inf, -np.inf], DTYPES[dtype])}))


@pytest.mark.parametrize("dtype", FLOATS)
def test_layout_and_byte_order_do_not_hide_a_nan(dtype):
    values = np.ones((50, 40), DTYPES[dtype])
    values[30, 10] = np.nan
    for array in (values.T, values[::2, ::2], values[::-1], values.astype(values.dtype.newbyteorder(">"))):
        with pytest.raises(NotFinite, match="1 of its"):
            check_finite(Parameters({"w": array}))


def test_tensors_without_elements_and_of_whole_numbers_are_finite():
    empty = {dtype: np.zeros((0, 3), DTYPES[dtype]) for dtype in DTYPES}
    check_finite(Parameters(empty | {"n": np.array([2**63 - 1, -(2**63)]), "b": np.ones((), bool)}))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1.0, None], ids=["ordinary", "overflowing sum"])
def test_the_finite_check_makes_no_copy_of_the_model(dtype, scale):
    values = np.full(4_000_000, ml_dtypes.finfo(DTYPES[dtype]).max if scale is None else scale, DTYPES[dtype])
    model = Parameters({"w": values, "transposed": values.reshape(2000, 2000).T})
    check_finite(model)
    tracemalloc.start()
    try:
        check_finite(model)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_decoding_names_the_tensor_that_is_not_finite_unless_told_not_to_look():
    body = encode(UPDATE, Parameters({"w": np.array([1.0, np.nan])}))
    with pytest.raises(NotFinite, match="tensor 'w': 1 of its 2 values are NaN or infinite"):
        decode(body)
    assert decode(body, check_finite=False).parameters is not None
