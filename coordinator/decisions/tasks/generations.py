"""Generations of task ids: each set-back ends one (coordinator.decisions.set_backs has the rules).

This is what is known of them. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedmq.coordinator.decisions.tasks.names import TaskName, TaskNames


@dataclass(frozen=True, slots=True)
class SetBack:
    """One set-back."""

    uid: str
    """The generation of task ids that ended with it."""
    version: int
    """Version with which this ledger went on."""
    task: int
    """Number of tasks that it knew of."""
    accepted: int
    """Number of updates that it held when the set-back was noticed."""
    run_s: float
    """Run time then, in seconds."""
    lost_version: int | None = None
    """Newest version that is shown to have been there; None if only a participant's word says that anything was."""
    lost_task: int | None = None
    """Highest number of a task that is shown to have been issued; None likewise."""
    anew: bool = False
    """True if the method's memory on the participants began anew."""
    dropped: int = 0
    """Number of updates in no version that were discarded with it."""

    def after(self, names: Iterable[TaskName]) -> SetBack:
        """Return it with what these ids show."""
        versions = [self.lost_version, *(name.base_version for name in names)]
        tasks = [self.lost_task, *(name.seq for name in names)]
        return replace(self, lost_version=_most(versions), lost_task=_most(tasks))

    def told(self) -> str:
        """Return what was lost, as a sentence for a person."""
        known = [f"it went on with version {self.version} after {self.task} tasks"]
        if self.lost_version is not None:
            known.append(f"participants know version {self.lost_version} and task {self.lost_task}")
        else:
            known.append("a participant is done with a task that was open in it")
        if self.lost_version is not None and self.lost_version > self.version:
            first = self.version + 1
            which = f"version {first}" if first == self.lost_version else f"versions {first} to {self.lost_version}"
            known.append(f"{which} at least are lost, and the updates in them")
        else:
            known.append("what was made of updates since then is lost")
        if self.anew:
            known.append("the method's memory on the participants began anew")
        if self.dropped:
            known.append(f"{self.dropped} accepted updates that were in no version were discarded")
        return "the folder was restored from a backup, or is a copy: " + "; ".join(known)


class Generations:
    """All generations of a run's task ids that ended, and what this start of its coordinator has noticed."""

    def __init__(self, known: Iterable[SetBack] = (), version: int = 0) -> None:
        """`known` are those in the ledger. `version` is the one that this start began with."""
        self.all = list(known)
        self.noticed = False
        """True if the last of them was noticed since this start."""
        self._version = version

    def issued_elsewhere(self, names: TaskNames, task_id: str, participant_id: str) -> TaskName | None:
        """Return the parts of an id that another start of the run's coordinators issued.

        None if it is none, or of a generation whose loss was noticed before this start.
        """
        name = names.proved(task_id, participant_id)
        known = self.all[:-1] if self.noticed else self.all
        if name is None or name.nonce == names.nonce or any(one.uid == name.uid for one in known):
            return None
        return name

    def learn(self, shown: Sequence[TaskName]) -> SetBack | None:
        """Return the set-back noticed since this start, if these ids show more of it."""
        known = self.all[-1]
        self.all[-1] = known.after(shown)
        return None if self.all[-1] == known else self.all[-1]

    def notice(self, shown: Sequence[TaskName], uid: str, task: int, accepted: int, run_s: float) -> SetBack:
        """Note the first that is known of a set-back since this start. The arguments are fields of a SetBack."""
        self.noticed = True
        self.all.append(SetBack(uid, self._version, task, accepted, run_s).after(shown))
        return self.all[-1]

    def begun_anew(self, dropped: int) -> SetBack:
        """Note that the method began anew with the last set-back, and that so many updates were discarded."""
        self.all[-1] = replace(self.all[-1], anew=True, dropped=dropped)
        return self.all[-1]

    def scalars(self) -> list[dict[str, Any]]:
        """Return the JSON values that the checkpoint stores."""
        return [asdict(one) for one in self.all]


def _most(numbers: Iterable[int | None]) -> int | None:
    return max((number for number in numbers if number is not None), default=None)


def set_backs_in(scalars: Mapping[str, Any]) -> list[SetBack]:
    """Return all set-backs of a run, oldest first, from the scalars of a checkpoint."""
    return [SetBack(**fields) for fields in scalars.get("set_backs", ())]
