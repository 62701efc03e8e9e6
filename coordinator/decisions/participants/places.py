"""Places: the participants that a strategy with room for a limited number of them works with.

Such a strategy keeps something for each participant, or divides by their number (strategies.protocol.max_participants).

Rules
1. The first participants to come get the places, at most their user's share each (users.py). A participant without a
   place gets no tasks.
2. A participant with an accepted update keeps its place to the end of the run: the strategy counts on it.
3. A participant without one loses its place to one that waits, if it has no task out and is away, or has had more
   failures in a row than the other one. Its lapsed tasks are withdrawn then, because an update of it would not fit. So
   silent participants cannot keep the places for ever.
4. Among those that wait, the one with the fewest failures in a row comes first, then the one that came first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sortedcontainers import SortedDict

from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.participants.users import Users
from fedmq.schemas.messages import Reply


class Move(NamedTuple):
    """A place that changes hands; `loser` is None if the place was free."""

    loser: Participant | None
    winner: Participant


class Places:
    """The strategy's places, and those that wait for one."""

    def __init__(self, number: int, reply: Reply, users: Users) -> None:
        self._left = number
        self._reply = reply
        self._users = users
        self._waiting = SortedDict()
        """(failures, seq) -> participant that waits."""
        self._keys: dict[int, tuple[int, int]] = {}
        self._loose = SortedDict()
        """seq -> participant that may lose its place."""
        self._looked: int | None = None
        """`Users.generation` at the last fruitless look; None if something has changed since."""

    def settle(self, p: Participant) -> None:
        """Take in a change of a participant."""
        key = (p.failures, p.seq) if not p.placed and p.here and self._reply in p.replies else None
        old = self._keys.get(p.seq)
        if key != old:
            self._forget_waiting(p)
            if key is not None:
                self._keys[p.seq] = key
                self._waiting[key] = p
                self._looked = None
        loose = p.placed and not p.accepted and p.out is None and (not p.here or p.failures > 0)
        if loose:
            self._loose[p.seq] = p
            self._looked = None
        else:
            self._loose.pop(p.seq, None)

    def look_again(self) -> None:
        """Note that users' counts of places have changed."""
        self._looked = None

    def next_move(self) -> Move | None:
        """Return the next place that is to change hands; None if there is none. The caller calls `move`."""
        if self._looked == self._users.generation:
            return None
        if (self._left or self._loose) and self._waiting:
            for winner in self._waiting.values():
                assert winner.of is not None
                if winner.of.placed >= self._users.share_of(winner.of):
                    continue
                if self._left:
                    return Move(None, winner)
                for loser in self._loose.values():
                    if not loser.here or loser.failures > winner.failures:
                        return Move(loser, winner)
                break
        self._looked = self._users.generation
        return None

    def move(self, move: Move) -> None:
        """Let a place change hands; the caller settles both participants."""
        if move.loser is not None:
            self._take(move.loser)
        self._give(move.winner)

    def forget(self, p: Participant) -> None:
        """Free the place of a participant that is forgotten, or wait for it no more."""
        self._forget_waiting(p)
        self._loose.pop(p.seq, None)
        if p.placed:
            self._take(p)

    def rebuild(self, participants: Iterable[Participant]) -> list[Participant]:
        """Count the places that are taken. Return those that get one now.

        That happens if the ledger is older than the record of places: they were given in order of coming.
        """
        known = list(participants)
        self._left -= sum(p.placed for p in known)
        if any(p.placed for p in known):
            return []
        given = sorted(known, key=lambda p: (not p.accepted, p.seq))[: self._left]
        for p in given:
            self._give(p)
        return given

    def _give(self, p: Participant) -> None:
        assert p.of is not None
        p.placed = True
        p.of.placed += 1
        self._left -= 1

    def _take(self, p: Participant) -> None:
        assert p.of is not None
        p.placed = False
        p.of.placed -= 1
        self._left += 1
        self._looked = None

    def _forget_waiting(self, p: Participant) -> None:
        key = self._keys.pop(p.seq, None)
        if key is not None:
            del self._waiting[key]
