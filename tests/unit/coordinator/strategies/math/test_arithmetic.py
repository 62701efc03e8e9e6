from __future__ import annotations

import sys
import threading
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from fedmq.coordinator.strategies.math import arithmetic
from tests.unit.coordinator.strategies.twins import unaligned

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SHAPES = [(), (0,), (3,), (2, 0, 3), (4, 5), (arithmetic.CHUNK_ELEMENTS,), (3 * arithmetic.CHUNK_ELEMENTS + 7,)]


def values(shape: tuple[int, ...], dtype: object, seed: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def accumulated(x: np.ndarray, value: float = 0.0) -> np.ndarray:
    return arithmetic.accumulators({"x": x}, value)["x"]


def like(x: np.ndarray) -> np.ndarray:
    return arithmetic.allocate_like({"x": x})["x"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scale_add_is_the_plain_formula_in_the_accumulators_dtype(shape: tuple[int, ...], dtype: object) -> None:
    x = values(shape, dtype, 1)
    acc = accumulated(x, 2.0)
    kind = np.float64 if dtype is np.float64 else np.float32
    assert acc.dtype == kind
    arithmetic.scale_add(acc, 0.3, unaligned(x))
    expected = kind(2.0) + x.astype(kind) * kind(0.3)
    assert acc.tobytes() == np.asarray(expected, kind).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_lerp_step_and_quotient_are_the_plain_formulas(shape: tuple[int, ...], dtype: object) -> None:
    x, y = values(shape, dtype, 1), values(shape, dtype, 2)
    kind = np.float64 if dtype is np.float64 else np.float32
    acc = values(shape, kind, 3)
    wide_x, wide_y = x.astype(kind), y.astype(kind)
    cases = [
        (lambda out: arithmetic.lerp(x, unaligned(y), 0.25, out), wide_x * kind(0.75) + wide_y * kind(0.25)),
        (lambda out: arithmetic.step(x, 0.7, acc, out), wide_x + acc * kind(0.7)),
        (lambda out: arithmetic.quotient(acc, 3.0, out), acc / kind(3.0)),
    ]
    for kernel, expected in cases:
        out = like(x)
        kernel(out)
        assert out.dtype == x.dtype
        assert out.tobytes() == np.asarray(expected).astype(dtype).tobytes()


def test_the_ends_of_lerp_are_exact() -> None:
    x, y = values((1000,), np.float32, 1), values((1000,), np.float32, 2)
    out = like(x)
    arithmetic.lerp(x, y, 0.0, out)
    assert np.array_equal(out, x)
    arithmetic.lerp(x, y, 1.0, out)
    assert np.array_equal(out, y)


def test_the_chunk_size_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = values((1001,), np.float16, 1), values((1001,), np.float16, 2)

    def run() -> bytes:
        acc, out = accumulated(x), like(x)
        arithmetic.scale_add(acc, 0.1, x)
        arithmetic.scale_add(acc, 0.7, y)
        arithmetic.step(x, 0.3, acc, out)
        return acc.tobytes() + out.tobytes()

    whole = run()
    monkeypatch.setattr(arithmetic, "CHUNK_ELEMENTS", 7)
    assert run() == whole


def test_big_endian_and_strided_inputs_are_read_right() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    acc = accumulated(x)
    arithmetic.scale_add(acc, 1.0, x.astype(">f4"))
    arithmetic.scale_add(acc, 1.0, np.asfortranarray(x))
    assert np.array_equal(acc, 2 * x)
    assert like(x.astype(">f8")).dtype == np.dtype("=f8")


def test_arrays_of_one_block_are_aligned_and_do_not_overlap() -> None:
    tensors = {"a": np.zeros(3, np.float16), "b": np.zeros((), np.float64), "c": np.zeros((0, 2)), "d": np.zeros(5)}
    made = arithmetic.allocate_like(tensors)
    assert {n: (x.shape, x.dtype) for n, x in made.items()} == {n: (x.shape, x.dtype) for n, x in tensors.items()}
    for number, x in enumerate(made.values()):
        x[...] = number
    assert all(np.all(x == number) for number, x in enumerate(made.values()))
    assert all(x.flags.c_contiguous and x.flags.aligned and x.flags.writeable for x in made.values())
    assert all(x.ctypes.data % 64 == 0 for x in made.values() if x.size)


def test_no_kernel_makes_a_temporary_of_the_tensors_size() -> None:
    x, y = values((1_000_000,), np.float16, 1), unaligned(values((1_000_000,), np.float16, 2))
    acc, out = accumulated(x), like(x)
    tracemalloc.start()
    try:
        arithmetic.scale_add(acc, 0.5, y)
        arithmetic.lerp(x, y, 0.5, out)
        arithmetic.step(x, 0.5, acc, out)
        arithmetic.quotient(acc, 0.5, out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 4


def test_threads_do_not_share_scratch() -> None:
    x = np.ones(50_000, np.float32)
    totals = [accumulated(x) for _ in range(4)]

    def add(index: int) -> None:
        for _ in range(40):
            arithmetic.scale_add(totals[index], float(index), x)

    threads = [threading.Thread(target=add, args=(i,)) for i in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert [set(t.tolist()) for t in totals] == [{0.0}, {40.0}, {80.0}, {120.0}]


def test_a_wrong_shape_or_accumulator_is_refused() -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"shape \(3, 2\), expected \(2, 3\)"):
        arithmetic.scale_add(accumulated(x), 1.0, np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="expected a C-contiguous float32 or float64"):
        arithmetic.scale_add(np.ones((2, 3), np.float16), 1.0, x)
    with pytest.raises(ValueError, match="expected a C-contiguous float32 or float64"):
        arithmetic.scale_add(np.asfortranarray(x), 1.0, x)
