"""The roster: which participants are here and which are free, in O(log n) an event.

A participant is free if all of this holds:
- it was heard from lately, did not say that it leaves, accepts tasks, and can send what the strategy needs;
- it has no task out and is not backing off;
- in a synchronous round, it has not given its update yet;
- with arrival groups, it does not wait for others of its group;
- if the strategy has room for a limited number of participants, it holds one of the places (places.py);
- its user has room for it (users.py).

Who gets a slot, and who is remembered
1. A participant is proven once an update of it was accepted. One that is not proven is on trial if it came after the
   run's first accepted update, or if its last task failed or lapsed.
2. The selection chooses among all participants that are free, but for those on trial. These hold at most half of the
   slots while others are free: a flood of new ids leaves the others their half. They get all slots that nobody else
   wants.
3. A participant that is not proven is forgotten when it is away, has no open task and is not backing off. What it left
   behind is not worth a row. If it comes again it is new.
4. At most `max_participants` are known. For a new one, the participant that is not proven and has been away for longest
   is forgotten, together with its lapsed tasks. If there is none, the new one is turned away. The same goes for the
   participants of one user and `max_per_user`.

Everything here follows from the records and the time, so a restored roster behaves like the one that wrote them.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
from sortedcontainers import SortedSet

from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.participants.places import Places
from fedmq.coordinator.decisions.participants.selection import make_picker
from fedmq.coordinator.decisions.participants.users import Users
from fedmq.coordinator.decisions.records import ParticipantRecord
from fedmq.coordinator.settings import RunSettings
from fedmq.schemas.messages import Hello, Reply

_FEW = 64
"""Entries of old back-offs that are not worth a search."""


class Roster:
    """All known participants. A caller that changes one must call `settle` afterwards."""

    def __init__(
        self, settings: RunSettings, reply: Reply, rng: np.random.Generator, max_participants: int | None = None
    ) -> None:
        """Start empty. `max_participants` is the number of the strategy's places; None means any number."""
        self._timeout_s = settings.participant_timeout_s
        self._most = settings.max_participants
        self._most_per_user = settings.max_per_user
        self._reply = reply
        self._rng = rng
        self._known: dict[str, Participant] = {}
        self._by_seq: dict[int, Participant] = {}
        self._free = make_picker(settings.selection)
        self._on_trial = make_picker(settings.selection)
        """Free participants that are on trial."""
        self._trials = 0
        """Number of participants on trial that hold a slot."""
        self._proven = False
        self.users = Users(settings.max_per_user, self._seat, self._unseat)
        self.places = None if max_participants is None else Places(max_participants, reply, self.users)
        self._gone: SortedSet = SortedSet()
        """(time of its last message, seq) of those that are away, not proven and without a task out."""
        self._gone_keys: dict[int, tuple[float, int]] = {}
        self._leaving: dict[int, Participant] = {}
        """Participants that are forgotten at the end of this step (rule 3)."""
        self._absences: list[tuple[float, int]] = []
        self._backoffs: list[tuple[float, int]] = []
        self._answered: list[Participant] = []
        self._dirty: dict[str, Participant] = {}
        self._forgotten: set[str] = set()
        self.next_seq = 0
        """The next new participant's `seq`. It never falls, so that no order of first hellos comes twice."""
        self.here = 0

    @property
    def free(self) -> int:
        return len(self._free) + len(self._on_trial)

    def __len__(self) -> int:
        return len(self._by_seq)

    def ids(self) -> list[str]:
        """Return all ids in order of first hello."""
        return list(self._known)

    def get(self, participant_id: str) -> Participant | None:
        return self._known.get(participant_id)

    def has_room_for(self, participant_id: str) -> bool:
        """Return False for a known participant that holds none of the strategy's places."""
        p = self._known.get(participant_id)
        return p is None or self.places is None or p.placed

    # Who is known

    def make_room(self, participant_id: str, user: str | None) -> list[Participant] | None:
        """Return those to be forgotten before this one can be known under this user (rule 4); None if it cannot be."""
        known = self._known.get(participant_id)
        most = math.inf if self._most_per_user is None else self._most_per_user
        if (known is None or known.user != user) and self.users.known(user) >= most:
            gone = [p for p in self.users.members(user) if p.seq in self._gone_keys]
            return [min(gone, key=lambda p: (p.last_seen_s, p.seq))] if gone else None
        if known is None and len(self._known) >= self._most:
            return [self._by_seq[seq] for _, seq in self._gone[:1]] or None
        return []

    def add(self, hello: Hello, now: float, user: str | None = "") -> Participant:
        """Add a new participant; the caller settles it."""
        p = Participant(
            hello.participant_id, self.next_seq, hello.session_id, hello.num_examples, hello.replies,
            hello.accepting, True, now, user=user, newcomer=self._proven, left=hello.leaving,
        )  # fmt: skip
        self._enter(p)
        return p

    def load(self, record: ParticipantRecord) -> Participant:
        """Add a participant from the ledger, in order of `seq`; the caller gives it its tasks and settles it."""
        if record.seq < self.next_seq:
            raise ValueError(f"participant {record.participant_id} has seq {record.seq}, which another one has too")
        p = Participant.from_record(record)
        self._enter(p)
        return p

    def _enter(self, p: Participant) -> None:
        self._known[p.participant_id] = self._by_seq[p.seq] = p
        self.next_seq = p.seq + 1
        self.users.enter(p)

    def set_user(self, p: Participant, user: str | None) -> None:
        """Note which user speaks for a participant; the caller settles it."""
        if p.user != user:
            self.users.leave(p)
            p.user = user
            self.users.enter(p)
            if p.here:
                self.users.came(p)
            if self.places is not None:
                self.places.look_again()

    def forget(self, p: Participant) -> None:
        """Forget a participant that has no open task."""
        self._remember_gone(p, gone=False)
        if self.places is not None:
            self.places.forget(p)
        if p.here:
            self.here -= 1
        self.users.leave(p)
        del self._known[p.participant_id], self._by_seq[p.seq]
        self._dirty.pop(p.participant_id, None)
        self._forgotten.add(p.participant_id)

    def take_leaving(self) -> list[Participant]:
        """Return those that are to be forgotten now (rule 3), oldest first."""
        leaving = [self._leaving[seq] for seq in sorted(self._leaving)]
        self._leaving = {}
        return leaving

    def _remember_gone(self, p: Participant, *, gone: bool, waiting: bool = False) -> None:
        key = self._gone_keys.pop(p.seq, None)
        if key is not None:
            self._gone.discard(key)
            self._leaving.pop(p.seq, None)
        if gone:
            key = self._gone_keys[p.seq] = (p.last_seen_s, p.seq)
            self._gone.add(key)
            if not p.lapsed and not waiting:
                self._leaving[p.seq] = p

    # Who is free

    def settle(self, p: Participant, now: float, version: int, dirty: bool = True) -> None:
        """Bring the sets and heaps up to date with a participant that changed; `dirty` writes its row again."""
        if dirty:
            self._dirty[p.participant_id] = p
        heard = p.reachable and not p.revoked and p.last_seen_s + self._timeout_s > now
        here = heard and not p.left
        waiting = p.asked_again_at_s is not None and p.asked_again_at_s > now
        p.busy = p.out is not None or p.waits or p.answered_version == version
        p.free = (
            here
            and p.accepting
            and not p.busy
            and not waiting
            and (self.places is None or p.placed)
            and self._reply in p.replies
        )
        if p.accepted and not p.proven:
            self._proven = p.proven = True
            p.of.proven += 1  # type: ignore[union-attr]
        if here != p.here:
            p.here = here
            self.here += 1 if here else -1
            (self.users.came if here else self.users.went)(p)
        if heard and not p.watched:
            p.watched = True
            heapq.heappush(self._absences, (p.last_seen_s + self._timeout_s, p.seq))
        gone = not heard and not p.accepted and p.out is None and not p.revoked
        if gone or p.seq in self._gone_keys:
            self._remember_gone(p, gone=gone, waiting=waiting)
        on_trial = not p.accepted and (p.newcomer or p.failures > 0)
        if on_trial or p.on_trial:
            if on_trial != p.on_trial:
                self._unseat(p)
                p.on_trial = on_trial
            tried = on_trial and p.out is not None
            self._trials += tried - p.tried
            p.tried = tried
        if self.places is not None:
            self.places.settle(p)
        if p.of.limited:  # type: ignore[union-attr]
            self.users.settle(p)
        elif p.free:  # its user has room for all: this is what `users.settle` does then, at half the price
            self._seat(p)
        else:
            self._unseat(p)

    def _seat(self, p: Participant) -> None:
        (self._on_trial if p.on_trial else self._free).add(p.seq, p.tasks_issued)

    def _unseat(self, p: Participant) -> None:
        (self._on_trial if p.on_trial else self._free).discard(p.seq)

    def back_off(self, p: Participant, until_s: float) -> None:
        """Issue no task to it before `until_s` (run time, seconds); the caller settles it."""
        p.asked_again_at_s = until_s
        heapq.heappush(self._backoffs, (until_s, p.seq))
        if len(self._backoffs) > 2 * len(self._known) + _FEW:
            self._backoffs = [
                (due_s, seq) for due_s, seq in set(self._backoffs) if self._asked_again_at_s(seq) == due_s
            ]
            heapq.heapify(self._backoffs)

    def _asked_again_at_s(self, seq: int) -> float | None:
        p = self._by_seq.get(seq)
        return None if p is None else p.asked_again_at_s

    def mark_answered(self, p: Participant, version: int) -> None:
        """Note that it gave its update to this version's synchronous round; the caller settles it."""
        p.answered_version = version
        self._answered.append(p)

    def free_answered(self, now: float, version: int) -> None:
        """Free the participants that answered the last round for the next one, after a new version."""
        answered, self._answered = self._answered, []
        for p in answered:
            self.settle(p, now, version, dirty=False)

    def ask_again(self, now: float, version: int) -> None:
        """Free the participants that answered the open round."""
        answered, self._answered = self._answered, []
        for p in answered:
            p.answered_version = None
            self.settle(p, now, version)

    def pick(self, slots: int) -> Participant:
        """Choose a free participant by the run's selection, for one of `slots` slots; it is no longer free."""
        if len(self._on_trial) and (not len(self._free) or self._trials < max(1, slots // 2)):
            p = self._by_seq[self._on_trial.pick(self._rng)]
            p.tried = True
            self._trials += 1
            return p
        return self._by_seq[self._free.pick(self._rng)]

    def pass_time(self, now: float, version: int) -> None:
        """Apply the absences and the ends of back-offs that are due by `now`."""
        while self._absences and self._absences[0][0] <= now:
            _, seq = heapq.heappop(self._absences)
            p = self._by_seq.get(seq)
            if p is not None:
                p.watched = False
                self.settle(p, now, version, dirty=False)
        while self._backoffs and self._backoffs[0][0] <= now:
            _, seq = heapq.heappop(self._backoffs)
            p = self._by_seq.get(seq)
            if p is not None:
                self.settle(p, now, version, dirty=False)

    def next_due(self) -> float | None:
        """Return the run time at which `pass_time` may next have something to do; None if there is none."""
        while self._backoffs and self._asked_again_at_s(self._backoffs[0][1]) != self._backoffs[0][0]:
            heapq.heappop(self._backoffs)
        absent = self._absences[0][0] if self._absences else None
        if not self._backoffs:
            return absent
        asked = self._backoffs[0][0]
        return asked if absent is None else min(absent, asked)

    def rebuild(self, now: float, version: int) -> None:
        """Rebuild the sets from the records, after the last `load`."""
        self.users.hold()
        if self.places is not None:
            for p in self.places.rebuild(self._by_seq.values()):
                self._dirty[p.participant_id] = p
        for p in self._by_seq.values():
            if p.answered_version == version:
                self._answered.append(p)
            if p.asked_again_at_s is not None and p.asked_again_at_s > now:
                heapq.heappush(self._backoffs, (p.asked_again_at_s, p.seq))
            self.settle(p, now, version, dirty=False)
        self.users.release()

    def changes(self) -> tuple[dict[str, ParticipantRecord], frozenset[str]]:
        """Return the records of the participants settled as dirty since the last call, and those forgotten."""
        dirty, self._dirty = self._dirty, {}
        forgotten, self._forgotten = self._forgotten, set()
        return {participant_id: p.record() for participant_id, p in dirty.items()}, frozenset(forgotten)

    def forget_changes(self) -> None:
        """Drop the list of changed records."""
        self._dirty = {}
        self._forgotten = set()
