"""Generators that are made many at a time are the same as numpy's."""

import numpy as np
import pytest

from fedmq.studies.population.seeding import Rewound, Streams, entropy_of_spawned, generator_states


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**64 - 1, 2**128 - 1])
@pytest.mark.parametrize("purpose", [0, 2, 2**32 - 1])
def test_many_participants_at_once_start_where_numpys_do(seed, purpose):
    rewound = Rewound()
    for i, state in enumerate(generator_states(entropy_of_spawned(seed, 50, purpose))):
        numpys = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i, purpose)))
        ours = rewound.at(state)
        assert ours.permutation(9).tolist() == numpys.permutation(9).tolist()
        assert ours.random(3).tolist() == numpys.random(3).tolist()


def test_more_words_than_there_are_constants_for_are_refused():
    with pytest.raises(ValueError, match="got 9 words of entropy, expected 4 to 8"):
        generator_states(np.zeros((9, 1), np.uint32))


@pytest.mark.parametrize("seed", [0, 7, 2**32, 2**64 + 3, 2**127])
def test_a_stream_gives_its_generators_draws_however_many_at_a_time(seed):
    streams = Streams(seed, 3, 1)
    numpys = [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i, 1))) for i in range(3)]
    for i, draws in ((2, 4), (0, 1), (2, 3), (1, 32), (2, 5), (0, 7)):
        assert streams.random(i, draws) == numpys[i].random(draws).tolist()


def test_a_seed_below_0_is_refused():
    with pytest.raises(ValueError, match="got the seed -1, expected 0 or more"):
        Streams(-1, 1, 0)
