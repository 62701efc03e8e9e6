"""Users of the broker and their shares: how many slots the participants of one user may hold together.

A user may invent participant ids without end, and the broker vouches for the user alone. So no user may gain from the
number of its ids.

Rules
1. A user counts if one of its participants is here. A user's size is the number of its participants that are here.
2. If one user counts, its participants share all slots: nobody else wants them.
3. If several users count, none of them holds more slots than its share: `max_per_user`, or, if that is not set, the
   lower median of the users' sizes. With a user for each participant the share is 1, which limits nobody. Two honest
   users of one participant each and a user of 20 ids have the sizes 1, 1 and 20, and the share is 1.
4. A participant takes up its user's share while it has a task out, while it waits for others of its arrival group, and
   from its update to the end of its synchronous round.
5. Participants whose hellos name no user hold no slot while a user with a name counts. Otherwise a user would have two
   shares.
6. If a user has less room than free participants, those with the fewest tasks come first, then the older ones.

Everything follows from the participants' records, so a restored roster has the same shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

from sortedcontainers import SortedList

from fedmq.coordinator.decisions.participants.participant import Participant, User


class Users:
    """All users with a known participant.

    `seat` and `unseat` put a participant into the selection and take it out. Both may be called twice.
    """

    def __init__(
        self, max_per_user: int | None, seat: Callable[[Participant], None], unseat: Callable[[Participant], None]
    ) -> None:
        self._most = max_per_user
        self._seat, self._unseat = seat, unseat
        self._users: dict[str | None, User] = {}
        self._sizes = SortedList()
        self._named = 0
        self._held = False
        self.share: float = math.inf
        """Most slots of one user."""
        self.generation = 0
        """A number that changes whenever `share_of` may have changed."""

    def known(self, name: str | None) -> int:
        """Return the number of the user's known participants."""
        user = self._users.get(name)
        return 0 if user is None else len(user.members)

    def proven(self, name: str | None) -> int:
        """Return the number of the user's participants with an accepted update."""
        user = self._users.get(name)
        return 0 if user is None else user.proven

    def members(self, name: str | None) -> list[Participant]:
        """Return the user's known participants, oldest first."""
        user = self._users.get(name)
        return [] if user is None else [user.members[seq] for seq in sorted(user.members)]

    def enter(self, p: Participant) -> None:
        """Add a participant that is not here yet."""
        user = self._users.get(p.user)
        if user is None:
            user = self._users[p.user] = User(p.user)
        user.members[p.seq] = p
        user.placed += p.placed
        user.proven += p.proven
        p.of = user

    def leave(self, p: Participant) -> None:
        """Remove a participant, and take it out of the selection."""
        user = p.of
        assert user is not None
        self._unseat(p)
        del user.members[p.seq]
        user.placed -= p.placed
        user.proven -= p.proven
        self._forget_limited(user, p)
        if p.here:
            self._resize(user, -1)
        if not user.members:
            del self._users[user.name]
        p.of = None

    def came(self, p: Participant) -> None:
        """Note that a participant is here."""
        assert p.of is not None
        self._resize(p.of, 1)

    def went(self, p: Participant) -> None:
        """Note that a participant is here no more."""
        assert p.of is not None
        self._resize(p.of, -1)

    def share_of(self, user: User) -> float:
        """Return the most slots that this user may hold, and the most places of the strategy's."""
        return 0 if user.name is None and self._named else self.share

    def settle(self, p: Participant) -> None:
        """Seat a participant whose `free` or `busy` changed, if its user has room for it, or unseat it."""
        user = p.of
        assert user is not None
        if user.limited:
            self._enter_limited(user, p)
            self._fill(user)
        elif p.free:
            self._seat(p)
        else:
            self._unseat(p)

    def hold(self) -> None:
        """Leave all shares as they are until `release`, while many participants come."""
        self._held = True

    def release(self) -> None:
        """Bring all shares up to date."""
        self._held = False
        self._share_anew(None)

    # Shares

    def _resize(self, user: User, by: int) -> None:
        if user.here:
            self._sizes.remove(user.here)
        named = self._named
        self._named += user.name is not None and by > 0 and not user.here
        user.here += by
        self._named -= user.name is not None and by < 0 and not user.here
        if user.here:
            self._sizes.add(user.here)
        if not self._held:
            self._share_anew(user if bool(named) == bool(self._named) else None)

    def _share_anew(self, changed: User | None) -> None:
        """Compute the share, and limit those users that it limits; `changed` is the only one whose size changed."""
        share: float = math.inf
        if self._most is not None:
            share = self._most
        elif len(self._sizes) > 1:
            share = self._sizes[(len(self._sizes) - 1) // 2]
        if share != self.share or changed is None:
            self.share = share
            self.generation += 1
            for user in self._users.values():
                self._limit(user)
        else:
            self._limit(changed)

    def _limit(self, user: User) -> None:
        limited = user.here > self.share_of(user)
        if limited and not user.limited:
            user.limited = True
            for p in user.members.values():
                self._enter_limited(user, p)
                self._unseat(p)
            user.seated = set()
        elif user.limited and not limited:
            user.limited = False
            user.busy.clear()
            user.waiting.clear()
            user.keys.clear()
            user.seated = set()
            for p in user.members.values():
                if p.free:
                    self._seat(p)
        if limited:
            self._fill(user)

    def _enter_limited(self, user: User, p: Participant) -> None:
        self._forget_limited(user, p)
        if p.busy:
            user.busy.add(p.seq)
        if p.free:
            key = user.keys[p.seq] = (p.tasks_issued, p.seq)
            user.waiting.add(key)

    @staticmethod
    def _forget_limited(user: User, p: Participant) -> None:
        user.busy.discard(p.seq)
        key = user.keys.pop(p.seq, None)
        if key is not None:
            user.waiting.discard(key)

    def _fill(self, user: User) -> None:
        room = max(0, int(self.share_of(user)) - len(user.busy))
        seated = {seq for _, seq in islice(user.waiting, room)}
        for seq in user.seated - seated:
            if seq in user.members:
                self._unseat(user.members[seq])
        for seq in seated:
            self._seat(user.members[seq])
        user.seated = seated
