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
    delivered, or when its participant seems to have lost it and it cannot be repeated. In each of these cases somebody
    may be training it, and finished work is not thrown away. A task that was sent twice and is declined lapses too,
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
    that has declined far more often than it trained waits a second at least: each task carries the whole model, and
    for that reason a task is repeated at once to few new sessions (task_desk.py has the numbers). A failure
    (trainer error, no data, unusable update) backs off twice as long each time in a row, up to ten minutes. A task
    that lapses counts as a failure, and backs off from `lapse_backoff_s`: if its lease is over, if its participant has
    lost it, if a round's deadline passes and the participant never gave an update, and if it could not be delivered for
    the second time in a row. Only an accepted update or a new session ends a failure's back-off. A new session does so
    once in ten minutes, because a silent participant can make any number of them.
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
16. If the strategy's buffer has a timeout (buffer_timer.py), the updates that are there when the time is over make a
    version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from fedmq.coordinator.decisions.commands import (
    Accept,
    Command,
    Discard,
    DropBuffer,
    NewVersion,
    SayHello,
    TellSetBack,
)
from fedmq.coordinator.decisions.ending import Ending
from fedmq.coordinator.decisions.events import (
    BufferFailed,
    ClosedTask,
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
from fedmq.coordinator.decisions.failures import Condemned, Drop, StrategyFailed, drops_in
from fedmq.coordinator.decisions.participants import identity
from fedmq.coordinator.decisions.participants.arrival_groups import ArrivalGroups
from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.records import Changes, ParticipantRecord, Snapshot, TaskRecord
from fedmq.coordinator.decisions.requirements import check_requirements
from fedmq.coordinator.decisions.set_backs import SetBack, SetBacks, set_backs_in
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.decisions.tasks.book import HeldTask
from fedmq.coordinator.decisions.tasks.names import TaskName, TaskNames
from fedmq.coordinator.decisions.updates.validation import Judge, Rejection
from fedmq.coordinator.decisions.versions.buffer_timer import BufferTimer
from fedmq.coordinator.decisions.versions.model import Model
from fedmq.coordinator.decisions.versions.rounds import Rounds, asked
from fedmq.coordinator.settings import RunSettings
from fedmq.coordinator.strategies.protocol import Strategy, arrivals, buffer_timeout, max_participants
from fedmq.schemas.messages import Hello, TrainingConfig, Update
from fedmq.schemas.methods import METHODS, update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import ModelSpec, packed_bytes, spec_of


class Core:
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
    ) -> None:
        """Begin a run. `naming` has its key and this start's nonce; without it the ids of tasks are plain."""
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
        names = TaskNames(run_uid) if naming is None else replace(naming, uid=run_uid)
        self._desk = TaskDesk(
            settings, strategy.reply, training, names, self._rng, max_participants=room, arrivals=groups
        )
        self._groups = self._desk.groups
        self._slots = settings.concurrency if strategy.cohort is None else asked(strategy.cohort)
        self._rounds = None if strategy.cohort is None else Rounds(strategy.cohort, self._desk, self._model)
        timeout = buffer_timeout(strategy)
        self._timer = None if timeout is None else BufferTimer(timeout)
        self._ending = Ending(settings, self._desk, self._rounds, evaluates=evaluates)
        self._accepted = 0
        self._discarded: Counter[str] = Counter()
        self._buffer_ids: list[str] = []
        self._gate_open = False
        self._careful = False
        self._drops: list[Drop] = []
        self._set_backs = SetBacks()
        self._handlers: dict[type, Callable[[Any], None]] = {
            Started: self._on_started,
            ParticipantSeen: self._on_hello,
            ParticipantRevoked: lambda event: self._desk.revoke(event.participant_id),
            UpdateArrived: self._on_update,
            PoisonArrived: self._on_poison,
            TaskDeclined: self._desk.on_decline,
            TaskUndeliverable: self._desk.on_undeliverable,
            EvaluationArrived: self._ending.on_evaluation,
            Tick: lambda _: None,
            TimeStoodStill: lambda event: self._desk.stood_still(event.seconds),
            StopRequested: lambda event: self._ending.stop(event.detail),
        }

    # What the service asks

    @property
    def version(self) -> int:
        return self._desk.version

    @property
    def parameters(self) -> Parameters:
        """Parameters of the current version; never changed in place."""
        return self._model.parameters

    @property
    def task_tensors(self) -> Parameters:
        """Tensors that a task of the current version carries: its parameters, and the method's groups beside them."""
        return self._model.task_tensors

    @property
    def accepted(self) -> int:
        """Number of updates accepted in the run."""
        return self._accepted

    @property
    def discarded(self) -> dict[str, int]:
        """Number of updates discarded in the run, by reason."""
        return dict(self._discarded)

    @property
    def participants(self) -> int:
        """Number of known participants."""
        return len(self._desk.roster)

    @property
    def here(self) -> int:
        """Number of participants that are here."""
        return self._desk.roster.here

    @property
    def clamped(self) -> dict[str, int]:
        """Number of accepted updates with a clamped claim, by the claim's name (claims.py)."""
        return dict(self._desk.clamped)

    @property
    def tasks_out(self) -> int:
        return self._desk.tasks.out

    @property
    def stopping(self) -> bool:
        """True once a limit or goal is reached, after which no update is accepted."""
        return self._ending.stopping is not None

    @property
    def finished(self) -> str | None:
        """Reason for the end of the run; None until Finish was emitted."""
        return self._ending.finished

    @property
    def mistake(self) -> str | None:
        """Text that says why the run would never end as it should (ending.py); its owner must not go on with it."""
        return self._ending.mistake

    @property
    def set_backs(self) -> tuple[SetBack, ...]:
        """All times at which the ledger turned out to be older than its run (coordinator.decisions.set_backs)."""
        return tuple(self._set_backs.all)

    def doubtful(self, participant_id: str, task_ids: Iterable[str | None]) -> list[str]:
        """Return those of a participant's ids that show a set-back if the ledger does not have them.

        A coordinator of this run issued them to this participant, and not this one since its start.
        """
        return [
            task_id
            for task_id in task_ids
            if task_id is not None and not self.holds(task_id) and self._issued_elsewhere(task_id, participant_id)
        ]

    def holds(self, task_id: str) -> bool:
        """Return True if the core itself knows this task: it is open, or it closed since the last `changes`."""
        return self._desk.tasks.get(task_id) is not None or self._desk.tasks.just_closed(task_id) is not None

    def awaits_from(self, participant_id: str, task_ids: Iterable[str]) -> bool:
        """Return True if one of these tasks is open, and this participant's."""
        open_ones = (self._desk.tasks.get(task_id) for task_id in task_ids)
        return any(task is not None and task.participant_id == participant_id for task in open_ones)

    def awaits(self, update: Update) -> bool:
        """Return True if this update would be accepted now, provided that its payload fits.

        Other updates can be judged without their payload.
        """
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
    def payload_spec(self) -> ModelSpec:
        """Names, dtypes and shapes of the tensors that an update carries."""
        return self._judge.spec

    @property
    def payload_bytes(self) -> int:
        """Encoded length of an update's tensors, in bytes."""
        return packed_bytes(self._judge.spec)

    def knows(self, participant_id: str) -> bool:
        """Return True if the participant has said hello, and was neither turned away nor forgotten since."""
        return self._desk.roster.get(participant_id) is not None

    def proven_of(self, user: str | None) -> int:
        """Return the number of this user's participants with an accepted update."""
        return self._desk.roster.users.proven(user)

    def has_room_for(self, participant_id: str) -> bool:
        """Return False for a known participant that holds none of the strategy's places (places.py)."""
        return self._desk.roster.has_room_for(participant_id)

    def participant_ids(self) -> list[str]:
        """Return the ids of all known participants, in order of first hello."""
        return self._desk.roster.ids()

    def is_revoked(self, participant_id: str) -> bool:
        """Return True for a known participant whose ParticipantRevoked has come."""
        p = self._desk.roster.get(participant_id)
        return p is not None and p.revoked

    def stranger(self, participant_id: str, user: str | None) -> str | None:
        """Return why this user may not speak for this participant; None if it may (decisions.participants.identity)."""
        return identity.refusal(self._desk.roster.get(participant_id), user)

    def is_from_owner(self, task_id: str, user: str | None) -> bool:
        """Return True if this user is shown to be the open task's participant (decisions.participants.identity)."""
        task = self._desk.tasks.get(task_id)
        return task is not None and identity.is_from(self._desk.owner(task), user)

    def next_wakeup(self) -> float | None:
        """Return the run time by which a Tick is needed if nothing else happens; None if nothing is waited for."""
        if self._ending.stopping is not None:
            return None
        soonest = self._desk.next_due()
        deadline_s = None if self._rounds is None else self._rounds.deadline_s()
        if self._groups is not None:
            deadline_s = self._groups.next_due()
        elif self._timer is not None:
            deadline_s = self._timer.due_s(len(self._buffer_ids))
        evaluation_s = self._ending.evaluations.due_s(self._desk.version, self._accepted)
        for due in (self._settings.stop.max_time_s, evaluation_s, deadline_s):
            if due is not None and (soonest is None or due < soonest):
                soonest = due
        return soonest

    # The step

    def step(self, event: Event, now: float) -> list[Command]:
        """Handle one event at run time `now` (seconds, never falling) and return the commands that answer it."""
        desk = self._desk
        desk.commands = []
        desk.now = max(desk.now, now)
        if isinstance(event, BufferFailed):  # before time passes: the version that failed may be due again
            self._on_buffer_failed(event)
        elif self._ending.finished is None:
            self._pass_time()
            self._handlers[type(event)](event)
            if self._groups is not None:
                self._end_groups(self._groups)
            desk.tidy()
            self._ending.check(self._accepted)
            self._ending.evaluate_if_due(self._accepted)
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
            if self._model.state.count and self._ready():
                self._make_version()
            elif self._timer is not None:
                self._make_version_by_timeout(self._timer)
            elif self._rounds is not None:
                self._rounds.pass_time()

    # Tasks

    def _on_started(self, event: Started) -> None:
        for participant_id in event.revoked:
            self._desk.revoke(participant_id)
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
            chosen = [self._desk.roster.pick(self._slots) for _ in range(min(wanted, self._desk.roster.free))]
            for p in sorted(chosen, key=lambda p: (p.step_s or 0.0, p.seq)):
                self._desk.issue_to(p)
            return
        while wanted > 0 and self._desk.roster.free:
            self._desk.issue_to(self._desk.roster.pick(self._slots))
            wanted -= 1

    # Set-backs

    def _issued_elsewhere(self, task_id: str, participant_id: str) -> TaskName | None:
        return self._set_backs.issued_elsewhere(self._desk.names, task_id, participant_id)

    def _on_hello(self, event: ParticipantSeen) -> None:
        hello = event.hello
        if event.unissued or hello.last_task is not None:
            names = [self._issued_elsewhere(task_id, hello.participant_id) for task_id in event.unissued]
            found = [name for name in names if name is not None]
            if found or self._is_done_with_an_open_task(hello):
                self._set_back(found)
        self._desk.on_hello(hello, event.user)

    def _is_done_with_an_open_task(self, hello: Hello) -> bool:
        """Return True if the task that was over last has been open in the ledger since before this start."""
        task = self._desk.tasks.get(hello.last_task or "")
        if task is None or task.seq > self._desk.first_task_seq or task.participant_id != hello.participant_id:
            return False
        return not self._set_backs.noticed

    def _set_back(self, shown: Sequence[TaskName]) -> None:
        """Note that the ledger is older than its run, as these ids show, and go on (set_backs.py)."""
        desk, known = self._desk, self._set_backs
        if self._ending.stopping is not None:
            return
        if known.noticed:
            more = known.learn(shown)
            if more is not None:
                desk.commands.append(TellSetBack(more, first=False))
            return
        found = known.notice(shown, desk.names.uid, desk.first_task_seq, self._accepted, desk.now)
        if self._remembers:
            found = known.begun_anew(len(self._buffer_ids))
        desk.commands.append(TellSetBack(found, first=True))
        desk.names = desk.names.next_generation()
        if self._remembers:
            self._begin_anew(found.told())
            return
        for task in self._desk.tasks.open():
            if task.state == "out" and task.seq <= desk.first_task_seq:
                desk.lapse(task, "the ledger is older than its run: this task may be over")

    def _begin_anew(self, detail: str) -> None:
        """Begin the method anew: nobody knows how far the participants have moved what they remember."""
        for task in self._desk.tasks.open():
            self._desk.withdraw(task, "the method's memory began anew")
        ids = tuple(self._buffer_ids)
        if ids:
            self._discarded["set_back"] += len(ids)
            self._desk.commands.append(DropBuffer(ids, "set_back", detail))
        drop = Drop(self._accepted, self._desk.version, "set_back", None, len(ids))
        self._drops.append(drop)
        self._forget_what_participants_remember(drop)
        self._desk.commands.append(SayHello(tuple(self._desk.roster.ids())))

    def _forget_what_participants_remember(self, drop: Drop) -> None:
        self._model.drop(drop)
        self._buffer_ids = []
        waited = () if self._groups is None else self._groups.drop_all()
        for participant_id in self._desk.roster.ids():
            p = self._desk.roster.get(participant_id)
            assert p is not None
            p.memory = None
            p.failures, p.asked_again_at_s = 0, None
            self._desk.settle(p)
        for p in waited:
            self._desk.settle(p)
        if self._timer is not None:
            self._timer.close()
        if self._rounds is not None:
            self._rounds.on_dropped()

    # Updates

    def _on_update(self, event: UpdateArrived) -> None:
        update = event.update
        p, task = self._desk.roster.get(update.participant_id), self._desk.tasks.get(update.task_id)
        rejection = self._judge.reject(
            event, p, task, self._closed(event), version=self._desk.version, stopping=self._ending.stopping
        )
        if rejection is not None and rejection.reason in ("unknown_task", "unknown_participant"):
            rejection = self._lost_task(event, task) or rejection
        if rejection is None:
            assert p is not None
            assert task is not None
            self._accept(event, p, task)
        else:
            self._reject(event, rejection, p, task)

    def _lost_task(self, event: UpdateArrived, task: HeldTask | None) -> Rejection | None:
        """Return the verdict on an update whose task is proved to be the run's, and is not in the ledger."""
        update = event.update
        name = None
        if task is None and self._closed(event) is None:
            name = self._desk.names.proved(update.task_id, update.participant_id)
        if name is None:
            return None
        if self._issued_elsewhere(update.task_id, update.participant_id) is not None:
            self._set_back([name])
        detail = f"task {update.task_id} is in a newer ledger than this one, which was restored, or in another copy"
        return Rejection("set_back", detail, fault=False)

    def _closed(self, event: UpdateArrived) -> HeldTask | ClosedTask | None:
        """Return the task if it ended: held here since the last `changes`, and by the ledger before that."""
        return self._desk.tasks.just_closed(event.update.task_id) or event.closed_task

    def _reject(self, event: UpdateArrived, rejection: Rejection, p: Participant | None, task: HeldTask | None) -> None:
        self._discarded[rejection.reason] += 1
        self._desk.commands.append(
            Discard(event.delivery, rejection.reason, rejection.detail, event.update, rejection.staleness)
        )
        if p is None or rejection.reason == "wrong_run":
            return
        if rejection.reason == "set_back" and p.out is None:
            p.accepting = True  # it was busy with a task that this ledger does not have
        p.last_seen_s = self._desk.now
        p.discarded += rejection.reason != "duplicate"
        if rejection.reason == "task_closed" and p.out is None:
            p.accepting = True  # it was busy with this task until now
        if task is not None and self._desk.owner(task) is p:
            self._desk.discard_task(task, rejection.reason, fault=rejection.fault)
        self._desk.settle(p)

    def _on_poison(self, event: PoisonArrived) -> None:
        self._discarded[event.reason] += 1
        self._desk.commands.append(Discard(event.delivery, event.reason, event.detail, None))
        task = None if event.task_id is None else self._desk.tasks.get(event.task_id)
        if task is not None:
            self._desk.owner(task).discarded += 1
            self._desk.discard_task(task, event.reason, fault=True)

    def _accept(self, event: UpdateArrived, p: Participant, task: HeldTask) -> None:
        update, clamped = self._within_bounds(event.update, p, task)
        p.last_seen_s = self._desk.now
        staleness = self._desk.version - task.base_version
        self._desk.observe(p, update.num_examples, update.metrics.get("loss"))
        group = None
        if self._groups is None:
            if event.update.num_steps:  # one step is the least that counts, but not for its speed
                p.measure(update.train_s, update.num_steps)
        else:
            group = self._groups.arrive(p, task, update.update_id, self._accepted + 1, self._desk.now)
        weight = self._desk.client_weights.weight(p.participant_id, update.num_examples, {})
        tensors = event.payload.move() if event.owned else event.payload
        try:
            self._model.accumulate(update, tensors, staleness, weight, first=p.memory is None, group=group)
            if self._careful:
                self._model.check_finite()
        except StrategyFailed as failed:
            failed.blame((update.update_id,), participant_id=p.participant_id)
            raise
        del tensors  # making a version needs as much RAM again
        if self._remembers:
            p.memory = update.next_memory
        self._accepted += 1
        self._buffer_ids.append(update.update_id)
        if self._timer is not None:
            self._timer.on_accepted(self._desk.now)
        self._desk.commands.append(Accept(event.delivery, update, staleness, weight, self._accepted, group, clamped))
        self._desk.close(task, "accepted", "")
        p.accepted += 1
        p.failures, p.pardoned_s = 0, None
        if p.out is None:
            p.accepting, p.asked_again_at_s = True, None
        if self._rounds is not None:
            self._rounds.on_accepted(p)
        self._desk.settle(p)
        if self._ready():
            self._make_version()
        elif self._timer is not None:
            self._make_version_by_timeout(self._timer)

    def _within_bounds(self, update: Update, p: Participant, task: HeldTask) -> tuple[Update, str]:
        return self._desk.within_bounds(p, task, update)

    # Versions

    def _ready(self) -> bool:
        try:
            return self._model.ready(self._strategy, self._desk.now)
        except StrategyFailed as failed:
            failed.blame(tuple(self._buffer_ids), of_buffer=True)
            raise

    def _weights_of_version(self, made_of: Sequence[str], group: int | None = None) -> tuple[float, ...]:
        """Make the next version of these updates, and return their weights."""
        try:
            weights = self._model.make_version(group, len(made_of))
            if self._careful:
                self._model.check_finite()
        except StrategyFailed as failed:
            failed.blame(tuple(made_of), of_buffer=True, group=group)
            raise
        return weights

    def _make_version_by_timeout(self, timer: BufferTimer) -> None:
        """Make a version of a buffer that did not fill, if its time is over and enough is there."""
        if timer.is_due(len(self._buffer_ids), self._desk.now):
            self._make_version(by_timeout=True)

    def _make_version(self, *, by_timeout: bool = False) -> None:
        weights = self._weights_of_version(self._buffer_ids)
        self._desk.version += 1
        made_of = tuple(self._buffer_ids)
        self._desk.commands.append(NewVersion(self._desk.version, made_of, weights, by_timeout=by_timeout))
        self._buffer_ids = []
        if self._timer is not None:
            self._timer.close()
        if self._rounds is not None:
            self._rounds.on_version()
        self._withdraw_too_stale()

    def _end_groups(self, groups: ArrivalGroups) -> None:
        """Make a version from each arrival group that is due to end by now."""
        most = self._settings.stop.max_versions
        while self._ending.stopping is None and (most is None or self._desk.version < most):
            closed = groups.close(self._desk.now)
            if closed is None:
                return
            made_of = closed.updates
            weights = self._weights_of_version(tuple(made_of), closed.group)
            self._desk.version += 1
            orders = tuple(made_of.values())
            self._desk.commands.append(NewVersion(self._desk.version, tuple(made_of), weights, orders))
            self._buffer_ids = [update_id for update_id in self._buffer_ids if update_id not in made_of]
            for p in closed.waited:
                self._desk.settle(p)
            self._withdraw_too_stale()

    def _withdraw_too_stale(self) -> None:
        for task in self._desk.tasks.too_stale(self._desk.version):
            self._desk.withdraw(task, f"lapsed, and too stale at version {self._desk.version}")

    def limit_examples(self, most_of: Callable[[str], int | None]) -> None:
        """Take each participant's own limit of examples from a fleet's table, in place of the run's limit.

        `most_of` returns it by the participant's id; None if the fleet does not say.
        """
        self._desk.own_limit = most_of

    # Failures of the strategy

    def condemn(self, updates: Mapping[str, Condemned], *, careful: bool = False) -> None:
        """Discard these updates when they come (failures.py). `careful` checks the whole state after each update."""
        self._judge.condemned.update(updates)
        self._careful = careful

    def check_finite(self) -> None:
        """Raise StrategyFailed if the model or the strategy's state is not finite: one pass over all of it.

        A commit looks at it, so every committed state is finite, whatever the strategy is.
        """
        self._model.check_finite()

    def _on_buffer_failed(self, event: BufferFailed) -> None:
        waited: list[Participant] = []
        if self._groups is None:
            ids = tuple(self._buffer_ids)
        else:
            dropped, waited = self._groups.drop(event.group)
            ids = tuple(dropped)
        if not ids:
            return
        drop = Drop(self._accepted, self._desk.version, event.reason, event.group, len(ids))
        self._model.drop(drop)
        self._buffer_ids = [update_id for update_id in self._buffer_ids if update_id not in ids]
        self._discarded[event.reason] += len(ids)
        self._drops.append(drop)
        self._desk.commands.append(DropBuffer(ids, event.reason, event.detail))
        for p in waited:
            self._desk.settle(p)
        if self._rounds is not None:
            self._rounds.on_dropped()
        if self._timer is not None:
            self._timer.close()

    # Checkpoints

    def snapshot(self) -> Snapshot:
        """Return the state without the tables, which are in `changes`.

        The arrays are live: write or copy them before the next step.
        """
        scalars: dict[str, Any] = {
            "run_uid": self._run_uid,
            **self._model.scalars(),
            "rng": self._rng.bit_generator.state,
            "client_weights": self._desk.client_weights.scalars(),
            "discarded": dict(self._discarded),
            "clamped": dict(self._desk.clamped),
            "drops": [asdict(drop) for drop in self._drops],
            "set_backs": [asdict(one) for one in self._set_backs.all],
            "task_names": {"uid": self._desk.names.uid, "key": self._desk.names.key},
            "gaps": self._desk.elapsed.scalars(),
            "now": self._desk.now,
            "version": self._desk.version,
            "last_task_seq": self._desk.last_task_seq,
            "participants": len(self._desk.roster),
            "next_seq": self._desk.roster.next_seq,
            "accepted": self._accepted,
            "buffer_ids": list(self._buffer_ids),
            "gate_open": self._gate_open,
            "round_opened_s": None if self._rounds is None else self._rounds.opened_s,
            "buffer_opened_s": None if self._timer is None else self._timer.opened_s,
            **self._ending.scalars(),
            "arrival_groups": None if self._groups is None else self._groups.scalars(),
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
    ) -> Core:
        """Rebuild the core that wrote the snapshot, from it, all participants and the tasks that were open then.

        `naming` has this start's nonce, and a key for a run that has none yet.

        The method's memories that `changes` gave must be among the snapshot's arrays, as
        strategy/memory/{participant_id}/{tensor}.
        """
        scalars = snapshot.scalars
        model = Model.restore(strategy, snapshot)
        core = cls(settings, strategy, training, model.parameters, scalars["run_uid"], evaluates=evaluates)
        core._model.state = model.state
        core._rng.bit_generator.state = scalars["rng"]
        core._discarded = Counter(scalars["discarded"])
        core._accepted = scalars["accepted"]
        core._drops = drops_in(scalars)
        core._set_backs = SetBacks(set_backs_in(scalars), scalars["version"])
        names = scalars.get("task_names", {})  # a ledger of an older fedmq does not have it
        core._desk.names = TaskNames(
            names.get("uid") or scalars["run_uid"],
            names.get("key") or ("" if naming is None else naming.key),
            "" if naming is None else naming.nonce,
        )
        core._buffer_ids = list(scalars["buffer_ids"])
        core._gate_open = scalars["gate_open"]
        if core._rounds is not None:
            core._rounds.opened_s = scalars["round_opened_s"]
        if core._timer is not None:
            core._timer.opened_s = scalars["buffer_opened_s"]
        core._ending.load(scalars)
        core._desk.load(scalars, participants, open_tasks)
        return core
