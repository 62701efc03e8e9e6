"""The number of updates that the broker hands out unsettled, which bounds the memory that they take."""

from __future__ import annotations

MOST_PREFETCH = 512
CODED_FACTOR = 2
"""Times as many updates as plain ones would be let in, at most, if they usually come in a codec."""


def window_of(budget_bytes: int, plain_bytes: int, usual_bytes: int | None = None) -> int:
    """Return the prefetch of the updates queue, 1 to MOST_PREFETCH, for a budget of memory.

    `plain_bytes` is the size of a plain update's message, and `usual_bytes` that of one in the run's codec. Smaller
    messages make a wider window, and so fewer commits. But nobody has to send coded updates, so the window is at most
    CODED_FACTOR times as wide as for plain ones: if all of it is plain, the budget is exceeded by this factor.
    """
    plain = min(max(1, budget_bytes // max(1, plain_bytes)), MOST_PREFETCH)
    if usual_bytes is None:
        return plain
    coded = min(budget_bytes // max(1, usual_bytes), CODED_FACTOR * plain, MOST_PREFETCH)
    return max(plain, coded)
