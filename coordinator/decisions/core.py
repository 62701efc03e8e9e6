"""The decision core: a pure state machine that turns events into the coordinator's commands.

Rules
 1. Nothing here does I/O or asks for the time. `step(event, now)` changes the state and returns commands, in the order
    of decision. The same events at the same times, from the same seed, give the same commands and parameters to the
    last byte, also across `snapshot`, `changes` and `restore`.
 2. A step has four parts. It lets time pass (absences, back-offs, leases, a round's deadline), handles its event, looks
    for the end of the run, and issues tasks. Tasks come last, so every task of a step has the version that the step
    ends with.
 3. An update that arrives gives exactly one Accept or Discard. It is accepted if its task is open and everything in it
    is the task's own: participant, update id, base version, payload, tensors, staleness. Otherwise it is discarded with
    a reason (validation.py). The task closes either way, so no update is counted twice. A message from somebody else
    does not touch the task (identity.py says whose a message is).
 4. A task is open while it is `out` or `lapsed`. A task that is out holds a slot and its participant. A lapsed task
    holds neither, but its update is still welcome. A task lapses when its lease is over, when it could not be
    delivered, when its participant leaves with it, or when its participant seems to have lost it and it cannot be
    repeated. In each of these cases somebody may be training it, or will go on with it, and finished work is not thrown
    away. A task that was sent twice and is declined lapses too,
    instead of closing, because its other copy may be in training. A lapsed task is withdrawn when its update would be
    too stale, or when its participant has more than four lapsed tasks. If participants keep the method's memory, it is
    also withdrawn at a hello that names it a whole lease later: the participant takes no other task before a verdict.
 5. An update for a declined or withdrawn task is discarded as `task_closed`. A closed task means nothing more than that
    its update is not wanted any more.
 6. A participant has lost the task that is out for it if its hello does not name the task. This counts at once if the
    session is new. Otherwise it counts after a grace, because the hello may have crossed the task on the wire. The task
    is repeated if the participant accepts tasks and the task's model is still the current one; if not, it lapses. A
    repeated task keeps its seed and its lease, and one session gets it only once more.
 7. No task goes out before `min_participants` have been here at the same time. From then on `concurrency` tasks are
    kept out (rule 9 replaces this for synchronous strategies) until the run stops. Tasks that are out at that moment
    are withdrawn, so that no run waits for its slowest participant.
 8. A decline backs off for as long as it asks, or for `decline_backoff_s`; an accepting hello ends that. A participant
    that has declined far more often than it trained waits a second at least, and up to a minute if it goes on: each
    task may carry the whole model. For that reason a task is repeated at once to few new sessions (task_desk.py and
    back_offs.py have the numbers). A
    failure (trainer error, no data, unusable update) backs off twice as long each time in a row, up to ten minutes. A
    task that lapses counts as a failure, and backs off from `lapse_backoff_s`: if its lease is over, if its participant
    has lost it, if a round's deadline passes and the participant never gave an update, and if it could not be
    delivered, or its participant left with it, for the second time in a row. Only an accepted update or a new session
    ends a failure's back-off. A new session does so once in ten minutes, because a silent participant can make any
    number of them.
 9. A synchronous round (rounds.py) opens as soon as `min_updates` participants are free. It keeps
    ceil(size·over_selection) tasks out or answered, with one update from each participant; participants that become
    free later fill it up. The first `size` updates make the version, and all other tasks of the round are withdrawn. At
    the deadline `min_updates` are enough. If there are fewer, the tasks that are out lapse, other participants are
    asked in their place, and the deadline starts again.
10. If the strategy has arrival groups (arrival_groups.py, with rules of its own), a version is made of one group's
    updates and the late ones, and participants that are back wait for it. Among the participants that get a task in one
    step, the fastest gets the first.
11. If the strategy raises, or a version would not be finite, the step raises StrategyFailed, and this core is given up
    (failures.py). No version is made of what failed.
12. A participant that is revoked loses its tasks, and gets none any more. Its updates are discarded as `revoked`,
    except for those that were accepted before. These stay in the model.
13. When a limit or goal is reached (ending.py), all tasks are withdrawn and updates are discarded as `run_finished`.
    The final version is evaluated if there is an evaluator. Then Finish is emitted, once.
14. If the ledger turns out to be older than its run, because its folder was restored from a backup, tasks from before
    the start lapse, and a method whose participants remember begins anew (set_backs.py).
15. Slots go to participants as roster.py and users.py say: those on trial hold half of the slots while others are
    free, and no user holds more than its share. Ids that gave nothing are forgotten when they are away, at the end of
    a step.
16. At a version of [training] unfreeze, frozen tensors join the model (versions/unfreezing.py, with rules of its own).
17. If the strategy's buffer has a timeout (buffer_timer.py), the updates that are there when the time is over make a
    version.
18. If the strategy distils (distilling.py), a version that is due is asked for, and made when the answer comes. Until
    then no update may come, and the step has two parts: time passes, and the event is handled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fedmq.coordinator.decisions.commands import Command, SayHello
from fedmq.coordinator.decisions.ending import Ending
from fedmq.coordinator.decisions.events import (
    BufferFailed,
    DistilFailed,
    Distilled,
    EvaluationArrived,
    Event,
    ParticipantRevoked,
    ParticipantSeen,
    PoisonArrived,
    Started,
    StopRequested,
    TaskDeclined,
    TaskUndeliverable,
    Tick,
    TimeStoodStill,
    UpdateArrived,
)
from fedmq.coordinator.decisions.failures import Condemned
from fedmq.coordinator.decisions.questions import Questions
from fedmq.coordinator.decisions.records import Changes, ParticipantRecord, Snapshot, TaskRecord
from fedmq.coordinator.decisions.requirements import check_requirements
from fedmq.coordinator.decisions.set_backs import SetBacks
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.decisions.tasks.names import TaskNames
from fedmq.coordinator.decisions.updates.validation import Judge
from fedmq.coordinator.decisions.updates.verdicts import Verdicts
from fedmq.coordinator.decisions.versions.buffer import Buffer
from fedmq.coordinator.decisions.versions.model import Model
from fedmq.coordinator.decisions.versions.rounds import asked
from fedmq.coordinator.decisions.versions.unfreezing import FrozenParts, update_specs
from fedmq.coordinator.settings import DownlinkSettings, RunSettings
from fedmq.coordinator.strategies.protocol import Strategy, arrivals, max_participants
from fedmq.schemas.messages import TrainingConfig, Uplink
from fedmq.schemas.parameters import Parameters


class Core(Questions):
    """The state machine of the module docstring.

    `evaluates` says that an EvaluationArrived will answer each Evaluate.
    """

    def __init__(
        self,
        settings: RunSettings,
        strategy: Strategy[Any],
        training: TrainingConfig,
        parameters: Parameters,
        run_uid: str,
        *,
        evaluates: bool = False,
        naming: TaskNames | None = None,
        uplink: Uplink | None = None,
        frozen: FrozenParts | None = None,
        downlink: DownlinkSettings | None = None,
        version: int = 0,
    ) -> None:
        """Begin a run. `naming` has its key and this start's nonce; without it the ids of tasks are plain. `uplink` is
        the codec that updates are asked for in; this core sees them decoded. `frozen` is the model's frozen part, which
        is not among the parameters. `downlink` is the form in which tasks carry the model. `version` is that of the
        parameters."""
        check_requirements(settings, strategy, training, evaluates=evaluates)
        self._settings = settings
        self._run_uid = run_uid
        self.frozen = frozen
        self._model = Model(strategy, parameters, downlink=downlink, frozen=frozen)
        self._rng = np.random.Generator(np.random.PCG64(settings.seed))
        room, groups = max_participants(strategy), arrivals(strategy)
        names = TaskNames(run_uid) if naming is None else replace(naming, uid=run_uid)
        self._desk = TaskDesk(
            settings,
            strategy.reply,
            training,
            names,
            self._rng,
            max_participants=room,
            arrivals=groups,
            uplink=uplink,
            sent=self._model.sent,
        )
        if frozen is not None:
            self._desk.unfrozen_at = frozen.unfrozen_at
        self._slots = settings.concurrency if strategy.cohort is None else asked(strategy.cohort)
        self._discarded: Counter[str] = Counter()
        self._buffer = Buffer(strategy, self._model, self._desk, self._discarded)
        self._ending = Ending(settings, self._desk, self._buffer.rounds, evaluates=evaluates)
        self._set_backs = SetBacks(self._desk, self._buffer, self._ending)
        spec, later = update_specs(strategy.reply, parameters, version, frozen)
        judge = Judge(settings.run_id, strategy.reply, spec, settings.max_staleness, self._desk.memory, later=later)
        self._verdicts = Verdicts(
            judge, self._desk, self._buffer, self._ending, self._set_backs, discarded=self._discarded
        )
        self._gate_open = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            Started: self._on_started,
            ParticipantSeen: self._on_hello,
            ParticipantRevoked: lambda event: self._desk.revoke(event.participant_id),
            UpdateArrived: self._verdicts.on_update,
            PoisonArrived: self._verdicts.on_poison,
            TaskDeclined: self._desk.on_decline,
            TaskUndeliverable: self._desk.on_undeliverable,
            EvaluationArrived: self._ending.on_evaluation,
            Distilled: self._buffer.on_answer,
            DistilFailed: self._buffer.on_answer,
            Tick: lambda _: None,
            TimeStoodStill: lambda event: self._verdicts.claims.stood_still(event.seconds),
            StopRequested: lambda event: self._ending.stop(event.detail),
        }

    # The step

    def next_wakeup(self) -> float | None:
        """Return the run time by which a Tick is needed if nothing else happens; None if nothing is waited for."""
        if self._ending.stopping is not None:
            return None
        soonest = self._desk.next_due()
        if self._buffer.distilling:
            dues = [due for due in (soonest, self._buffer.next_due()) if due is not None]
            return min(dues, default=None)
        evaluation_s = self._ending.evaluations.due_s(self._desk.version, self._buffer.accepted)
        for due in (self._settings.stop.max_time_s, evaluation_s, self._buffer.next_due()):
            if due is not None and (soonest is None or due < soonest):
                soonest = due
        return soonest

    def step(self, event: Event, now: float) -> list[Command]:
        """Handle one event at run time `now` (seconds, never falling) and return the commands that answer it."""
        desk = self._desk
        desk.commands = []
        desk.now = max(desk.now, now)
        if isinstance(event, BufferFailed):  # before time passes: the version that failed may be due again
            self._buffer.on_failed(event)
        elif self._ending.finished is None:
            desk.pass_time()
            if self._ending.stopping is None:
                self._buffer.pass_time()
            self._handlers[type(event)](event)
            if self._buffer.groups is not None and self._ending.stopping is None:
                self._buffer.end_groups(self._buffer.groups)
            if self._ending.stopping is not None:
                self._buffer.make_plainly(f"the run stopped: {self._ending.stopping}")
            desk.tidy()
            if not self._buffer.distilling:
                self._ending.check(self._buffer.accepted)
                self._ending.evaluate_if_due(self._buffer.accepted)
                if self._ending.stopping is None:
                    self._issue()
        elif isinstance(event, UpdateArrived | PoisonArrived):
            self._handlers[type(event)](event)
        return desk.commands

    # Tasks

    def _on_started(self, event: Started) -> None:
        for participant_id in event.revoked:
            self._desk.revoke(participant_id)
        self._ending.evaluations.forget_running()
        self._desk.doubt_all()
        if len(self._desk.roster):
            self._desk.commands.append(SayHello(tuple(self._desk.roster.ids())))

    def _on_hello(self, event: ParticipantSeen) -> None:
        self._set_backs.look_at_hello(event)
        self._desk.on_hello(event.hello, event.user)

    def _issue(self) -> None:
        if not self._gate_open:
            if self._desk.roster.here < self._settings.min_participants:
                return
            self._gate_open = True
        rounds = self._buffer.rounds
        wanted = self._settings.concurrency - self._desk.tasks.out if rounds is None else rounds.tasks_wanted()
        if self._desk.groups is not None:
            chosen = [self._desk.roster.pick(self._slots) for _ in range(min(wanted, self._desk.roster.free))]
            for p in sorted(chosen, key=lambda p: (p.step_s or 0.0, p.seq)):
                self._desk.issue_to(p)
            return
        while wanted > 0 and self._desk.roster.free:
            self._desk.issue_to(self._desk.roster.pick(self._slots))
            wanted -= 1

    def limit_examples(self, most_of: Callable[[str], int | None]) -> None:
        """Take each participant's own limit of examples from a fleet's table, in place of the run's limit.

        `most_of` returns it by the participant's id; None if the fleet does not say.
        """
        self._desk.own_limit = most_of

    # Failures of the strategy

    def condemn(self, updates: Mapping[str, Condemned], *, careful: bool = False) -> None:
        """Discard these updates when they come (failures.py). `careful` checks the whole state after each update."""
        self._verdicts.judge.condemned.update(updates)
        self._buffer.careful = careful

    def check_finite(self) -> None:
        """Raise StrategyFailed if the model or the strategy's state is not finite: one pass over all of it.

        A commit looks at it, so every committed state is finite, whatever the strategy is.
        """
        self._model.check_finite()

    # Checkpoints

    def snapshot(self) -> Snapshot:
        """Return the state without the tables, which are in `changes`.

        The arrays are live: write or copy them before the next step.
        """
        scalars: dict[str, Any] = {
            "run_uid": self._run_uid,
            **self._model.scalars(),
            "rng": self._rng.bit_generator.state,
            "discarded": dict(self._discarded),
            "gate_open": self._gate_open,
            **self._desk.scalars(),
            **self._buffer.scalars(),
            **self._verdicts.claims.scalars(),
            **self._ending.scalars(),
            "set_backs": self._set_backs.scalars(),
            **({} if self.frozen is None else self.frozen.scalars()),
        }
        return Snapshot(self._model.arrays(), scalars)

    def changes(self) -> Changes:
        """Return the ledger rows that changed since the last call."""
        participants, forgotten = self._desk.roster.changes()
        return Changes(participants, self._desk.tasks.changes(), self._model.changed_memories(), forgotten)

    def forget_changes(self) -> None:
        """Drop the changed rows. It has the effect of `changes` on the core, for a caller that reads no rows."""
        self._desk.roster.forget_changes()
        self._desk.tasks.forget_changes()
        self._model.changed_memories()

    @classmethod
    def restore(  # noqa: PLR0917
        cls,
        settings: RunSettings,
        strategy: Strategy[Any],
        training: TrainingConfig,
        snapshot: Snapshot,
        participants: Iterable[ParticipantRecord],
        open_tasks: Iterable[TaskRecord],
        *,
        evaluates: bool = False,
        naming: TaskNames | None = None,
        uplink: Uplink | None = None,
        downlink: DownlinkSettings | None = None,
        frozen: FrozenParts | None = None,
    ) -> Core:
        """Rebuild the core that wrote the snapshot, from it, all participants and the tasks that were open then.

        `frozen` is the frozen part that the snapshot's scalars name, with the schedule in them.

        `naming` has this start's nonce, and a key for a run that has none yet.

        The method's memories that `changes` gave must be among the snapshot's arrays, as
        strategy/memory/{participant_id}/{tensor}.
        """
        scalars = snapshot.scalars
        model = Model.restore(strategy, snapshot, downlink, frozen)
        core = cls(
            settings,
            strategy,
            training,
            model.parameters,
            scalars["run_uid"],
            evaluates=evaluates,
            uplink=uplink,
            frozen=frozen,
            version=scalars["version"],
        )
        core._model.state = model.state
        core._model.sent = core._desk.sent = model.sent
        core._rng.bit_generator.state = scalars["rng"]
        core._discarded.update(scalars["discarded"])
        core._desk.names = TaskNames.restore(scalars, naming)
        core._gate_open = scalars["gate_open"]
        core._buffer.load(scalars)
        core._verdicts.claims.load(scalars)
        core._set_backs.load(scalars)
        core._ending.load(scalars)
        core._desk.load(scalars, participants, open_tasks)
        return core
