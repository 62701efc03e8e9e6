"""Arrival groups: when each participant is expected back, and which ones wait for each other, as in FedCompass.

Li et al. 2024, "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices Using a Computing
Power Aware Scheduler" (ICLR). This follows the authors' implementation in APPFL (CompassScheduler).

Rules
 1. A participant's speed, `Participant.step_s`, is in seconds a step. It is measured from the sending of a task to the
    arrival of its update, so the network counts. A participant of unknown speed gets `first_steps` and is in no group;
    its update makes a group of its own when it comes.
 2. Any other participant joins an open group, if it can make at least `min_steps` and at most `max_steps` steps until
    that group's expected time. It joins the group for which it can make the most steps; among equals, the newest.
    Otherwise it opens a group. The new group is expected after as many steps as its first participant can make until
    another group's fastest participant may be back for the second time: that is at the other group's latest time plus
    the time of `max_steps` more. Among several other groups, the one that gives the most steps up to `max_steps`
    counts. The number is at least `min_steps`; it is `max_steps` if no other group gives a number.
 3. A group's latest time is `latest_factor` times as far from its opening as its expected time. An update that comes
    before the latest time belongs to the group, and its participant waits. An update that comes at that very moment or
    later is late: it goes into the next version, whichever group makes it, and its participant gets a task at once.
 4. A group ends and makes a version when everybody that it expects is back, or at its latest time if anybody is back.
    If nobody came back in time, the group is over when the last of its participants came late.
 5. A participant that can no longer be expected leaves its group: after a decline, and after its task lapsed or closed
    in any other way. The update of a lapsed task is late.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.tasks.book import HeldTask
from fedmq.coordinator.strategies.protocol import Arrivals

SHORTEST_S = 1e-6
"""Shortest duration of a task (seconds), for a task whose measured duration is 0."""
_ALONE, _LEFT = 0, -1
"""Marks in place of a task's group: the participant's speed is unknown, or the task has left its group."""


@dataclass(slots=True)
class Group:
    """A group in which somebody is expected, or is back. Its times are run time (seconds)."""

    expected_s: float
    latest_s: float
    coming: dict[str, str] = field(default_factory=dict)
    """Tasks that are expected: task -> participant."""
    waiting: list[str] = field(default_factory=list)
    """Participants that are back."""
    updates: dict[str, int] = field(default_factory=dict)
    """Updates of the participants that are back, with their orders among all accepted ones."""


class Closed(NamedTuple):
    """A group that makes a version."""

    group: int
    updates: dict[str, int]
    """Updates of the group and the late ones, in order of acceptance, with their orders."""
    waited: list[Participant]
    """Participants that wait no more; the caller settles them."""


class ArrivalGroups:
    """All open groups. Its decisions follow from its arguments and from the values in `scalars`."""

    def __init__(self, shape: Arrivals, participant: Callable[[str], Participant | None]) -> None:
        """Start without groups. `participant` finds a participant by its id."""
        self._shape = shape
        self._participant = participant
        self._groups: dict[int, Group] = {}
        """Open groups by number, in order of their opening."""
        self._tasks: dict[str, tuple[int, int]] = {}
        """Open task -> the number of its group, and its steps."""
        self._late: dict[str, int] = {}
        """Late updates that no version holds yet, with their orders."""
        self._last_group = 0

    # Tasks

    def steps(self, task_id: str) -> int:
        """Return the number of steps that an open task asks for."""
        return self._tasks[task_id][1]

    def assign(self, p: Participant, task_id: str, now: float) -> None:
        """Assign a task that goes out to a group, and give it its steps."""
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
        """Return the number of whole steps in `time_s`; -1 if that is more than `max_steps`."""
        steps = math.floor(time_s / step_s)
        return steps if steps <= self._shape.max_steps else -1

    def _fastest(self, group: Group) -> float:
        members = (self._participant(name) for name in (*group.coming.values(), *group.waiting))
        return min(p.step_s for p in members if p is not None and p.step_s is not None)

    def leave(self, task_id: str, *, open_still: bool) -> None:
        """Take a task out of its group, because it lapsed (`open_still`) or is over. Does nothing if it left before."""
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
        """Note that the task's update was accepted; return its group, or None if it is late.

        The participant waits for the end of the group.
        """
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
        """End the group that is due to make a version by `now`, and return it; None if there is none.

        Among several, it is the group with the earliest latest time.
        """
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

    def drop(self, number: int | None) -> tuple[dict[str, int], list[Participant]]:
        """Lose a group's updates and the late ones: they make no version. Return them, and who waits no more.

        Participants that are still expected have left the group: their updates will be late.
        """
        lost, self._late = self._late, {}
        group = None if number is None else self._groups.pop(number, None)
        if group is None:
            return lost, []
        for task_id in group.coming:
            self._tasks[task_id] = (_LEFT, self._tasks[task_id][1])
        return dict(sorted((lost | group.updates).items(), key=lambda pair: pair[1])), self._hold(group, waits=False)

    def drop_all(self) -> list[Participant]:
        """Lose all updates and groups, once their tasks are closed. Return the participants that waited."""
        waited = [p for group in self._groups.values() for p in self._hold(group, waits=False)]
        self._groups, self._late = {}, {}
        return waited

    def next_due(self) -> float | None:
        """Return the run time at which `close` may next have something to do if nothing happens; None if never."""
        return min((group.latest_s for group in self._groups.values() if group.waiting), default=None)

    # Checkpoints

    def scalars(self) -> dict[str, Any]:
        """Return the JSON values that the checkpoint stores."""
        return {
            "groups": {str(number): asdict(group) for number, group in self._groups.items()},
            "tasks": {task_id: list(found) for task_id, found in self._tasks.items()},
            "late": dict(self._late),
            "last_group": self._last_group,
        }

    def load(self, scalars: Mapping[str, Any]) -> None:
        """Restore the groups from what `scalars` gave, without changing it; the participants must be known by now."""
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
