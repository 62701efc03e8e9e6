"""The traces of discarded updates: how many rows, log lines and dead letters one flood may leave.

A device can send bad updates without end. Each is counted, in the checkpoint's scalars. The rest is bounded.

Rules
1. The ledger has a row for the first `MOST_DISCARD_ROWS` discards of a reason, and for each update that closes its
   task, because a receipt may have to be repeated. The counts by reason are exact (Core.discarded).
2. The log has a line for the first `FIRST_LINES` discards of a user and reason, and then one with their number each
   `TELL_S`.
3. The dead letters have the first `FIRST_LETTERS` bad messages of a user, and then one each `LETTER_S`. Their queue is
   bounded as well, and drops the oldest: a flood of one user must not hide the others' letters.

A restart forgets what 2 and 3 have seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from fedmq.coordinator.state.ledger.rows import MOST_DISCARD_ROWS

FIRST_LINES = 10
TELL_S = 60.0
FIRST_LETTERS = 100
LETTER_S = 60.0
MOST_KEYS = 1000
"""Number of users, or of users and reasons, that are remembered. The one that was quiet for longest makes room."""


@dataclass(slots=True)
class _Seen:
    number: int = 0
    """Number of messages so far."""
    passed: int = 0
    """Number of messages so far that passed."""
    passed_s: float = 0.0
    """Time of the last one that passed."""


class Sparing:
    """Lets the first messages of each key pass, and then one in each period."""

    def __init__(self, first: int, period_s: float) -> None:
        self._first, self._period_s = first, period_s
        self._seen: OrderedDict[Hashable, _Seen] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def passes(self, key: Hashable, now: float) -> int | None:
        """Return the number of this key's messages so far if this one passes at run time `now`; None if it does not."""
        seen = self._seen.pop(key, None) or _Seen()
        self._seen[key] = seen
        if len(self._seen) > MOST_KEYS:
            self._seen.popitem(last=False)
        seen.number += 1
        if seen.passed >= self._first and now - seen.passed_s < self._period_s:
            return None
        seen.passed += 1
        seen.passed_s = now
        return seen.number


class Traces:
    """The decision about each discard's traces. `now` is run time in seconds."""

    def __init__(self) -> None:
        self._lines = Sparing(FIRST_LINES, TELL_S)
        self._letters = Sparing(FIRST_LETTERS, LETTER_S)

    @staticmethod
    def has_row(count: int, closes_task: bool) -> bool:
        """Return True if the ledger gets a row. `count` is the number of discards of its reason, with this one."""
        return closes_task or count <= MOST_DISCARD_ROWS

    def line(self, user: str | None, reason: str, now: float) -> int | None:
        """Return the number of the user's discards of this reason if the log gets a line; otherwise None."""
        return self._lines.passes((user, reason), now)

    def has_letter(self, user: str | None, now: float) -> bool:
        """Return True if the message goes to the dead letters."""
        return self._letters.passes(user, now) is not None
