"""The decision core: what the coordinator does about what happens, as a pure state machine.

Rules
 1. Nothing here does I/O or asks for the time: `step(event, now)` changes the state and returns commands, in the
    order of decision. The same events at the same times, from the same seed, give the same commands and parameters to
    the last byte, also across `snapshot`, `changes` and `restore`.
 2. A step first lets time pass (absences, back-offs, leases, a round's deadline), then takes its event, then looks for
    the end of the run, and issues tasks last: so every task of a step is of the version that the step ends with.
 3. An update that arrives gives exactly one Accept or Discard. It is accepted if its task is open and it is the task's
    own (participant, update id, base version, payload, tensors, staleness), else it is discarded with a reason
    (validation.py). Either way the task closes, so that none is counted twice; what comes from somebody else does not
    touch it (identity.py: what shows who somebody is).
 4. A task is open while it is `out` (it holds a slot and its participant) or `lapsed` (neither, but its update is
    welcome). It lapses when its lease is over, when its participant seems to have lost it and it cannot be repeated, or
    when it could not be delivered: in all of these somebody may be training it, and finished work is not thrown away.
    A task that was sent twice also lapses, and does not close, when it is declined: its other copy may be in training.
    Lapsed tasks are withdrawn when their update would be too stale, or when a participant has more than four, or, where
    participants remember, at a hello that names them a whole lease later: until the verdict theirs takes no other task.
 5. An update of a declined or withdrawn task is discarded as `task_closed`: all that a close means is "not any more".
 6. A participant that does not name the task that is out for it has lost it: at once if its session is new, else only
    after a grace, because the hello may have crossed the task on the wire. The task is repeated (the same seed, the
    lease runs on, to one session only once) if the participant accepts and the model is still the task's; else it
    lapses.
 7. No task goes out before `min_participants` have been here at one time. From then on `concurrency` tasks are kept out
    (synchronous: see 9) until the run stops: what is out then is withdrawn, so that no run waits for its slowest.
 8. Declines back off for as long as they ask, or `decline_backoff_s`; an accepting hello ends that. Failures (trainer
    errors, no data, unusable updates) back off twice as long each time in a row, up to ten minutes, and only a new
    session ends that.
 9. A synchronous round (rounds.py) opens as soon as `min_updates` participants are free. ceil(size·over_selection)
    tasks are kept out or answered, one update a participant: who becomes free later fills the round up. The first
    `size` updates make the version, all other tasks of the round are withdrawn. At the deadline it goes on with
    `min_updates`, or else the tasks that are out lapse, others are asked in their place, and the deadline starts
    again.
10. Where the strategy has arrival groups (arrival_groups.py, with rules of its own) a version is of one group's updates
    and of late ones, and who is back waits for it. Of those that get a task in one step the fastest is first.
11. Once a limit or goal is reached (ending.py) all tasks are withdrawn and updates are discarded as `run_finished`; the
    final version is evaluated where there is an evaluator; then Finish is emitted, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fedmq.coordinator.decisions import identity
from fedmq.coordinator.decisions.arrival_groups import ArrivalGroups
from fedmq.coordinator.decisions.commands import Accept, Command, Discard, NewVersion, SayHello
from fedmq.coordinator.decisions.ending import Ending
from fedmq.coordinator.decisions.events import (
    ClosedTask,
    EvaluationArrived,
    Event,
    ParticipantSeen,
    PoisonArrived,
    Started,
    StopRequested,
    TaskDeclined,
    TaskUndeliverable,
    Tick,
    UpdateArrived,
)
from fedmq.coordinator.decisions.model import Model
from fedmq.coordinator.decisions.participants import Participant
from fedmq.coordinator.decisions.records import Changes, ParticipantRecord, Snapshot, TaskRecord
from fedmq.coordinator.decisions.requirements import check_requirements
from fedmq.coordinator.decisions.rounds import Rounds
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.decisions.tasks import HeldTask
from fedmq.coordinator.decisions.validation import Judge, Rejection
from fedmq.coordinator.settings import RunSettings
from fedmq.coordinator.strategies.protocol import Strategy, arrivals, max_participants
from fedmq.schemas.messages import TrainingConfig, Update
from fedmq.schemas.methods import METHODS, update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import packed_bytes, spec_of


class Core:
    """See the module docstring. `evaluates`: an EvaluationArrived will answer each Evaluate."""

    def __init__(
        self,
        settings: RunSettings,
        strategy: Strategy[Any],
        training: TrainingConfig,
        parameters: Parameters,
        run_uid: str,
        *,
        evaluates: bool = False,
    ) -> None:
        check_requirements(settings, strategy, training, evaluates=evaluates)
        self._settings = settings
        self._strategy = strategy
        self._run_uid = run_uid
        self._model = Model(strategy, parameters)
        self._remembers = METHODS[strategy.reply].remembers
        spec = update_spec(strategy.reply, spec_of(parameters))
        self._judge = Judge(settings.run_id, strategy.reply, spec, settings.max_staleness)
        self._rng = np.random.Generator(np.random.PCG64(settings.seed))
        room, groups = max_participants(strategy), arrivals(strategy)
        self._desk = TaskDesk(
            settings, strategy.reply, training, run_uid, self._rng, max_participants=room, arrivals=groups
        )
        self._groups = self._desk.groups
        self._rounds = None if strategy.cohort is None else Rounds(strategy.cohort, self._desk, self._model)
        self._ending = Ending(settings, self._desk, self._rounds, evaluates=evaluates)
        self._accepted = 0
        self._discarded: Counter[str] = Counter()
        self._buffer_ids: list[str] = []
        self._gate_open = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            Started: self._on_started,
            ParticipantSeen: lambda event: self._desk.on_hello(event.hello, event.user),
            UpdateArrived: self._on_update,
            PoisonArrived: self._on_poison,
            TaskDeclined: self._desk.on_decline,
            TaskUndeliverable: self._desk.on_undeliverable,
            EvaluationArrived: self._ending.on_evaluation,
            Tick: lambda _: None,
            StopRequested: lambda event: self._ending.stop(event.detail),
        }

    # What the service asks

    @property
    def version(self) -> int:
        return self._desk.version

    @property
    def parameters(self) -> Parameters:
        """Of the current version; never changed in place."""
        return self._model.parameters

    @property
    def task_tensors(self) -> Parameters:
        """What a task of the current version carries: its parameters, and the method's groups beside them."""
        return self._model.task_tensors

    @property
    def accepted(self) -> int:
        """Updates accepted in the run."""
        return self._accepted

    @property
    def discarded(self) -> dict[str, int]:
        """Updates discarded in the run, by reason."""
        return dict(self._discarded)

    @property
    def tasks_out(self) -> int:
        return self._desk.tasks.out

    @property
    def stopping(self) -> bool:
        """Whether a limit or goal is reached: no update is taken any more."""
        return self._ending.stopping is not None

    @property
    def finished(self) -> str | None:
        """Why the run ended, once Finish was emitted."""
        return self._ending.finished

    def holds(self, task_id: str) -> bool:
        """Whether the core knows about this task itself: it is open, or closed since the last `changes`."""
        return self._desk.tasks.get(task_id) is not None or self._desk.tasks.just_closed(task_id) is not None

    def awaits(self, update: Update) -> bool:
        """Whether an update would be accepted now if its payload fits; others need no payload to be judged."""
        event = UpdateArrived(0, update, Parameters({}))
        rejection = self._judge.reject(
            event,
            self._desk.roster.get(update.participant_id),
            self._desk.tasks.get(update.task_id),
            self._closed(event),
            version=self._desk.version,
            stopping=self._ending.stopping,
            payload_to_come=True,
        )
        return rejection is None

    @property
    def payload_bytes(self) -> int:
        """How long the tensors of an update are, encoded."""
        return packed_bytes(self._judge.spec)

    def has_room_for(self, participant_id: str) -> bool:
        """False for a known participant that the strategy has no room for (strategies.base.max_participants)."""
        return self._desk.roster.has_room_for(participant_id)

    def stranger(self, participant_id: str, user: str | None) -> str | None:
        """Why this user may not speak for this participant; None where it may (coordinator.decisions.identity)."""
        return identity.refusal(self._desk.roster.get(participant_id), user)

    def is_from_owner(self, task_id: str, user: str | None) -> bool:
        """Whether this user is shown to be the participant of the open task (coordinator.decisions.identity)."""
        task = self._desk.tasks.get(task_id)
        return task is not None and identity.is_from(self._desk.owner(task), user)

    def next_wakeup(self) -> float | None:
        """Run time by which a Tick is needed if nothing else happens; None if there is nothing to wait for."""
        if self._ending.stopping is not None:
            return None
        soonest = self._desk.next_due()
        deadline_s = None if self._rounds is None else self._rounds.deadline_s()
        if self._groups is not None:
            deadline_s = self._groups.next_due()
        for due in (self._settings.stop.max_time_s, self._ending.evaluations.due_s(self._desk.version), deadline_s):
            if due is not None and (soonest is None or due < soonest):
                soonest = due
        return soonest

    # The step

    def step(self, event: Event, now: float) -> list[Command]:
        """Take one event at run time `now` (seconds, never falling) and say what is to be done about it."""
        desk = self._desk
        desk.commands = []
        desk.now = max(desk.now, now)
        if self._ending.finished is None:
            self._pass_time()
            self._handlers[type(event)](event)
            if self._groups is not None:
                self._end_groups(self._groups)
            self._ending.check(self._accepted)
            self._ending.evaluate_if_due()
            if self._ending.stopping is None:
                self._issue()
        elif isinstance(event, UpdateArrived | PoisonArrived):
            self._handlers[type(event)](event)
        return desk.commands

    def _pass_time(self) -> None:
        self._desk.pass_time()
        if self._groups is not None:
            self._end_groups(self._groups)
        elif self._ending.stopping is None:
            if self._model.state.count and self._strategy.ready(self._model.state, self._desk.now):
                self._make_version()
            elif self._rounds is not None:
                self._rounds.pass_time()

    # Tasks

    def _on_started(self, _: Started) -> None:
        self._ending.evaluations.forget_running()
        self._desk.doubt_all()
        if len(self._desk.roster):
            self._desk.commands.append(SayHello(tuple(self._desk.roster.ids())))

    def _issue(self) -> None:
        if not self._gate_open:
            if self._desk.roster.here < self._settings.min_participants:
                return
            self._gate_open = True
        if self._rounds is None:
            wanted = self._settings.concurrency - self._desk.tasks.out
        else:
            wanted = self._rounds.tasks_wanted()
        if self._groups is not None:
            chosen = [self._desk.roster.pick() for _ in range(min(wanted, self._desk.roster.free))]
            for p in sorted(chosen, key=lambda p: (p.step_s or 0.0, p.seq)):
                self._desk.issue_to(p)
            return
        while wanted > 0 and self._desk.roster.free:
            self._desk.issue_to(self._desk.roster.pick())
            wanted -= 1

    # Updates

    def _on_update(self, event: UpdateArrived) -> None:
        update = event.update
        p, task = self._desk.roster.get(update.participant_id), self._desk.tasks.get(update.task_id)
        rejection = self._judge.reject(
            event, p, task, self._closed(event), version=self._desk.version, stopping=self._ending.stopping
        )
        if rejection is None:
            assert p is not None
            assert task is not None
            self._accept(event, p, task)
        else:
            self._reject(event, rejection, p, task)

    def _closed(self, event: UpdateArrived) -> HeldTask | ClosedTask | None:
        """What is known of a task that ended: since the last `changes` here, before that in the ledger."""
        return self._desk.tasks.just_closed(event.update.task_id) or event.closed_task

    def _reject(self, event: UpdateArrived, rejection: Rejection, p: Participant | None, task: HeldTask | None) -> None:
        self._discarded[rejection.reason] += 1
        self._desk.commands.append(
            Discard(event.delivery, rejection.reason, rejection.detail, event.update, rejection.staleness)
        )
        if p is None or rejection.reason == "wrong_run":
            return
        p.last_seen_s = self._desk.now
        p.discarded += rejection.reason != "duplicate"
        if rejection.reason == "task_closed" and p.out is None:
            p.accepting = True  # it was busy with this until now
        if task is not None and self._desk.owner(task) is p:
            self._desk.discard_task(task, rejection.reason, fault=rejection.reason != "too_stale")
        self._desk.settle(p)

    def _on_poison(self, event: PoisonArrived) -> None:
        self._discarded[event.reason] += 1
        self._desk.commands.append(Discard(event.delivery, event.reason, event.detail, None))
        task = None if event.task_id is None else self._desk.tasks.get(event.task_id)
        if task is not None:
            self._desk.owner(task).discarded += 1
            self._desk.discard_task(task, event.reason, fault=True)

    def _accept(self, event: UpdateArrived, p: Participant, task: HeldTask) -> None:
        update = event.update
        p.last_seen_s = self._desk.now
        staleness = self._desk.version - task.base_version
        self._desk.observe(p, update.num_examples, update.metrics.get("loss"))
        group = None
        if self._groups is None:
            p.measure(update.train_s, update.num_steps)
        else:
            group = self._groups.arrive(p, task, update.update_id, self._accepted + 1, self._desk.now)
        weight = self._desk.client_weights.weight(p.participant_id, update.num_examples, {})
        tensors = event.payload.move() if event.owned else event.payload
        self._model.accumulate(update, tensors, staleness, weight, first=p.memory is None, group=group)
        del tensors  # a version needs as much memory again
        if self._remembers:
            p.memory = update.next_memory
        self._accepted += 1
        self._buffer_ids.append(update.update_id)
        self._desk.commands.append(Accept(event.delivery, update, staleness, weight, self._accepted, group))
        self._desk.close(task, "accepted", "")
        p.accepted += 1
        p.failures = 0
        if p.out is None:
            p.accepting, p.asked_again_at_s = True, None
        if self._rounds is not None:
            self._rounds.on_accepted(p)
        self._desk.settle(p)
        if self._strategy.ready(self._model.state, self._desk.now):
            self._make_version()

    # Versions

    def _make_version(self) -> None:
        weights = self._model.make_version()
        self._desk.version += 1
        self._desk.commands.append(NewVersion(self._desk.version, tuple(self._buffer_ids), weights))
        self._buffer_ids = []
        if self._rounds is not None:
            self._rounds.on_version()
        self._withdraw_too_stale()

    def _end_groups(self, groups: ArrivalGroups) -> None:
        """A version of each arrival group that is to end by now."""
        most = self._settings.stop.max_versions
        while self._ending.stopping is None and (most is None or self._desk.version < most):
            closed = groups.close(self._desk.now)
            if closed is None:
                return
            weights = self._model.make_version(closed.group)
            self._desk.version += 1
            made_of = closed.updates
            orders = tuple(made_of.values())
            self._desk.commands.append(NewVersion(self._desk.version, tuple(made_of), weights, orders))
            self._buffer_ids = [update_id for update_id in self._buffer_ids if update_id not in made_of]
            for p in closed.waited:
                self._desk.settle(p)
            self._withdraw_too_stale()

    def _withdraw_too_stale(self) -> None:
        for task in self._desk.tasks.too_stale(self._desk.version):
            self._desk.withdraw(task, f"lapsed, and too stale at version {self._desk.version}")

    # Memory

    def snapshot(self) -> Snapshot:
        """All but the tables (`changes`). The arrays are live: write or copy them before the next step."""
        scalars: dict[str, Any] = {
            "run_uid": self._run_uid,
            **self._model.scalars(),
            "rng": self._rng.bit_generator.state,
            "client_weights": self._desk.client_weights.scalars(),
            "discarded": dict(self._discarded),
            "now": self._desk.now,
            "version": self._desk.version,
            "last_task_seq": self._desk.last_task_seq,
            "accepted": self._accepted,
            "buffer_ids": list(self._buffer_ids),
            "gate_open": self._gate_open,
            "round_opened_s": None if self._rounds is None else self._rounds.opened_s,
            **self._ending.scalars(),
            "arrival_groups": None if self._groups is None else self._groups.scalars(),
        }
        return Snapshot(self._model.arrays(), scalars)

    def changes(self) -> Changes:
        """Rows for the ledger that changed since the last call."""
        return Changes(self._desk.roster.changes(), self._desk.tasks.changes(), self._model.changed_memories())

    def forget_changes(self) -> None:
        """What `changes` does to the core, where nobody reads the rows."""
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
    ) -> Core:
        """The core that wrote the snapshot, given all participants and the tasks `out` and `lapsed` of that moment.

        The memories of `changes` are among the snapshot's arrays, as strategy/memory/{participant_id}/{tensor}.
        """
        scalars = snapshot.scalars
        model = Model.restore(strategy, snapshot)
        core = cls(settings, strategy, training, model.parameters, scalars["run_uid"], evaluates=evaluates)
        core._model.state = model.state
        core._rng.bit_generator.state = scalars["rng"]
        core._discarded = Counter(scalars["discarded"])
        core._accepted = scalars["accepted"]
        core._buffer_ids = list(scalars["buffer_ids"])
        core._gate_open = scalars["gate_open"]
        if core._rounds is not None:
            core._rounds.opened_s = scalars["round_opened_s"]
        core._ending.load(scalars)
        core._desk.load(scalars, participants, open_tasks)
        return core
