"""The prefetch of the updates queue: what the memory budget holds, plain or coded."""

import pytest

from fedmq.coordinator.service.incoming.window import CODED_FACTOR, MOST_PREFETCH, window_of

MB = 1_000_000


@pytest.mark.parametrize(
    ("plain_bytes", "window"),
    [(10 * MB, 19), (190 * MB, 1), (500 * MB, 1), (1000, MOST_PREFETCH), (0, MOST_PREFETCH)],
)
def test_a_plain_window_is_what_the_budget_holds_and_at_least_one_update(plain_bytes, window) -> None:
    assert window_of(199 * MB, plain_bytes) == window


@pytest.mark.parametrize(
    ("usual_bytes", "window"),
    [
        (5 * MB, 38),
        (8 * MB, 24),
        (100_000, 19 * CODED_FACTOR),  # topk: a hundred times smaller, and nobody has to send it
        (12 * MB, 19),  # topk with a large fraction makes more than it is given
        (0, 19 * CODED_FACTOR),
    ],
)
def test_a_coded_window_is_wider_but_a_window_of_plain_updates_takes_at_most_twice_the_budget(
    usual_bytes, window
) -> None:
    assert window_of(199 * MB, 10 * MB, usual_bytes) == window


def test_no_window_is_wider_than_the_most() -> None:
    assert window_of(199 * MB, 400_000, 100_000) == MOST_PREFETCH


def test_a_window_of_one_large_update_may_become_two() -> None:
    assert window_of(100 * MB, 150 * MB, 40 * MB) == 2
