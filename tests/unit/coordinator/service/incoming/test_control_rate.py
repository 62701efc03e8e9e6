"""The buckets of control messages: exact numbers of messages that pass."""

from __future__ import annotations

import logging

from fedmq.coordinator.service.incoming.control_rate import MOST_BUCKETS, ControlRate


def passed(rate: ControlRate, user: str | None, number: int, now: float) -> int:
    return sum(rate.allows(user, now) for _ in range(number))


def test_a_user_has_twenty_seconds_at_once_and_then_its_rate() -> None:
    rate = ControlRate(100.0, lambda _: 0)
    assert passed(rate, "a", 100_000, 0.0) == 2000
    assert passed(rate, "a", 100_000, 0.5) == 50
    assert passed(rate, "a", 100_000, 100.0) == 2000


def test_users_do_not_share_a_bucket_and_no_user_is_one_too() -> None:
    rate = ControlRate(1.0, lambda _: 0)
    assert [passed(rate, user, 50, 0.0) for user in ("a", "b", None)] == [20, 20, 20]


def test_each_proven_participant_adds_to_its_users_rate() -> None:
    rate = ControlRate(1.0, {"site": 3, "a": 0}.__getitem__)
    assert [passed(rate, user, 1000, 0.0) for user in ("site", "a")] == [320, 20]
    assert [passed(rate, user, 1000, 1.0) for user in ("site", "a")] == [16, 1]


def test_the_number_of_buckets_is_bounded() -> None:
    rate = ControlRate(1.0, lambda _: 0)
    for number in range(3 * MOST_BUCKETS):
        assert rate.allows(f"u{number}", 0.0)
    assert len(rate) == MOST_BUCKETS


def test_drops_are_told_once_a_minute(caplog) -> None:  # type: ignore[no-untyped-def]
    rate = ControlRate(0.1, lambda _: 0)
    with caplog.at_level(logging.WARNING, "fedmq"):
        for now in (0.0, 0.1, 0.2, 0.3, 60.3):
            passed(rate, "a", 10, now)
    told = [r.getMessage().partition(" detail=")[0] for r in caplog.records]
    assert told == [
        "event=control_messages_dropped user=a dropped=1",
        "event=control_messages_dropped user=a dropped=39",
    ]
