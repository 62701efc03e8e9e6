"""The order of examples in a task."""

from collections import Counter

import numpy as np

from fedmq.participant.training.shuffling import orders


def test_the_words_are_splitmix64s():
    """The expected words are the algorithm's public reference output for the state 1234567."""
    words = np.array([1234567], np.uint64) + np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    from fedmq.participant.training.shuffling import _mixed

    assert _mixed(words).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_an_order_is_a_permutation_of_its_own_whoever_is_beside_it():
    made = orders([7, 2**63 - 1, 7], [5, 3, 8], 4)
    assert made.shape == (3, 8)
    for own, seed, count in zip(made, (7, 2**63 - 1, 7), (5, 3, 8), strict=True):
        assert sorted(own[:count].tolist()) == list(range(count))
        assert own[count:].tolist() == list(range(count, 8))
        assert own[:count].tolist() == orders([seed], [count], 4)[0].tolist()


def test_seeds_and_epochs_have_orders_of_their_own():
    seen = {tuple(orders([seed], [20], epoch)[0]) for seed in range(30) for epoch in range(30)}
    assert len(seen) == 900


def test_all_orders_are_equally_likely_and_neighbours_know_nothing_of_each_other():
    count = 60_000
    first, second = orders(range(count), [3] * count, 0), orders(range(count), [3] * count, 1)
    for one, other in ((first, second), (first[:-1], first[1:])):
        pairs = Counter(zip(map(tuple, one.tolist()), map(tuple, other.tolist()), strict=True))
        expected = len(one) / 36
        assert len(pairs) == 36
        # Chi-squared with 35 degrees of freedom: chance exceeds 72 once in 4,000 times; the seeds are fixed.
        assert sum((n - expected) ** 2 / expected for n in pairs.values()) < 72
