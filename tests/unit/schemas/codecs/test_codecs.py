"""The codecs by exact small numbers: what is sent, what comes back, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.schemas.codecs import leb128
from fedmq.schemas.codecs.bf16 import Bf16
from fedmq.schemas.codecs.blocks import Int4, Int8, quantise
from fedmq.schemas.codecs.codec import Codec, Places, places_of
from fedmq.schemas.codecs.powersgd import PowerSgd, orthonormal
from fedmq.schemas.codecs.topk import TopK, largest
from fedmq.schemas.errors import MalformedMessage
from fedmq.schemas.tensors import DTYPES, TensorSpec

CODECS = (
    Bf16(), Int8(), Int8("nearest"), Int4(), Int4("nearest"), TopK(0.1), TopK(0.1, "bf16"), TopK(0.1, "int8"),
    PowerSgd(1), PowerSgd(3),
)  # fmt: skip
SHAPES = [(), (1,), (7,), (300, 3), (64, 8), (3, 3, 2, 5), (0, 4), (513,)]


def places(*shapes: tuple[int, ...]) -> Places:
    return places_of(tuple(TensorSpec(f"t{i}", "float32", shape) for i, shape in enumerate(shapes)))


def normal(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_codec_makes_the_parts_that_it_says_and_the_same_ones_for_the_same_seed(codec: Codec) -> None:
    where = places(*SHAPES)
    values = normal(where.size)
    parts = codec.encode(values, where, 5, {}).parts
    assert list(parts) == [p.name for p in codec.parts(where)]
    for part in codec.parts(where):
        assert parts[part.name].dtype == DTYPES[part.dtype]
        assert part.least <= parts[part.name].size <= part.most
    again = codec.encode(values, where, 5, {}).parts
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    decoded = codec.decode(parts, where)
    assert decoded.dtype == np.float32
    assert decoded.shape == values.shape
    # contractive, or for the stochastic ones an error of less than a step
    assert np.linalg.norm(decoded - values) < np.linalg.norm(values)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_zeros_and_an_empty_model_come_back_as_they_are(codec: Codec) -> None:
    for where in (places((40, 3), (2,)), places((0,)), places()):
        values = np.zeros(where.size, np.float32)
        assert not codec.decode(codec.encode(values, where, 0, {}).parts, where).any()


def test_int8_of_a_whole_tensor_to_the_nearest_is_the_specs_golden_sequence() -> None:
    where, x, hidden = places((4,)), np.zeros(4, np.float32), np.zeros(4, np.float32)
    steps = ([0.5, -0.25, 0.125, 0.01], [127, -64, 32, 3], 0.003937007859), (
        [0.1, 0.1, -0.3, 0.02], [42, 43, -127, 8], 0.002369954716,
    )  # fmt: skip
    for delta, q, scale in steps:
        x += np.float32(delta)
        parts = Int8("nearest").encode(x - hidden, where, 0, {}).parts
        assert parts["q"].tolist() == q
        assert parts["scale"][0] == pytest.approx(scale, rel=1e-9, abs=0)
        hidden += Int8("nearest").decode(parts, where)


def test_stochastic_rounding_is_the_floor_of_the_scaled_value_and_a_uniform_number_of_the_task() -> None:
    values = normal(600)
    u = np.random.Generator(np.random.PCG64(9)).random(512, dtype=np.float32)
    q, scales = quantise(values, places((600,)), levels=127, block=256, rounding="stochastic", seed=9)
    assert scales.tolist() == [np.abs(values[i : i + 256]).max() / np.float32(127) for i in (0, 256, 512)]
    assert q[:256].tolist() == np.floor(values[:256] / scales[0] + u[:256]).tolist()
    mean = np.mean(
        [Int8().decode(Int8().encode(values, places((600,)), s, {}).parts, places((600,))) for s in range(300)], 0
    )
    assert np.abs(mean - values).max() < 4 * scales.max() / 2 / np.sqrt(300)


def test_no_block_has_elements_of_two_tensors() -> None:
    where = places((257,), (3,))
    values = np.concatenate([np.full(257, 127.0), np.full(3, 1.27)]).astype(np.float32)
    parts = Int8("nearest").encode(values, where, 0, {}).parts
    assert parts["scale"].tolist() == pytest.approx([1, 1, 0.01])
    assert set(parts["q"].tolist()) == {127}


def test_two_elements_of_int4_share_a_byte_the_first_one_in_its_lower_half() -> None:
    parts = Int4("nearest").encode(np.float32([7, -7, 1]), places((3,)), 0, {}).parts
    assert parts["scale"].tolist() == [1]
    assert parts["q"].tolist() == [0x1F, 0x89]


@pytest.mark.parametrize("scale", [-1.0, np.inf, np.nan])
@pytest.mark.parametrize("codec", [Int8(), Int4()])
def test_a_scale_that_no_block_has_is_refused(codec: Codec, scale: float) -> None:
    where = places((8,))
    parts = dict(codec.encode(normal(8), where, 0, {}).parts) | {"scale": np.float32([scale])}
    with pytest.raises(MalformedMessage, match="scale"):
        codec.decode(parts, where)


def test_the_smallest_values_of_a_float32_do_not_divide_by_zero() -> None:
    tiny = np.float32([1e-45, -1e-45, 0])
    for codec in (Int8("nearest"), Int4("nearest")):
        assert np.isfinite(codec.decode(codec.encode(tiny, places((3,)), 0, {}).parts, places((3,)))).all()


def test_bf16_is_the_upper_half_rounded_to_the_nearest_even() -> None:
    values = np.uint32([0x3F808000, 0x3F818000, 0x3F808001]).view(np.float32)
    decoded = Bf16().decode(Bf16().encode(values, places((3,)), 0, {}).parts, places((3,)))
    assert decoded.view(np.uint32).tolist() == [0x3F800000, 0x3F820000, 0x3F810000]


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ([1, -3, 2], 2, [1, 2]),
        ([1, -1, 1, 1], 2, [0, 1]),
        ([0, 5, -5, 5, 9], 3, [1, 2, 4]),
        ([1, 2], 5, [0, 1]),
        ([0, 0], 1, [0]),
    ],
)
def test_the_largest_values_are_taken_and_of_equals_those_with_the_lowest_index(values, count, expected) -> None:
    assert largest(np.float32(values), count).tolist() == expected


def test_topk_keeps_the_ceiling_of_its_part_and_sends_gaps() -> None:
    values = np.zeros(1000, np.float32)
    values[[3, 200, 999]] = [1, -2, 3]
    parts = TopK(0.0021).encode(values, places((1000,)), 0, {}).parts  # ceil(2.1)
    assert parts["value"].tolist() == [1, -2, 3]
    assert leb128.unpack(parts["gap"], 3).tolist() == [3, 197, 799]
    assert np.array_equal(TopK(0.0021).decode(parts, places((1000,))), values)


@pytest.mark.parametrize(
    ("gaps", "why"),
    [([1, 0, 3], "rise"), ([1, 2, 9], "index 12"), ([1, 2, 7], "has the index 10"), ([2**34, 1, 1], "index")],
)
def test_indices_that_do_not_rise_or_that_the_model_does_not_have_are_refused(gaps, why) -> None:
    parts = {"value": np.ones(3, np.float32), "gap": leb128.pack(np.array(gaps))}
    with pytest.raises(MalformedMessage, match=why):
        TopK(0.3).decode(parts, places((10,)))


def test_the_room_for_gaps_is_what_gaps_that_fit_into_the_model_can_take() -> None:
    assert TopK(0.01).parts(places((1000,)))[-1][:4] == ("gap", "uint8", 10, 10 + 1000 // 128)
    large = TopK(0.01).parts(places((200_000,)))[-1]
    assert large[:4] == ("gap", "uint8", 2000, 2000 + 200_000 // 128 + 200_000 // 128**2)
    most = np.full(10, 128)  # more than 7 of them would lie beyond the model
    most[7:] = 1
    assert leb128.pack(most).size == 17


NUMBERS = [0, 1, 127, 128, 16_383, 16_384, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**35 - 1]


def test_leb128_is_the_standards() -> None:
    assert leb128.pack(np.array([624_485, 2, 127, 128])).tolist() == [0xE5, 0x8E, 0x26, 2, 127, 0x80, 1]
    assert leb128.unpack(leb128.pack(np.array(NUMBERS)), len(NUMBERS)).tolist() == NUMBERS
    assert leb128.unpack(leb128.pack(np.array([], np.int64)), 0).tolist() == []


@pytest.mark.parametrize(
    ("raw", "count"),
    [([1, 2], 1), ([1], 2), ([0x80], 1), ([1, 0x80], 1), ([0x80, 0], 1), ([0x80] * 5 + [1], 1), ([], 1), ([0x80], 0)],
)
def test_leb128_that_is_not_whole_or_has_two_forms_is_refused(raw, count) -> None:
    with pytest.raises(MalformedMessage):
        leb128.unpack(np.array(raw, np.uint8), count)


def test_powersgd_is_the_specs_golden_iteration() -> None:
    matrix = np.float32([[1, 2, 3], [4, 5, 6.5]])
    warm = {"powersgd:0": np.ones((3, 1), np.float32)}
    encoded = PowerSgd(1).encode(matrix.reshape(-1), places((2, 3)), 0, warm)
    assert encoded.parts["p"] == pytest.approx([0.360994103, 0.932568098], abs=6e-8)
    assert encoded.parts["q"] == pytest.approx([4.091266496, 5.384828696, 7.144674946], abs=6e-7)
    assert np.array_equal(encoded.warm["powersgd:0"].reshape(-1), encoded.parts["q"])
    decoded = PowerSgd(1).decode(encoded.parts, places((2, 3))).reshape(2, 3)
    assert decoded == pytest.approx(np.outer(encoded.parts["p"], encoded.parts["q"]))


def test_a_warm_start_comes_closer_with_each_iteration() -> None:
    matrix, where, warm, errors = normal(30 * 20), places((30, 20)), {}, []
    for _ in range(12):
        encoded = PowerSgd(2).encode(matrix, where, 0, warm)
        errors.append(np.linalg.norm(PowerSgd(2).decode(encoded.parts, where) - matrix))
        warm = encoded.warm
    singular = np.linalg.svd(matrix.reshape(30, 20), compute_uv=False)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1.02 * np.linalg.norm(singular[2:])


def test_vectors_and_matrices_that_would_not_become_smaller_travel_whole() -> None:
    where = places((5,), (2, 2), (40, 40), (3, 3, 4, 50))
    p, q, value = PowerSgd(2).parts(where)
    assert (p.most, q.most, value.most) == (2 * 40 + 2 * 36, 2 * 40 + 2 * 50, 5 + 4)


def test_columns_that_depend_on_others_become_zero_and_no_division_by_zero() -> None:
    made = orthonormal(np.float32([[3, 6, 0, 1], [4, 8, 0, 0]]))
    assert np.allclose(made, [[0.6, 0, 0, 0.8], [0.8, 0, 0, -0.6]])
