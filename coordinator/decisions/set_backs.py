"""Set-backs: the ledger turns out to be older than its run, because somebody restored the folder from a backup.

A task is in the ledger before it is sent. Therefore the ledger lost something, or another copy of the folder is at
work, if

- a participant holds, finished or answered a task that a coordinator of this run issued (tasks/names.py), and the
  ledger does not have it: this is proved, or
- a participant is done with a task that has been open in the ledger since before the coordinator's start. It got a
  verdict that this ledger does not have. That is its word alone, so it counts once a start.

What follows, once for each set-back
1. It is noted in the core's state, and so in the ledger, and told.
2. Tasks get a new `uid`. Ids of the lost one are known from then on, and start nothing again.
3. Tasks from before the start lapse: whoever is done with one gets another at once, and the update of whoever still
   trains one is welcome.
4. If participants keep the method's memory, they have moved it with updates that this ledger does not have, and nobody
   can tell by how much. The method then begins anew, from the model as it is: its state, the participants' marks, and
   through the new `uid` their memories. All open tasks are withdrawn, and the updates that no version holds are
   discarded as `set_back`. After that nothing is biased.
5. What a codec left out is no part of the model. Tasks name the earlier uids, so that participants go on with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedmq.coordinator.decisions.commands import SayHello, TellSetBack
from fedmq.coordinator.decisions.ending import Ending
from fedmq.coordinator.decisions.events import ParticipantSeen
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.decisions.tasks.generations import Generations, SetBack, set_backs_in
from fedmq.coordinator.decisions.tasks.names import TaskName
from fedmq.coordinator.decisions.versions.buffer import Buffer
from fedmq.schemas.messages import Hello

MOST_FORMER = 16
"""Earlier ids of a run that its tasks name (schemas.messages.Task)."""


class SetBacks:
    """The signs of a set-back, and what follows. Only the core uses it; it shares the task desk's time and commands."""

    def __init__(self, desk: TaskDesk, buffer: Buffer, ending: Ending) -> None:
        self._desk = desk
        self._buffer = buffer
        self._ending = ending
        self._generations = Generations()

    @property
    def all(self) -> tuple[SetBack, ...]:
        """All set-backs of the run, oldest first."""
        return tuple(self._generations.all)

    def issued_elsewhere(self, task_id: str, participant_id: str) -> TaskName | None:
        """Return the parts of an id that another start of the run's coordinators issued to this participant."""
        return self._generations.issued_elsewhere(self._desk.names, task_id, participant_id)

    def doubtful(self, participant_id: str, task_ids: Iterable[str | None]) -> list[str]:
        """Return those of a participant's ids that show a set-back if the ledger does not have them."""
        return [
            task_id
            for task_id in task_ids
            if task_id is not None
            and not self._desk.tasks.holds(task_id)
            and self.issued_elsewhere(task_id, participant_id)
        ]

    def look_at_hello(self, event: ParticipantSeen) -> None:
        """Notice what a hello shows."""
        hello = event.hello
        if event.unissued or hello.last_task is not None:
            names = [self.issued_elsewhere(task_id, hello.participant_id) for task_id in event.unissued]
            found = [name for name in names if name is not None]
            if found or self._is_done_with_an_open_task(hello):
                self._notice(found)

    def look_at_unknown_task(self, task_id: str, participant_id: str) -> bool:
        """Notice what an update of a task shows that the ledger does not have. Return True if the task is proved to be
        the run's."""
        name = self._desk.names.proved(task_id, participant_id)
        if name is None:
            return False
        if self.issued_elsewhere(task_id, participant_id) is not None:
            self._notice([name])
        return True

    def _is_done_with_an_open_task(self, hello: Hello) -> bool:
        """Return True if the task that was over last has been open in the ledger since before this start."""
        task = self._desk.tasks.get(hello.last_task or "")
        if task is None or task.seq > self._desk.first_task_seq or task.participant_id != hello.participant_id:
            return False
        return not self._generations.noticed

    def _notice(self, shown: Sequence[TaskName]) -> None:
        """Note that the ledger is older than its run, as these ids show, and go on."""
        desk, known = self._desk, self._generations
        if self._ending.stopping is not None:
            return
        if known.noticed:
            more = known.learn(shown)
            if more is not None:
                desk.commands.append(TellSetBack(more, first=False))
            return
        found = known.notice(shown, desk.names.uid, desk.first_task_seq, self._buffer.accepted, desk.now)
        if desk.memory == "hard":
            found = known.begun_anew(len(self._buffer))
        desk.commands.append(TellSetBack(found, first=True))
        desk.names = desk.names.next_generation()
        if desk.memory == "hard":
            self._begin_anew(found.told())
            return
        if desk.memory == "soft":
            desk.forget_memories()  # what was not sent yet is counted once, whatever its mark says
        self._tell_former()
        for task in desk.tasks.open():
            if task.state == "out" and task.seq <= desk.first_task_seq:
                desk.lapse(task, "the ledger is older than its run: this task may be over")

    def _begin_anew(self, detail: str) -> None:
        """Begin the method anew: nobody knows how far the participants have moved what they remember."""
        for task in self._desk.tasks.open():
            self._desk.withdraw(task, "the method's memory began anew")
        self._buffer.begin_anew(detail)
        self._desk.commands.append(SayHello(tuple(self._desk.roster.ids())))

    def scalars(self) -> list[dict[str, Any]]:
        """Return the JSON values that the checkpoint stores."""
        return self._generations.scalars()

    def load(self, scalars: Mapping[str, Any]) -> None:
        """Restore them from the scalars of a checkpoint: this start begins with its version."""
        self._generations = Generations(set_backs_in(scalars), scalars["version"])
        self._tell_former()

    def _tell_former(self) -> None:
        """Let tasks name the run's earlier ids: under them lies what participants have not sent yet."""
        self._desk.former = tuple(one.uid for one in reversed(self._generations.all))[:MOST_FORMER]
