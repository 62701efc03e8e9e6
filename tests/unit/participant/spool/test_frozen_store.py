"""Frozen parts on a participant's disk: bounded, and whole or gone."""

from __future__ import annotations

import os

import numpy as np

from fedmq.participant.spool.frozen_store import MOST_PARTS, FrozenStore
from fedmq.schemas.frozen import split_off
from fedmq.schemas.parameters import Parameters


def part(value: float):
    found = split_off(
        Parameters({"a": np.full(3, value, np.float32), "b": np.ones(1), "c": np.array(value)}), ["a", "c"]
    )
    assert found[1] is not None
    return found[1]


def test_a_part_comes_back_with_its_bits(tmp_path):
    store, one = FrozenStore(tmp_path), part(1.5)
    assert store.digests() == ()
    assert store.read(one.digest) is None
    store.keep(one)
    store.keep(one)
    assert store.digests() == (one.digest,)
    again = FrozenStore(tmp_path).read(one.digest)
    assert again is not None
    assert again.digest == one.digest
    assert [again.by_name[name].tobytes() for name in ("a", "c")] == [one.by_name[n].tobytes() for n in ("a", "c")]
    assert again.by_name["c"].shape == ()


def test_a_damaged_file_is_no_part_and_makes_room(tmp_path):
    store, one = FrozenStore(tmp_path), part(1.5)
    for spoil in (lambda b: b[:-1], lambda b: b[:-1] + b"\x01", lambda _: b"", lambda b: b"\xff" * 8 + b):
        store.keep(one)
        file = tmp_path / "frozen" / one.digest
        file.write_bytes(spoil(file.read_bytes()))
        assert store.read(one.digest) is None
        assert store.digests() == ()


def test_the_newest_parts_stay(tmp_path):
    store = FrozenStore(tmp_path)
    parts = [part(value) for value in range(MOST_PARTS + 2)]
    for at, one in enumerate(parts):
        store.keep(one)
        os.utime(tmp_path / "frozen" / one.digest, ns=(at * 10**9, at * 10**9))
    assert set(store.digests()) == {one.digest for one in parts[-MOST_PARTS:]}
    assert len(list((tmp_path / "frozen").iterdir())) == MOST_PARTS


def test_a_disk_that_refuses_costs_nothing_but_bytes(tmp_path):
    (tmp_path / "frozen").write_text("no folder")
    store = FrozenStore(tmp_path)
    store.keep(part(1.0))
    assert store.digests() == ()
    assert store.read(part(1.0).digest) is None
