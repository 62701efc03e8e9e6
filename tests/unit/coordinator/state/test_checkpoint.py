"""A checkpoint is read whole and checked, or an error names it."""

import os
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fedmq.coordinator.state import checkpoint
from fedmq.schemas.errors import CheckpointError


@pytest.fixture
def arrays():
    return {
        "flag": np.array([True, False]),
        "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.array([1.5, -2.0], np.float16),
        "brain": np.array([1.5, -2.0, 3.0], ml_dtypes.bfloat16),
        "wide": np.array(np.pi),
        "steps": np.array([-(2**62)]),
        "nothing": np.zeros((0, 4), np.float32),
    }


def test_what_was_written_is_read_back_with_names_order_dtypes_shapes_bits_and_meta(tmp_path: Path, arrays):
    path = tmp_path / "a.safetensors"
    digest = checkpoint.write(path, arrays, {"version": 7, "x": 0.1})
    found = checkpoint.read(path, digest)
    assert list(found.arrays) == list(arrays)
    assert found.meta == {"version": 7, "x": 0.1}
    assert found.digest == digest
    for name, array in arrays.items():
        got = found.arrays[name]
        assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
        assert got.flags.writeable


def test_the_safetensors_library_reads_the_file(tmp_path: Path, arrays):
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, arrays)
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == set(arrays)
    del arrays["brain"]  # the numpy side of older releases has no bfloat16
    checkpoint.write(path, arrays)
    for name, got in load_file(path).items():
        np.testing.assert_array_equal(got, arrays[name], strict=True)


def test_arrays_of_foreign_byte_order_or_stride_are_stored_plainly(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    big = np.arange(4, dtype=">f4")
    turned = np.arange(6.0).reshape(2, 3).T
    checkpoint.write(path, {"big": big, "turned": turned})
    found = checkpoint.read(path).arrays
    np.testing.assert_array_equal(found["big"], [0, 1, 2, 3])
    np.testing.assert_array_equal(found["turned"], turned, strict=True)


def test_every_single_flipped_bit_is_found(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    digest = checkpoint.write(path, {"w": np.arange(3, dtype=np.float32)}, {"version": 1})
    whole = path.read_bytes()
    padding = whole.rindex(b"}") + 1
    data = 8 + int.from_bytes(whole[:8], "little")
    for position in range(len(whole)):
        if padding <= position < data:
            continue  # spaces after the header mean nothing
        torn = bytearray(whole)
        torn[position] ^= 1
        path.write_bytes(torn)
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            checkpoint.read(path, digest)


def test_every_truncation_is_found(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, {"w": np.arange(3, dtype=np.float32)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            checkpoint.read(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match="torn"):
        checkpoint.read(path)


def test_a_checkpoint_of_another_moment_is_refused(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    old = checkpoint.write(path, {"w": np.zeros(2)})
    checkpoint.write(path, {"w": np.ones(2)})
    with pytest.raises(CheckpointError, match="not the one in the ledger"):
        checkpoint.read(path, old)


def test_a_safetensors_file_of_others_and_a_missing_file_are_refused(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(path)
    save_file({"w": np.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no header that fedmq wrote"):
        checkpoint.read(path)


def test_a_dtype_that_safetensors_lacks_is_refused_by_name(tmp_path: Path):
    with pytest.raises(CheckpointError, match="'words' of dtype object"):
        checkpoint.write(tmp_path / "a.safetensors", {"words": np.array(["a"], object)})


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, {"w": np.zeros(2)})

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(path, {"w": np.ones(2)})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    np.testing.assert_array_equal(checkpoint.read(path).arrays["w"], np.zeros(2))


def test_writing_takes_no_copy_of_the_model(tmp_path: Path):
    arrays = {str(i): np.ones(1_000_000, np.float32) for i in range(5)}
    tracemalloc.start()
    try:
        checkpoint.write(tmp_path / "a.safetensors", arrays)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000
