"""Arrival groups: who is expected back when, and who waits for whom, as FedCompass's scheduler has it.

Li et al. 2024, "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices Using a Computing
Power Aware Scheduler" (ICLR), by its authors' implementation in APPFL (CompassScheduler).

Rules
 1. A participant's speed is in seconds a step, from the sending of a task to the arrival of its update: the network
    counts. `Participant.step_s` keeps it. Until it is known a participant gets `first_steps` in no group, and its
    update is a group of its own when it comes.
 2. Others join the group up to whose expected time they can make the most steps, within the bounds; of equals the
    newest. Where there is none they open one. It is expected after so many steps as they can make until another group's
    fastest participant may be back for a second time: after that group's latest time and `max_steps` more. Of several
    groups the one counts that gives the most steps up to `max_steps`. There are at least `min_steps`, and `max_steps`
    where no group gives a number.
 3. A group's latest time is `latest_factor` times as far from its opening as its expected one. An update that comes
    before it is of the group, and its participant waits. One that comes at that very moment, or later, is late: it goes
    into the next version, whichever group makes it, and its participant gets a task at once.
 4. A group ends, and makes a version, when all that were expected are there, or at its latest time if anybody is. One
    that nobody came back to in time is over when the last of them came late.
 5. Who can no longer be expected leaves its group: by a decline, by a task that lapses or closes in any other way. The
    update of a lapsed task is late.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from fedmq.coordinator.decisions.participants import Participant
from fedmq.coordinator.decisions.tasks import HeldTask
from fedmq.coordinator.strategies.protocol import Arrivals

SHORTEST_S = 1e-6
"""What a task of no measured duration counts as."""
_ALONE, _LEFT = 0, -1
"""In the place of a task's group: the participant's speed is not known, or the task has left its group."""


@dataclass(slots=True)
class Group:
    """One that somebody is expected in, or has come back to."""

    expected_s: float
    latest_s: float
    coming: dict[str, str] = field(default_factory=dict)
    """task -> participant."""
    waiting: list[str] = field(default_factory=list)
    """Participants that are back."""
    updates: dict[str, int] = field(default_factory=dict)
    """Theirs, with their orders among all accepted ones."""


class Closed(NamedTuple):
    """A group that makes a version."""

    group: int
    updates: dict[str, int]
    """Its own and the late ones, in order of acceptance, with their orders."""
    waited: list[Participant]
    """They wait no more; the caller settles."""


class ArrivalGroups:
    """See the module docstring. What it decides follows from its arguments and from what `scalars` holds."""

    def __init__(self, shape: Arrivals, participant: Callable[[str], Participant | None]) -> None:
        """`participant` finds one by its id."""
        self._shape = shape
        self._participant = participant
        self._groups: dict[int, Group] = {}
        """In order of their opening."""
        self._tasks: dict[str, tuple[int, int]] = {}
        """Open task -> its group, and its steps."""
        self._late: dict[str, int] = {}
        """Late updates that no version holds yet, with their orders."""
        self._last_group = 0

    # Tasks

    def steps(self, task_id: str) -> int:
        """What an open task asks for."""
        return self._tasks[task_id][1]

    def assign(self, p: Participant, task_id: str, now: float) -> None:
        """A task goes out."""
        if p.step_s is None:
            self._tasks[task_id] = (_ALONE, self._shape.first_steps)
            return
        group, steps = self._joined(p.step_s, now) or self._opened(p.step_s, now)
        self._groups[group].coming[task_id] = p.participant_id
        self._tasks[task_id] = (group, steps)

    def _joined(self, step_s: float, now: float) -> tuple[int, int] | None:
        fitting = [(self._steps_in(group.expected_s - now, step_s), number) for number, group in self._groups.items()]
        steps, number = max(fitting, default=(-1, 0))
        return (number, steps) if steps >= self._shape.min_steps else None

    def _opened(self, step_s: float, now: float) -> tuple[int, int]:
        shape = self._shape
        found = max(
            (
                self._steps_in(group.latest_s + shape.max_steps * self._fastest(group) - now, step_s)
                for group in self._groups.values()
                if group.latest_s > now
            ),
            default=-1,
        )
        steps = shape.max_steps if found < 0 else max(found, shape.min_steps)
        takes_s = steps * step_s
        self._last_group += 1
        self._groups[self._last_group] = Group(now + takes_s, now + takes_s * shape.latest_factor)
        return self._last_group, steps

    def _steps_in(self, time_s: float, step_s: float) -> int:
        """How many; -1 where that is more than the most."""
        steps = math.floor(time_s / step_s)
        return steps if steps <= self._shape.max_steps else -1

    def _fastest(self, group: Group) -> float:
        members = (self._participant(name) for name in (*group.coming.values(), *group.waiting))
        return min(p.step_s for p in members if p is not None and p.step_s is not None)

    def leave(self, task_id: str, *, open_still: bool) -> None:
        """A task has lapsed (and is `open_still`), or is over; nothing where it left before."""
        found = self._tasks.pop(task_id, None)
        if found is None:
            return
        number, steps = found
        if open_still:
            self._tasks[task_id] = (_LEFT, steps)
        group = self._groups.get(number)
        if group is not None:
            del group.coming[task_id]
            self._forget_if_empty(number, group)

    def arrive(self, p: Participant, task: HeldTask, update_id: str, order: int, now: float) -> int | None:
        """The task's update was accepted: the group that it is of, whose end its participant waits for; or None, where
        it is late."""
        number, steps = self._tasks.pop(task.task_id)
        self._measure(p, max(now - task.sent_s, SHORTEST_S) / steps)
        if number == _ALONE:
            self._last_group += 1
            self._wait(p, update_id, order, self._last_group, Group(now, now))
            return self._last_group
        group = self._groups.get(number)
        if group is not None:
            del group.coming[task.task_id]
            if now < group.latest_s:
                self._wait(p, update_id, order, number, group)
                return number
            self._forget_if_empty(number, group)
        self._late[update_id] = order
        return None

    def _wait(self, p: Participant, update_id: str, order: int, number: int, group: Group) -> None:
        self._groups[number] = group
        group.waiting.append(p.participant_id)
        group.updates[update_id] = order
        p.waits = True

    def _measure(self, p: Participant, step_s: float) -> None:
        new = self._shape.speed_momentum
        p.step_s = step_s if p.step_s is None else (1.0 - new) * p.step_s + new * step_s

    def _forget_if_empty(self, number: int, group: Group) -> None:
        if not group.coming and not group.waiting:
            del self._groups[number]

    # Versions

    def close(self, now: float) -> Closed | None:
        """End the group that is to make a version by now: of several the one whose latest time is the earliest."""
        due = [
            (group.latest_s, number)
            for number, group in self._groups.items()
            if group.waiting and (not group.coming or group.latest_s <= now)
        ]
        if not due:
            return None
        number = min(due)[1]
        group = self._groups.pop(number)
        waited = self._hold(group, waits=False)
        updates, self._late = sorted((self._late | group.updates).items(), key=lambda pair: pair[1]), {}
        return Closed(number, dict(updates), waited)

    def next_due(self) -> float | None:
        """When `close` may next have something to do, if nothing happens until then."""
        return min((group.latest_s for group in self._groups.values() if group.waiting), default=None)

    # Memory

    def scalars(self) -> dict[str, Any]:
        """For the checkpoint, as JSON values."""
        return {
            "groups": {str(number): asdict(group) for number, group in self._groups.items()},
            "tasks": {task_id: list(found) for task_id, found in self._tasks.items()},
            "late": dict(self._late),
            "last_group": self._last_group,
        }

    def load(self, scalars: Mapping[str, Any]) -> None:
        """Take over what `scalars` gave, which stays as it is; the participants are known by now."""
        self._groups = {int(number): Group(**deepcopy(fields)) for number, fields in scalars["groups"].items()}
        self._tasks = {task_id: (number, steps) for task_id, (number, steps) in scalars["tasks"].items()}
        self._late = dict(scalars["late"])
        self._last_group = scalars["last_group"]
        for group in self._groups.values():
            self._hold(group, waits=True)

    def _hold(self, group: Group, *, waits: bool) -> list[Participant]:
        members = [p for name in group.waiting if (p := self._participant(name)) is not None]
        for p in members:
            p.waits = waits
        return members
