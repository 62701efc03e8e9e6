import random

from fedmq.schemas.local.backoff import Backoff


class Highest(random.Random):
    """Draws the upper end every time."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_ceiling_doubles_from_half_a_second_to_thirty() -> None:
    backoff = Backoff()
    assert [backoff.delay_s(attempt, Highest()) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_year_of_attempts_does_not_overflow() -> None:
    assert Backoff().ceiling_s(10**6) == 30.0


def test_delays_are_spread_over_the_whole_range() -> None:
    rng = random.Random(7)
    delays = [Backoff().delay_s(6, rng) for _ in range(1000)]
    assert min(delays) < 0.5
    assert max(delays) > 29.5
    assert 14 < sum(delays) / len(delays) < 16


def test_the_same_seed_gives_the_same_delays() -> None:
    first, second = random.Random(1), random.Random(1)
    assert [Backoff().delay_s(n, first) for n in range(5)] == [Backoff().delay_s(n, second) for n in range(5)]
