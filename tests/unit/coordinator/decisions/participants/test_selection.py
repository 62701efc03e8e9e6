"""The pickers, compared with plain sets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.coordinator.decisions.participants.selection import LeastUsed, Uniform, make_picker

numbers = st.integers(0, 200) | st.integers(0, 9000)  # few, for collisions, and many
operations = st.lists(st.tuples(st.sampled_from(["add", "discard", "pick"]), numbers), max_size=200)


@given(operations)
def test_uniform_picks_the_kth_of_the_free_ones_in_order_of_their_seq(steps):
    picker, naive = Uniform(), set()
    ours, theirs = np.random.default_rng(0), np.random.default_rng(0)
    for what, seq in steps:
        if what == "add":
            picker.add(seq, 0)
            naive.add(seq)
        elif what == "discard":
            picker.discard(seq)
            naive.discard(seq)
        elif naive:
            expected = sorted(naive)[int(theirs.random() * len(naive))]
            assert picker.pick(ours) == expected
            naive.discard(expected)
        assert len(picker) == len(naive)
        assert (seq in picker) == (seq in naive)


def test_uniform_picks_from_all_of_several_thousand():
    picker, rng, left = Uniform(), np.random.default_rng(3), list(range(5000))
    for seq in left:
        picker.add(seq, 0)
    ours = np.random.default_rng(3)
    while left:
        assert picker.pick(ours) == left.pop(int(rng.random() * len(left)))


@given(operations)
def test_least_used_picks_the_one_with_fewest_tasks_and_then_the_first(steps):
    picker, naive, used = LeastUsed(), set(), Counter()
    for what, seq in steps:
        if what == "add":
            picker.add(seq, used[seq])
            naive.add(seq)
        elif what == "discard":
            picker.discard(seq)
            naive.discard(seq)
        elif naive:
            expected = min(naive, key=lambda s: (used[s], s))
            assert picker.pick(np.random.default_rng(0)) == expected
            naive.discard(expected)
            used[expected] += 1
        assert len(picker) == len(naive)


def test_uniform_is_uniform():
    picker, rng, counts = Uniform(), np.random.default_rng(1), Counter()
    for _ in range(4000):
        for seq in range(4):
            picker.add(seq, 0)
        counts[picker.pick(rng)] += 1
    assert all(900 < counts[seq] < 1100 for seq in range(4))


@pytest.mark.parametrize("selection", ["uniform", "least_used"])
def test_the_same_set_gives_the_same_pick_whatever_its_history(selection):
    straight, detour = make_picker(selection), make_picker(selection)
    for seq in (1, 5, 9):
        straight.add(seq, 0)
    for seq in (9, 200, 5, 3, 1):
        detour.add(seq, 0)
    for seq in (3, 200):
        detour.discard(seq)
    picks = [[p.pick(rng) for _ in range(3)] for p, rng in ((p, np.random.default_rng(2)) for p in (straight, detour))]
    assert picks[0] == picks[1]
