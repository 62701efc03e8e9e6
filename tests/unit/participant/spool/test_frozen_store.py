"""Frozen parts on a participant's disk: bounded, and whole or gone."""

from __future__ import annotations

import os

import numpy as np
import pytest

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


@pytest.mark.parametrize("kind", ["a folder", "a link", "a FIFO", "two names"])
def test_a_file_that_the_disk_does_not_give_is_not_promised_again_and_is_replaced(tmp_path, kind):
    """Else hello, task and `frozen_lost` would follow each other for ever."""
    store, one = FrozenStore(tmp_path), part(1.5)
    store.keep(one)
    file = tmp_path / "frozen" / one.digest
    match kind:
        case "a folder":
            file.unlink()
            file.mkdir()
        case "a link":
            file.rename(tmp_path / "elsewhere")
            file.symlink_to(tmp_path / "elsewhere")
        case "a FIFO":
            file.unlink()
            os.mkfifo(file)
        case _:
            os.link(file, tmp_path / "elsewhere")
    assert store.digests() == (one.digest,)
    assert store.read(one.digest) is None
    assert store.digests() == ()
    store.keep(one)
    assert store.digests() == (one.digest,)
    again = store.read(one.digest)
    assert again is not None
    assert again.digest == one.digest


def test_what_is_still_frozen_is_found_in_an_earlier_part(tmp_path):
    store, one = FrozenStore(tmp_path), part(1.5)
    store.keep(part(2.5))
    store.keep(one)
    store.keep(part(3.5))
    less = one.less(["a"])
    assert less is not None
    found = FrozenStore(tmp_path).read(less.digest, ["a", "b"])
    assert found is not None
    assert (found.digest, list(found.by_name)) == (less.digest, ["c"])
    assert store.read(less.digest, ["c"]) is None
    assert store.read(less.digest) is None
    assert store.read(less.digest, ["a", "c"]) is None
    assert len(store.digests()) == 3
