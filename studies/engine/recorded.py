"""A recorded run's order in the engine: its tasks go out when they went out, and their updates come when they came.

Rules
 1. Each participant offers itself at the moments at which the run gave it a task whose update it then accepted, and the
    core gives it one at once. The update comes at the recorded moment. At one moment updates come before tasks go out,
    as in a step of the core. So where an asynchronous strategy makes its versions as the run's did, each task is of the
    version that it was of in the run, and the staleness of each update is the run's.
 2. A participant that was given a task while a lapsed one was in training counts as two
    (studies.population.recorded_runs.lanes); in a
    `replay` as one, whose first task lapses when the second goes out.
 3. A synchronous strategy asks when its round opens: it meets the same offers and durations, in its own order. In a
    `replay` its rounds are the run's (studies.engine.recorded_versions).
 4. When the record is over the run ends, as `record_over`, unless its own limits were reached before.

`replay` is the proof: the run's own strategy and the archived updates give the run's parameters, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fedmq.coordinator.audit import audit
from fedmq.coordinator.audit.replay import checkpoint_meta
from fedmq.coordinator.decisions.events import ParticipantSeen, StopRequested
from fedmq.coordinator.decisions.model import Model
from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.state import archive, checkpoint
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import ArchivedUpdate, UpdateRow, VersionRow
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies.math.client_weights import ClientWeights
from fedmq.coordinator.strategies.protocol import Strategy, arrivals
from fedmq.schemas.errors import InputError, StateError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.methods import METHODS
from fedmq.schemas.parameters import Parameters
from fedmq.studies.engine.engine import Engine
from fedmq.studies.engine.outcome import Outcome
from fedmq.studies.engine.recorded_versions import RecordedVersions, make_as_recorded
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.devices import Device
from fedmq.studies.population.population import Population, task_streams
from fedmq.studies.population.recorded_runs import RecordedTask, offers
from fedmq.studies.problems.lazy_training import Backend, Job, Result, Trained


class RecordedEngine(Engine):
    """See the module docstring; its population is one in the recorded order."""

    def _open(self) -> None:
        self._offers = offers([d.member.history for d in self._devices if d.member.history is not None])
        self._plan_offer(0)

    def _plan_offer(self, k: int) -> None:
        if k < len(self._offers):
            self._plan(max(self._offers[k][1].issued_s, self._now), self._offer, k)
        else:
            self._plan(self._now, self._close, 0)

    def _offer(self, k: int) -> None:
        i, task = self._offers[k]
        device = self._devices[i]
        if device.work is not None or device.offers:
            self._outcome.missed_arrivals += 1
        else:
            device.offers, device.next_task = True, task
            self._say_hello(i)
        # Only once this one's end is planned: an update that comes at the moment of the next offer comes before it.
        self._plan(self._now, self._plan_offer, k + 1)

    def _close(self, _: int) -> None:
        """Stop, once nobody is training any more: a synchronous round would wait for ever, deadline after deadline."""
        ends = [at for device in self._devices if (at := device.ends_at()) is not None]
        if ends:
            self._plan(max(ends), self._close, 0)
        else:
            self._events.append(StopRequested("record_over"))


def replay(run_dir: str | Path, strategy: Strategy[Any] | None = None) -> Outcome:
    """A recorded run again, in virtual time at its own moments, with the updates of its archive: the engine and the
    decision core make the same versions of them, to the last bit. `strategy` is needed where it is of the user's own.

    Raises InputError for a run without an archive since its beginning (`fedmq verify` replays such a one as far as it
    can), StateError where the engine comes to something else than the ledger says, CheckpointError where the archive is
    damaged.
    """
    folder = RunFolder(Path(run_dir))
    with LedgerReader(folder.ledger) as ledger, ledger.at_one_moment():
        run, rows, states = ledger.run(), ledger.updates(), ledger.states()
        archived = ledger.archived(0, len(rows))
        bases, newest, versions = ledger.bases(), ledger.version(), ledger.versions()
    strategy = strategy or audit.built_in(run.settings["strategy"])
    if strategy is None:
        raise InputError(f"the run in {run_dir} has a strategy of the user's own: give it as `strategy`")
    if not bases or bases[0].accepted or len(archived) != len(rows):
        raise InputError(f"the run in {run_dir} has no archive of all its updates: only what is kept can be replayed")
    initial = Model.restored(strategy, archive.read_base(folder.archive, bases[0])).parameters
    population = Population.model_validate({"run": str(run_dir), "order": "recorded"})
    # Under the names that they had: a participant in two lanes is one, to a strategy that keeps something of each.
    members = [replace(m, participant_id=m.history.participant_id) for m in population.members(0) if m.history]
    streams = task_streams(0, len(members))
    # With arrival groups or rounds the last version may have come after the last update, at a moment of its own.
    own_moments = arrivals(strategy) is not None or strategy.cohort is not None
    ends_later = own_moments and bool(rows) and rows[-1].base_version + rows[-1].staleness < newest
    stop = StopSettings(max_versions=newest) if ends_later else StopSettings(max_updates=max(len(rows), 1))
    engine = _Replay(
        population,
        _Archived(initial, [m.examples for m in members]),
        [Device(m, population, 0, streams, open_loop=True) for m in members],
        strategy=strategy,
        run=StudyRun(stop=stop, max_staleness=run.settings["run"].get("max_staleness")),
        training=TrainingConfig.model_validate(run.settings["training"]),
        seed=0,
        on_evaluation=None,
    )
    return engine.replayed(folder, rows, archived, versions, states.get((len(rows), newest)))


class _Replay(RecordedEngine):
    _versions: RecordedVersions | None = None

    def _close(self, about: int) -> None:
        """Not while a version is still to come."""
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
        digest: str | None,
    ) -> Outcome:
        """`digest`: of the run's last committed state, where it is that of all these."""
        self._versions = make_as_recorded(self._core, rows, versions)
        self._lazy = _ArchivedResults(folder, rows, archived, self._devices, METHODS[self._reply].remembers)  # type: ignore[assignment]
        self._core._desk.client_weights = _RecordedWeights(rows)
        outcome = self.run()
        found = list(zip(outcome.updates.staleness, self._participants(outcome), strict=True))
        for row, mine in zip_longest(rows, found):
            expected = None if row is None else (row.staleness, row.participant_id)
            if mine != expected:
                order = len(found) if row is None else row.accepted_order
                raise StateError(
                    f"the replay met other staleness, or another order, than the ledger has: as update {order} it has "
                    f"{_said(mine)}, the ledger {_said(expected)} ({len(found)} updates of {len(rows)}, "
                    f"{outcome.missed_arrivals} offers missed)"
                )
        meta = checkpoint_meta(len(rows), self._core.version)
        if digest is not None and checkpoint.digest_of(self._core.snapshot().arrays, meta) != digest:
            raise StateError("the replay came to another state than the run's last commit")
        return outcome

    def _offer(self, k: int) -> None:
        """In a session of its own, so that a task of the participant that is still in training lapses, as it did."""
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


def _said(update: tuple[int, str] | None) -> str:
    return "nothing" if update is None else f"{update[1]}'s with staleness {update[0]}"


@dataclass(frozen=True)
class _Archived:
    """The replay's problem: a model and nobody who trains."""

    initial: Parameters
    num_examples: Sequence[int]
    evaluates: bool = False

    @property
    def backend(self) -> Backend:
        return _Nobody()

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        raise NotImplementedError


class _Nobody:
    name = "archive"

    def train(self, jobs: Sequence[Job]) -> Sequence[Trained]:
        raise NotImplementedError


class _ArchivedResults:
    """In the place of LazyTraining: what each task gave."""

    cohorts = trained = 0

    def __init__(
        self,
        folder: RunFolder,
        rows: Sequence[UpdateRow],
        archived: Sequence[ArchivedUpdate],
        devices: Sequence[Device],
        remembers: bool,
    ) -> None:
        self._folder, self._rows, self._archived, self._devices = folder, rows, archived, devices
        self._remembers = remembers
        self._tasks: dict[int, tuple[int, RecordedTask]] = {}
        self._last: dict[str, str] = {}

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
        return Result(
            payload, row.num_examples, row.num_steps, row.metrics, self._last.get(self._name(participant)), {}
        )

    def sent(self, update_id: str, participant: int, _result: Result) -> None:
        self._last[self._name(participant)] = update_id

    def _name(self, participant: int) -> str:
        return self._devices[participant].member.participant_id

    def settled(self, update_id: str, accepted: bool) -> None:
        if not accepted:
            raise StateError(f"the replay discarded update {update_id}, which the run accepted")


class _RecordedWeights(ClientWeights):
    """The client weights that the ledger has: who was known when is not in it."""

    def __init__(self, rows: Sequence[UpdateRow]) -> None:
        super().__init__("equal")
        self._given = iter(rows)

    def weight(self, *_: object) -> float:
        return next(self._given).client_weight


__all__ = ["RecordedEngine", "replay"]
