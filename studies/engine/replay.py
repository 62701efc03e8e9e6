"""The replay of a recorded run: its own strategy and its archived updates give its parameters again, bit for bit.

It proves the engine. The tasks go out and the updates come as the ledger says (studies.engine.recorded), the versions
are made when the ledger says (studies.engine.recorded_versions). Nothing is trained: each update's tensors come from
the archive. The decisions of the core must then be those in the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fedmq.coordinator.audit import audit
from fedmq.coordinator.audit.replay import DistilledOf, DistilledVersions, checkpoint_meta
from fedmq.coordinator.decisions.commands import Distil
from fedmq.coordinator.decisions.events import DistilFailed, Distilled, ParticipantSeen
from fedmq.coordinator.decisions.failures import Drop, drops_in
from fedmq.coordinator.decisions.versions.model import Model
from fedmq.coordinator.decisions.versions.unfreezing import FrozenParts
from fedmq.coordinator.settings import DownlinkSettings, StopSettings, TrainingSettings, what_tasks_ask
from fedmq.coordinator.state import archive, checkpoint
from fedmq.coordinator.state.checkpoint_files import CheckpointFiles
from fedmq.coordinator.state.frozen_file import frozen_in
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import ArchivedUpdate, UpdateRow, VersionRow
from fedmq.coordinator.state.ledger.trust import believed
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies.protocol import Strategy, arrivals, buffer_timeout
from fedmq.schemas.errors import InputError, StateError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.methods import METHODS
from fedmq.schemas.parameters import Parameters
from fedmq.studies.engine.outcome import Outcome
from fedmq.studies.engine.recorded import RecordedEngine
from fedmq.studies.engine.recorded_versions import RecordedCore, RecordedVersions
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.devices import Device
from fedmq.studies.population.population import Population, task_streams
from fedmq.studies.population.recorded_runs import RecordedTask
from fedmq.studies.problems.lazy_training import Backend, Job, Result, Trained


def replay(run_dir: str | Path, strategy: Strategy[Any] | None = None) -> Outcome:
    """Repeat a recorded run in virtual time, at its own moments, with the updates of its archive.

    The engine and the decision core make the same versions of them, to the last bit. `run_dir` is the run's folder.
    `strategy` is needed if the run had a strategy of the user's own.

    Raise InputError if the archive lacks an update of the run (`fedmq verify` replays such a run as far as it can),
    StateError if the engine's result differs from the ledger, and CheckpointError if the archive is damaged.
    """
    folder = RunFolder(Path(run_dir))
    with believed(folder.ledger):
        repeat = _prepared(folder, run_dir, strategy)
    return repeat()  # a mistake in a user's strategy is no mistake in the ledger


def _prepared(folder: RunFolder, run_dir: str | Path, strategy: Strategy[Any] | None) -> Callable[[], Outcome]:
    with LedgerReader(folder.ledger) as ledger, ledger.at_one_moment():
        run, rows, states = ledger.run(), ledger.updates(), ledger.states()
        archived = ledger.archived(0, len(rows))
        drops, set_backs = drops_in(ledger.checkpoints()[0].scalars), ledger.set_backs()
        bases, newest, versions = ledger.bases(), ledger.version(), ledger.versions()
        made = DistilledVersions.of(ledger)
    strategy = strategy or audit.built_in(run.settings["strategy"])
    if strategy is None:
        raise InputError(f"the run in {run_dir} has a strategy of the user's own: give it as `strategy`")
    if not bases or bases[0].accepted or len(archived) != len(rows):
        raise InputError(
            f"the run in {run_dir} has no archive of all its updates: only a run that kept them can be replayed"
        )
    lost = [drop for drop in drops if not drop.anew]
    if lost:
        raise InputError(
            f"the run in {run_dir} discarded updates that it had accepted, because their version failed "
            f"({lost[0].reason}): virtual time has no such failures; `fedmq verify` replays it"
        )
    moments = [one.run_s for one in set_backs if one.anew]
    anew = list(zip(moments, [drop for drop in drops if drop.anew], strict=True))
    first = archive.read_base(folder.archive, bases[0])
    initial = Model.restore(strategy, first).parameters
    parts = frozen_in(CheckpointFiles.of_run(folder, run), first.scalars, mend=False)
    population = Population.model_validate({"run": str(run_dir), "order": "recorded"})
    # Each has the name that it had in the run: a participant in two lanes is one, to a strategy that keeps something
    # of each participant.
    members = [replace(m, participant_id=m.history.participant_id) for m in population.members(0) if m.history]
    streams = task_streams(0, len(members))
    # With arrival groups, rounds or a timeout the last version may have come after the last update, at its own moment.
    own_moments = any(one is not None for one in (arrivals(strategy), strategy.cohort, buffer_timeout(strategy)))
    ends_later = own_moments and bool(rows) and rows[-1].base_version + rows[-1].staleness < newest
    stop = StopSettings(max_versions=newest) if ends_later else StopSettings(max_updates=max(len(rows), 1))
    engine = _Replay(
        population,
        _Archived(initial, [m.examples for m in members], parts),
        [Device(m, population, 0, streams, open_loop=True) for m in members],
        strategy=strategy,
        run=StudyRun(
            stop=stop,
            max_staleness=run.settings["run"].get("max_staleness"),
            downlink=DownlinkSettings.model_validate(run.settings.get("downlink", {})),
        ),
        training=what_tasks_ask(TrainingSettings.model_validate(run.settings["training"])),
        seed=0,
        on_evaluation=None,
    )

    def replayed() -> Outcome:
        digest = states.get((len(rows), newest))
        outcome = engine.replayed(folder, rows, archived, versions, anew=anew, digest=digest, distilled=made)
        outcome.name_participants([m.participant_id for m in members], run.settings["run"]["client_weights"])
        return outcome

    return replayed


class _Replay(RecordedEngine):
    core_type = RecordedCore
    _core: RecordedCore
    _versions: RecordedVersions | None = None
    _tensors_of: DistilledOf

    def _close(self, about: int) -> None:
        """Wait as long as a version is still to come."""
        due_s = None if self._versions is None else self._versions.next_due()
        if due_s is None:
            super()._close(about)
        else:
            self._plan(max(due_s, self._now), self._close, about)

    def replayed(
        self,
        folder: RunFolder,
        rows: Sequence[UpdateRow],
        archived: Sequence[ArchivedUpdate],
        versions: Sequence[VersionRow],
        *,
        anew: Sequence[tuple[float, Drop]],
        digest: str | None,
        distilled: DistilledVersions,
    ) -> Outcome:
        """Run, and raise StateError for any difference from the ledger.

        `anew` says when and where the method began anew. `digest` is that of the run's last committed state, if this
        state holds all of `rows`; else None.
        """
        self._versions = self._core.follow(rows, versions, anew)
        self._tensors_of = partial(distilled.tensors, folder)
        forgotten = [drop.accepted for _, drop in anew]
        results = _ArchivedResults(
            folder, rows, archived, self._devices, remembers=METHODS[self._reply].remembers, forgotten=forgotten
        )
        self._lazy = results  # type: ignore[assignment]
        outcome = self.run()
        self._core.begin_anew_by(math.inf)
        found = list(zip(outcome.updates.staleness, self._participants(outcome), strict=True))
        for row, mine in zip_longest(rows, found):
            expected = None if row is None else (row.staleness, row.participant_id)
            if mine != expected:
                order = len(found) if row is None else row.accepted_order
                raise StateError(
                    f"the replay met other staleness, or another order, than the ledger has: as update {order} it has "
                    f"{_named(mine)}, the ledger {_named(expected)} ({len(found)} updates of {len(rows)}, "
                    f"{outcome.missed_arrivals} offers missed)"
                )
        meta = checkpoint_meta(len(rows), self._core.version)
        if digest is not None and checkpoint.digest_of(self._core.snapshot().arrays, meta) != digest:
            raise StateError("the replay ended in another state than the run's last commit")
        return outcome

    def _distilled(self, command: Distil) -> Distilled | DistilFailed:
        """Take the version from the archive."""
        tensors = self._tensors_of(command.version)
        if tensors is None:
            return DistilFailed(command.version, "the run could not")
        return Distilled(command.version, tensors)

    def _offer(self, k: int) -> None:
        """Offer in a session of its own, which ends the participant's older task if it is still in training."""
        i, _ = self._offers[k]
        device = self._devices[i]
        self._index[device.member.participant_id] = i
        device.session = k + 1
        hello = device.hello(self._federation.num_examples[i])
        self._events.append(
            ParticipantSeen(hello.model_copy(update={"session_id": f"before-{k}", "accepting": False, "task_ids": ()}))
        )
        super()._offer(k)

    def _participants(self, outcome: Outcome) -> Iterator[str]:
        for i in outcome.updates.participant:
            history = self._devices[i].member.history
            assert history is not None
            yield history.participant_id


def _named(update: tuple[int, str] | None) -> str:
    return "nothing" if update is None else f"{update[1]}'s with staleness {update[0]}"


@dataclass(frozen=True)
class _Archived:
    """The replay's problem: a model without training."""

    initial: Parameters
    num_examples: Sequence[int]
    frozen: FrozenParts | None
    """The model's frozen part, which the initial parameters do not have."""
    evaluates: bool = False

    @property
    def backend(self) -> Backend:
        return _Nobody()

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        raise NotImplementedError

    def whole(self, parameters: Parameters) -> Parameters:
        part = None if self.frozen is None else self.frozen.beside(parameters)
        return parameters if part is None else part.join(parameters)


class _Nobody:
    name = "archive"

    def train(self, jobs: Sequence[Job]) -> Sequence[Trained]:
        raise NotImplementedError


class _ArchivedResults:
    """The replay's LazyTraining: each task's result is read from the archive."""

    cohorts = trained = 0

    def __init__(
        self,
        folder: RunFolder,
        rows: Sequence[UpdateRow],
        archived: Sequence[ArchivedUpdate],
        devices: Sequence[Device],
        *,
        remembers: bool,
        forgotten: Sequence[int] = (),
    ) -> None:
        """`forgotten`: numbers of accepted updates after which the participants' memories began anew."""
        self._forgotten = forgotten
        self._folder, self._rows, self._archived, self._devices = folder, rows, archived, devices
        self._remembers = remembers
        self._tasks: dict[int, tuple[int, RecordedTask]] = {}
        self._last: dict[str, tuple[str, int]] = {}
        """participant -> its last update, and the number of that one among the accepted ones."""
        self._sent = 0

    def add(self, number: int, participant: int, _tensors: Parameters, _config: TrainingConfig) -> None:
        work = self._devices[participant].work
        if work is None or work.recorded is None:
            raise StateError("the replay gave out a task at another moment than the run")
        self._tasks[number] = (participant, work.recorded)

    def drop(self, number: int) -> None:
        del self._tasks[number]

    def result(self, number: int) -> Result:
        participant, task = self._tasks.pop(number)
        row = self._rows[task.order - 1]
        payload = archive.read_update(self._folder.archive, self._archived[task.order - 1])
        if not self._remembers:
            return Result(payload, row.num_examples, row.num_steps, row.metrics)
        mark, order = self._last.get(self._name(participant), (None, 0))
        if any(order <= forgotten < task.order for forgotten in self._forgotten):
            mark = None
        return Result(payload, row.num_examples, row.num_steps, row.metrics, mark, {})

    def sent(self, update_id: str, participant: int, _result: Result) -> None:
        self._sent += 1
        self._last[self._name(participant)] = update_id, self._sent

    def _name(self, participant: int) -> str:
        return self._devices[participant].member.participant_id

    def settled(self, update_id: str, accepted: bool) -> None:
        if not accepted:
            raise StateError(f"the replay discarded update {update_id}, which the run accepted")
