"""The first messages of a user leave traces, and then one in each period."""

from __future__ import annotations

from fedmq.coordinator.service.outgoing.discards import MOST_KEYS, Sparing, Traces
from fedmq.coordinator.state.ledger.rows import MOST_DISCARD_ROWS


def test_the_first_ones_pass_and_then_one_in_each_period() -> None:
    one = Sparing(2, 60.0)
    assert [one.passes("a", now) for now in (0.0, 0.0, 0.0, 59.0, 60.0, 61.0, 120.0)] == [1, 2, None, None, 5, None, 7]
    assert one.passes("b", 61.0) == 1


def test_a_bounded_number_of_keys_is_remembered_and_the_busiest_stay() -> None:
    one = Sparing(1, 60.0)
    for key in range(3 * MOST_KEYS):
        one.passes("busy", 0.0)
        one.passes(key, 0.0)
    assert len(one) == MOST_KEYS
    assert one.passes("busy", 1.0) is None
    assert one.passes(0, 1.0) == 1, "it was forgotten"


def test_rows_are_kept_for_the_first_of_a_reason_and_for_each_closed_task() -> None:
    rows = [Traces.has_row(count, closes) for count in (MOST_DISCARD_ROWS, MOST_DISCARD_ROWS + 1) for closes in (0, 1)]
    assert rows == [True, True, False, True]


def test_one_user_s_flood_takes_no_line_and_no_letter_from_another_one() -> None:
    traces = Traces()
    for _ in range(1000):
        traces.line("mallory", "malformed", 0.0)
        traces.has_letter("mallory", 0.0)
    assert (traces.line("mallory", "malformed", 0.0), traces.has_letter("mallory", 0.0)) == (None, False)
    assert (traces.line("mallory", "oversized", 0.0), traces.line("honest", "malformed", 0.0)) == (1, 1)
    assert traces.has_letter("honest", 0.0)
