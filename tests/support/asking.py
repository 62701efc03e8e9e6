"""Questions that nobody answers by an event: they are asked until the answer is right, with pauses that grow.

Without a pause the question takes a processor from the process that it waits for.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
WAIT_S = 60.0
FIRST_PAUSE_S, MOST_PAUSE_S = 0.005, 0.2


def ask_until(
    question: Callable[[], T],
    answer: Callable[[T], bool] = bool,
    within_s: float = WAIT_S,
    what: str = "right",
    first_pause_s: float = FIRST_PAUSE_S,
) -> T:
    """Ask until the answer is right, and return it. `what` says in words what should have come. A question that costs
    much, as one of rabbitmqctl does, has a longer pause."""
    pause, pause_s, deadline_s = threading.Event(), first_pause_s, time.monotonic() + within_s
    while not answer(found := question()):
        assert time.monotonic() < deadline_s, f"still {found!r}, not {what}, after {within_s} s"
        pause.wait(pause_s)
        pause_s = min(1.5 * pause_s, max(MOST_PAUSE_S, first_pause_s))
    return found
