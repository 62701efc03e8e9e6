"""The audit's checks for a buffer with a timeout: which versions may it have made, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fedmq.coordinator.state.ledger.rows import UpdateRow, VersionRow
from fedmq.coordinator.strategies.protocol import Strategy, buffer_timeout


def other_moments(strategy: Strategy[Any], rows: Sequence[UpdateRow], points: Sequence[VersionRow]) -> Iterator[str]:
    """Yield faults in how versions were made.

    A version by the timeout has at least `min_updates`, fewer than a full buffer, and is as much later than its first
    update as the timeout says. Any other version is of a full buffer.
    """
    timeout = buffer_timeout(strategy)
    size = int(getattr(strategy, "buffer_size", None) or 0)
    opened_s: dict[int | None, float] = {}
    for row in rows:
        opened_s.setdefault(row.version, row.run_s)
    for point in points:
        made = f"version {point.version} was made of {point.num_updates} updates at {point.run_s:g} s"
        if not point.by_timeout:
            if point.num_updates != size:
                yield f"{made}, not by a timeout, and the buffer holds {size}"
        elif timeout is None:
            yield f"{made} by a timeout, which the buffer does not have"
        elif not timeout.min_updates <= point.num_updates < size:
            yield f"{made} by the timeout, expected {timeout.min_updates} to {size - 1}"
        elif point.run_s < opened_s.get(point.version, 0.0) + timeout.timeout_s:
            yield f"{made}, before the buffer's timeout of {timeout.timeout_s:g} s was over"
