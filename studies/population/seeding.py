"""Many of numpy's generators at once: the states in which `np.random.PCG64(np.random.SeedSequence(...))` starts, for n
seeds.

One SeedSequence costs 5 µs and one PCG64 from it another 5 µs, a good part of the cost of training a small model. Here
the steps of both are done on arrays of n words. They are described in numpy's documentation of SeedSequence (after
O'Neill's `seed_seq` replacement) and by O'Neill 2014, "PCG: A Family of Simple Fast Space-Efficient Statistically Good
Algorithms for Random Number Generation". numpy promises that a seed's stream stays the same, and a test compares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
State = tuple[int, int]
"""PCG64's (state, inc)."""

_POOL = 4
_LEFT, _RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_SHIFT = np.uint32(16)
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_128_BITS = (1 << 128) - 1


def _constants(first: int, factor: int, count: int) -> Words:
    """Return first·factor^i as a column, for i from 0 to `count`."""
    powers = [first]
    for _ in range(count):
        powers.append(powers[-1] * factor & 0xFFFFFFFF)
    return np.array(powers, np.uint32)[:, None]


_MOST_WORDS = 8
_A = _constants(0x43B0D7E5, 0x931E8875, _POOL + _POOL * (_POOL - 1) + _POOL * (_MOST_WORDS - _POOL))
_B = _constants(0x8B51F9DD, 0x58F38DED, 2 * _POOL)
_OTHERS = [np.array([i for i in range(_POOL) if i != source]) for source in range(_POOL)]


def _hashed(values: Any, constants: Words, first: int, count: int) -> Words:
    """Return `count` hashes, a row each, by the constants from number `first` on."""
    hashed: Words = values ^ constants[first : first + count]
    hashed *= constants[first + 1 : first + count + 1]
    hashed ^= hashed >> _SHIFT
    return hashed


def _mixed(x: Words, y: Words) -> Words:
    mixed: Words = x * _LEFT - y * _RIGHT
    mixed ^= mixed >> _SHIFT
    return mixed


def generator_states(entropy: Words) -> list[State]:
    """Return PCG64's (state, inc) for each column of `entropy` [words, n].

    A column has the words that SeedSequence gathers: its entropy, low words first, filled up with zeros to 4 if there
    is a spawn key, and then the spawn key.
    """
    words = len(entropy)
    if not _POOL <= words <= _MOST_WORDS:
        raise ValueError(f"got {words} words of entropy, expected {_POOL} to {_MOST_WORDS}")
    pool, done = _hashed(entropy[:_POOL], _A, 0, _POOL), _POOL
    for source, others in enumerate(_OTHERS):
        pool[others] = _mixed(pool[others], _hashed(pool[source], _A, done, _POOL - 1))
        done += _POOL - 1
    for word in entropy[_POOL:]:
        pool = _mixed(pool, _hashed(word, _A, done, _POOL))
        done += _POOL
    out = _hashed(np.concatenate([pool, pool]), _B, 0, 2 * _POOL).astype(np.uint64)
    joined = (out[0::2] | out[1::2] << np.uint64(32)).tolist()
    states = []
    for high, low, inc_high, inc_low in zip(*joined, strict=True):
        inc = (inc_high << 65 | inc_low << 1 | 1) & _128_BITS
        start = inc + (high << 64 | low)
        states.append(((start * _MULTIPLIER + inc) & _128_BITS, inc))
    return states


class Rewound:
    """One generator that is set to one state after another."""

    def __init__(self) -> None:
        self._bits = np.random.PCG64(0)
        self._generator = np.random.Generator(self._bits)
        self._inner: dict[str, Any] = {}
        self._outer: Any = {"bit_generator": "PCG64", "state": self._inner, "has_uint32": 0, "uinteger": 0}

    def at(self, state: State) -> np.random.Generator:
        """Set the generator to a state, one of `generator_states` or of `state()`, and return it."""
        self._inner["state"], self._inner["inc"] = state
        self._bits.state = self._outer
        return self._generator

    def state(self) -> State:
        """Return the present state. It is of no use after draws of 32 bits, because one of these may be left over."""
        inner: Any = self._bits.state["state"]
        return inner["state"], inner["inc"]


class Streams:
    """Uniform draws in [0, 1) of the generators of SeedSequence(seed, spawn_key=(i, purpose)), for i below `count`."""

    def __init__(self, seed: int, count: int, purpose: int) -> None:
        self._states = generator_states(entropy_of_spawned(seed, count, purpose))
        self._rewound = Rewound()

    def random(self, i: int, draws: int) -> list[float]:
        """Return the next `draws` of generator i: the same ones, however many are asked for at a time."""
        drawn: list[float] = self._rewound.at(self._states[i]).random(draws).tolist()
        self._states[i] = self._rewound.state()
        return drawn


def entropy_of_spawned(seed: int, count: int, purpose: int) -> Words:
    """Return the words of SeedSequence(seed, spawn_key=(i, purpose)), for i below `count` and any seed of 0 or more."""
    if seed < 0:
        raise ValueError(f"got the seed {seed}, expected 0 or more")
    own = [seed >> shift & 0xFFFFFFFF for shift in range(0, max(seed.bit_length(), _POOL * 32), 32)]
    entropy = np.empty((len(own) + 2, count), np.uint32)
    entropy[:-2] = np.array(own, np.uint32)[:, None]
    entropy[-2], entropy[-1] = np.arange(count), purpose
    return entropy
