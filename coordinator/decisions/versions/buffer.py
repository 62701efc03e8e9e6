"""The buffer: the accepted updates that no version holds yet, the versions made of them, and those that it loses.

A version is made when the strategy is ready, when the buffer's timeout is over (buffer_timer.py), or when an arrival
group ends (arrival_groups.py). If the strategy distils, it is asked for then, and made when the answer comes
(distilling.py). A buffer loses updates if their version failed (failures.py), and all of them if the
method begins anew (set_backs.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fedmq.coordinator.decisions.commands import DropBuffer, NewVersion, TellUnfrozen
from fedmq.coordinator.decisions.events import BufferFailed, DistilFailed, Distilled
from fedmq.coordinator.decisions.failures import Drop, DropReason, StrategyFailed, drops_in
from fedmq.coordinator.decisions.participants.arrival_groups import ArrivalGroups
from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.decisions.versions.buffer_timer import BufferTimer
from fedmq.coordinator.decisions.versions.distilling import Distilling
from fedmq.coordinator.decisions.versions.model import Model
from fedmq.coordinator.decisions.versions.rounds import Rounds
from fedmq.coordinator.decisions.versions.unfreezing import Unfrozen
from fedmq.coordinator.strategies.protocol import Distils, Strategy, buffer_timeout
from fedmq.schemas.messages import Update
from fedmq.schemas.parameters import Parameters


class Buffer:
    """The open buffer. Only the core uses it; it shares the task desk's time, version and commands."""

    def __init__(self, strategy: Strategy[Any], model: Model, desk: TaskDesk, discarded: Counter[str]) -> None:
        """Start empty. `discarded` counts the run's discards by reason, and the buffer adds those that it loses."""
        self.strategy = strategy
        """Says when a version is due."""
        self.model = model
        self.groups = desk.groups
        self.rounds = None if strategy.cohort is None else Rounds(strategy.cohort, desk, model)
        timeout = buffer_timeout(strategy)
        self.timer = None if timeout is None else BufferTimer(timeout)
        self._distilling = Distilling(strategy, desk.settings.seed) if isinstance(strategy, Distils) else None
        self.accepted = 0
        """Number of updates accepted in the run."""
        self.careful = False
        """True if the whole state is checked after each update (failures.py)."""
        self._desk = desk
        self._discarded = discarded
        self._update_ids: list[str] = []
        self._drops: list[Drop] = []
        self._unfrozen: Unfrozen | None = None
        """The tensors that begin to move at the version that is being made."""

    def __len__(self) -> int:
        return len(self._update_ids)

    def add(
        self, update: Update, tensors: Parameters, staleness: int, weight: float, *, first: bool, group: int | None
    ) -> None:
        """Accumulate an accepted update (Model.accumulate)."""
        assert not self.distilling, "the caller holds updates back while a version is distilled"
        try:
            self.model.accumulate(update, tensors, staleness, weight, first=first, group=group)
            if self.careful:
                self.model.check_finite()
        except StrategyFailed as failed:
            failed.blame((update.update_id,), participant_id=update.participant_id)
            raise
        self.accepted += 1
        self._update_ids.append(update.update_id)
        if self.timer is not None:
            self.timer.on_accepted(self._desk.now)

    # Versions

    @property
    def distilling(self) -> bool:
        """True if a version was asked for, and no answer has come."""
        return self._distilling is not None and self._distilling.asked is not None

    def next_due(self) -> float | None:
        """Return the run time at which a version, or a round's deadline, may be due if nothing happens."""
        if self._distilling is not None and self.distilling:
            return self._distilling.due_s()
        if self.groups is not None:
            return self.groups.next_due()
        if self.timer is not None:
            return self.timer.due_s(len(self._update_ids))
        return None if self.rounds is None else self.rounds.deadline_s()

    def pass_time(self) -> None:
        """Make the versions that are due by now; if there is none, let a round's deadline pass."""
        if self.timer is not None and self.timer.opened_s is None and self._update_ids:
            self.timer.on_accepted(self._desk.now)  # the timeout was switched on since
        if self._distilling is not None and self.distilling:
            self.make_plainly(self._distilling.too_late(self._desk.now))
        elif self.groups is not None:
            self.end_groups(self.groups)
        elif self.model.state.count and self._ready():
            self._make_version()
        elif self.timer is not None:
            self._make_version_by_timeout(self.timer)
        elif self.rounds is not None:
            self.rounds.pass_time()

    def make_version_if_due(self) -> None:
        """Make a version of a buffer to which an update was added, if it is full or its time is over."""
        if self._ready():
            self._make_version()
        elif self.timer is not None:
            self._make_version_by_timeout(self.timer)

    def end_groups(self, groups: ArrivalGroups) -> None:
        """Make a version from each arrival group that is due to end by now, up to the run's limit of versions."""
        most = self._desk.settings.stop.max_versions
        while most is None or self._desk.version < most:
            closed = groups.close(self._desk.now)
            if closed is None:
                return
            made_of = closed.updates
            weights = self._weights_of_version(tuple(made_of), closed.group)
            self._desk.version += 1
            orders = tuple(made_of.values())
            self._desk.commands.append(NewVersion(self._desk.version, tuple(made_of), weights, orders))
            self._tell_unfrozen()
            self._update_ids = [update_id for update_id in self._update_ids if update_id not in made_of]
            for p in closed.waited:
                self._desk.settle(p)
            self._desk.withdraw_too_stale()

    def _ready(self) -> bool:
        try:
            return self.model.ready(self.strategy, self._desk.now)
        except StrategyFailed as failed:
            failed.blame(tuple(self._update_ids), of_buffer=True)
            raise

    def _weights_of_version(
        self, made_of: Sequence[str], group: int | None = None, distilled: Parameters | None = None
    ) -> tuple[float, ...]:
        """Make the next version of these updates, and return their weights."""
        try:
            weights = self.model.make_version(group, len(made_of), distilled)
            self._unfrozen = self.model.unfreeze(self._desk.version + 1)
            if self.careful:
                self.model.check_finite()
        except StrategyFailed as failed:
            failed.blame(tuple(made_of), of_buffer=True, group=group)
            raise
        return weights

    def _tell_unfrozen(self) -> None:
        found, self._unfrozen = self._unfrozen, None
        if found is not None:
            self._desk.commands.append(TellUnfrozen(found.version, found.tensors))

    def _make_version_by_timeout(self, timer: BufferTimer) -> None:
        """Make a version of a buffer that did not fill, if its time is over and enough is there."""
        if timer.is_due(len(self._update_ids), self._desk.now):
            self._make_version(by_timeout=True)

    def _make_version(self, *, by_timeout: bool = False) -> None:
        """Make the version of the buffer, or ask for it."""
        if self._distilling is None:
            self._conclude(by_timeout=by_timeout)
            return
        try:
            ensemble = self.model.ensemble()
        except StrategyFailed as failed:
            failed.blame(tuple(self._update_ids), of_buffer=True)
            raise
        if ensemble.models:
            question = self._distilling.ask(self._desk.version + 1, ensemble, self._desk.now, by_timeout=by_timeout)
            self._desk.commands.append(question)
        else:
            self._conclude(by_timeout=by_timeout, plain="no model of its updates can be in an ensemble")

    def on_answer(self, answer: Distilled | DistilFailed) -> None:
        """Make the version that was asked for, if this is the answer to that."""
        if self._distilling is not None and self._distilling.asked == answer.version:
            distilled, plain = self._distilling.judged(answer, self.model.parameters)
            self._conclude(by_timeout=self._distilling.by_timeout, distilled=distilled, plain=plain)

    def make_plainly(self, reason: str | None) -> None:
        """Wait no more for the version that was asked for, if there is a reason and a version."""
        if reason is not None and self._distilling is not None and self.distilling:
            self._conclude(by_timeout=self._distilling.by_timeout, plain=reason)

    def _conclude(self, *, by_timeout: bool, distilled: Parameters | None = None, plain: str | None = None) -> None:
        weights = self._weights_of_version(self._update_ids, distilled=distilled)
        self._desk.version += 1
        made_of = tuple(self._update_ids)
        self._desk.commands.append(NewVersion(self._desk.version, made_of, weights, by_timeout=by_timeout, plain=plain))
        self._tell_unfrozen()
        self._update_ids = []
        if self._distilling is not None:
            self._distilling.forget()
        if self.timer is not None:
            self.timer.close()
        if self.rounds is not None:
            self.rounds.on_version()
        self._desk.withdraw_too_stale()

    # Losses

    def on_failed(self, event: BufferFailed) -> None:
        """Lose the updates whose version failed; with arrival groups, those of its group and the late ones."""
        waited: list[Participant] = []
        if self.groups is None:
            ids = tuple(self._update_ids)
        else:
            dropped, waited = self.groups.drop(event.group)
            ids = tuple(dropped)
        if not ids:
            return
        self.model.drop(self._lose(ids, event.reason, event.detail, event.group))
        self._update_ids = [update_id for update_id in self._update_ids if update_id not in ids]
        for p in waited:
            self._desk.settle(p)
        self._begin_again()

    def begin_anew(self, detail: str) -> None:
        """Lose all updates, because the method begins anew from the model as it is."""
        self.clear(self._lose(tuple(self._update_ids), "set_back", detail, None))

    def clear(self, drop: Drop) -> None:
        """Begin the method anew: with a new state, and with participants that remember nothing."""
        self.model.drop(drop)
        self._update_ids = []
        waited = [] if self.groups is None else self.groups.drop_all()
        self._desk.forget_memories()
        for p in waited:
            self._desk.settle(p)
        self._begin_again()

    def _lose(self, ids: tuple[str, ...], reason: DropReason, detail: str, group: int | None) -> Drop:
        """Count these updates as discarded, tell it, and return what is noted about it."""
        drop = Drop(self.accepted, self._desk.version, reason, group, len(ids))
        self._drops.append(drop)
        if ids:
            self._discarded[reason] += len(ids)
            self._desk.commands.append(DropBuffer(ids, reason, detail))
        return drop

    def _begin_again(self) -> None:
        """Ask the open round's participants again, and let the buffer's time begin anew."""
        if self._distilling is not None:
            self._distilling.forget()
        if self.rounds is not None:
            self.rounds.on_dropped()
        if self.timer is not None:
            self.timer.close()

    # Checkpoints

    def scalars(self) -> dict[str, Any]:
        """Return the values that the checkpoint stores."""
        return {
            "accepted": self.accepted,
            "buffer_ids": list(self._update_ids),
            "buffer_opened_s": None if self.timer is None else self.timer.opened_s,
            "round_opened_s": None if self.rounds is None else self.rounds.opened_s,
            "drops": [asdict(drop) for drop in self._drops],
        }

    def load(self, scalars: Mapping[str, Any]) -> None:
        """Restore what `scalars` gave. The model has a restore of its own."""
        self.accepted = scalars["accepted"]
        self._update_ids = list(scalars["buffer_ids"])
        self._drops = drops_in(scalars)
        if self.timer is not None:
            self.timer.opened_s = scalars["buffer_opened_s"]
        if self.rounds is not None:
            self.rounds.opened_s = scalars["round_opened_s"]
