"""Virtual time around the coordinator's own core. The core gets the events that the service would give it, at the times
that a population says, and the training is done lazily.

Rules
 1. Everything follows from (population, problem, strategy, run, training, seed): the same bytes again, on any number of
    cores. Events at one time happen in the order in which they were planned; or the seed draws which of the tasks that
    end at one time comes first (`StudyRun.ties`).
 2. The core is the service's, and gets the same events: hello, update, decline, tick. Its commands are carried out at
    once, as if commits cost nothing. A task that it withdraws stops, and the participant says hello.
 3. A participant that would not take a task (off, away, not offering itself) declines it as not_idle. It says hello
    when it would take one.
 4. An update or a version that is not finite ends the run as diverged, at its time. A strategy that raises ends the
    study: a study has no commit to go on from.
 5. An event costs O(log n): one heap of what is to come, and the core's own heaps.
"""

from __future__ import annotations

import gc
import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedmq.coordinator.decisions.commands import (
    Accept,
    Discard,
    Distil,
    Evaluate,
    Finish,
    IssueTask,
    NewVersion,
    Withdraw,
)
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import (
    DistilFailed,
    Distilled,
    EvaluationArrived,
    Event,
    ParticipantSeen,
    Started,
    TaskDeclined,
    Tick,
    UpdateArrived,
)
from fedmq.coordinator.decisions.failures import StrategyFailed
from fedmq.coordinator.strategies.protocol import Strategy, arrivals
from fedmq.coordinator.uplink import uplink_codec
from fedmq.schemas.errors import ConfigError, StrategyError
from fedmq.schemas.local.allocator import keep_freed_memory
from fedmq.schemas.local.blame import line_of
from fedmq.schemas.messages import TrainingConfig, Update, update_id
from fedmq.schemas.tensors import spec_of
from fedmq.studies.engine.distilling import distilled
from fedmq.studies.engine.outcome import Evaluation, Outcome, Stuck
from fedmq.studies.engine.settings import NEVER_S, StudyRun
from fedmq.studies.engine.sizes import MessageSizes
from fedmq.studies.engine.task_sizes import example_passes, first_training
from fedmq.studies.engine.ties import Planned, Ties
from fedmq.studies.population.devices import Device, Work
from fedmq.studies.population.population import Population, arrival_generator
from fedmq.studies.problems.claims import check_metrics_of
from fedmq.studies.problems.lazy_training import LazyTraining
from fedmq.studies.problems.problem import Federation

RUN_UID = "57d1e500"
OnVersion = Callable[[float, int, int], None]
"""Called at each version with the virtual time (s), the version and the updates accepted so far."""
FORGET_EVERY = 4096
"""Steps between calls of `Core.forget_changes`, by which the core forgets closed tasks."""
COLLECT_EVERY = 20_000
"""New objects between two of Python's searches for cycles."""


class Engine:
    """One run. See the module docstring; `studies.simulate` is the way in."""

    core_type: type[Core] = Core

    def __init__(
        self,
        population: Population,
        federation: Federation,
        devices: list[Device],
        *,
        strategy: Strategy[Any],
        run: StudyRun,
        training: TrainingConfig,
        seed: int,
        on_evaluation: Callable[[Evaluation], None] | None,
        on_version: OnVersion | None = None,
    ) -> None:
        self._population, self._federation, self._devices = population, federation, devices
        self._reply, self._first_training = strategy.reply, first_training(training, strategy, run)
        self._measures = run.steps is not None or arrivals(strategy) is not None or population.partial_work is not None
        """True if the time of a task depends on what it does, so that it has to be measured."""
        self._begun: list[tuple[int, float]] = [(0, 0.0)] * len(devices)
        """(tasks, seconds that they take in all) for each participant."""
        self._settings = run.run_settings(len({d.member.participant_id for d in devices}), seed)
        if population.order == "recorded":
            self._settings = self._settings.model_copy(update={"concurrency": len(devices)})
        initial = federation.initial
        uplink = None if run.uplink is None else uplink_codec(run.uplink, strategy.reply)
        order = None if uplink is None else uplink.order
        self._core = self.core_type(
            self._settings, strategy, training, initial, RUN_UID, evaluates=federation.evaluates, uplink=order,
            downlink=run.downlink, frozen=getattr(federation, "frozen", None),
        )  # fmt: skip
        wire = None if uplink is None else uplink.wire(self._core.spec_of_update(0))
        self._sizes = MessageSizes(self._core, strategy.reply, training, uplink)
        self._first_sizes = self._sizes.of(0)
        self._have_frozen = set[int]()
        """The participants that have got the model's frozen part."""
        self._index = {d.member.participant_id: i for i, d in enumerate(devices)}
        self._lazy = LazyTraining(federation.backend, strategy.reply, wire, order)
        self._on_evaluation, self._on_version = on_evaluation, on_version
        self._arrivals_per_s = None if run.arrivals_per_s is None else run.arrivals_per_s / len(devices)
        self._arrival_rngs: dict[int, np.random.Generator] = {}
        self._seed = seed
        self._now = 0.0
        self._heap: list[Planned] = []
        self._planned = self._deliveries = self._steps = 0
        self._ties = None if run.ties is None else Ties(seed, self._end)
        self._wakeup: float | None = None
        self._events: deque[Event] = deque()
        self._working: dict[int, Device] = {}
        self._works = 0
        self._issued_bytes = self._sent_bytes = 0.0
        self._outcome = Outcome(initial)
        self._carriers: dict[type, Callable[[Any], None]] = {
            IssueTask: self._begin,
            Accept: self._accepted,
            Discard: self._discarded,
            NewVersion: self._new_version,
            Withdraw: self._withdraw,
            Distil: self._distil,
            Evaluate: self._evaluate,
            Finish: self._finish,
        }
        """The method that carries out each command. Other commands need nothing done."""

    def run(self) -> Outcome:
        """Run until the core finishes or the training diverges. Raise Stuck if nothing is left to happen before."""
        keep_freed_memory()
        with _rare_collections():
            return self._run()

    def _run(self) -> Outcome:
        self._step(Started())
        for i, device in enumerate(self._devices):
            self._plan_turn(i, device)
            if self._arrivals_per_s is not None:
                self._arrival_rngs[i] = arrival_generator(self._seed, i)
                self._plan_arrival(i)
            self._say_hello(i)
        self._settle()
        self._open()
        outcome, ties = self._outcome, self._ties
        while not outcome.finished:
            if not self._heap or self._heap[0][0] >= NEVER_S:
                outcome.finished = "stuck"
                raise Stuck(
                    f"nothing is left to happen at {self._now:g} s, version {self._core.version}, "
                    f"{self._core.accepted} updates, {self._core.tasks_out} tasks out: "
                    "give the run a lease_s, the dropouts a shorter away_s, or the cohort enough participants",
                    self._closed(outcome),
                )
            self._now, _, happen, about = heapq.heappop(self._heap) if ties is None else ties.pop(self._heap)
            happen(about)
            self._settle()
        return self._closed(outcome)

    def _open(self) -> None:
        """Plan what comes after all have said hello. Only a recorded order plans anything (studies.engine.recorded)."""

    def _closed(self, outcome: Outcome) -> Outcome:
        whole = getattr(self._federation, "whole", None)
        outcome.parameters = self._core.parameters if whole is None else whole(self._core.parameters)
        outcome.time_s = self._now
        outcome.bytes_up, outcome.bytes_down = self._sent_bytes, self._issued_bytes
        outcome.discarded = self._core.discarded
        outcome.num_examples, outcome.mean_task_s = list(self._federation.num_examples), self._mean_task_s()
        outcome.cohorts, outcome.trained = self._lazy.cohorts, self._lazy.trained
        outcome.backend = self._federation.backend.name
        return outcome

    def _mean_task_s(self) -> list[float]:
        payload_bytes = self._first_sizes.payload_bytes
        compute, first = self._population.compute, self._first_training
        return [
            total_s / tasks if tasks else d.member.mean_task_s(compute, example_passes(first, count), payload_bytes)
            for d, count, (tasks, total_s) in zip(
                self._devices, self._federation.num_examples, self._begun, strict=True
            )
        ]

    # The core

    def _settle(self) -> None:
        """Give the core all that happened now, and plan when it wants to be woken."""
        while self._events and not self._outcome.finished:
            self._step(self._events.popleft())
        wakeup = self._core.next_wakeup()
        if wakeup is not None and (self._wakeup is None or wakeup < self._wakeup):
            self._wakeup = wakeup
            self._plan(max(wakeup, self._now), self._tick, 0)

    def _step(self, event: Event) -> None:
        carriers = self._carriers
        try:
            commands = self._core.step(event, self._now)
        except StrategyFailed as failed:
            if failed.failure.reason == "strategy_error":
                raise StrategyError(f"{failed} ({failed.failure.function}() raised at {line_of(failed)})") from failed
            self._diverged()
            return
        if self._core.mistake is not None:
            raise ConfigError(self._core.mistake)
        for command in commands:
            carry_out = carriers.get(type(command))
            if carry_out is not None:
                carry_out(command)
        self._steps += 1
        if self._steps % FORGET_EVERY == 0:
            self._core.forget_changes()

    def _accepted(self, command: Accept) -> None:
        self._lazy.settled(command.update.update_id, accepted=True)
        self._record(command)

    def _discarded(self, command: Discard) -> None:
        assert command.update is not None, "updates are not decoded here"
        self._lazy.settled(command.update.update_id, accepted=False)

    def _new_version(self, command: NewVersion) -> None:
        self._outcome.version_s.append(self._now)
        if command.by_timeout:
            self._outcome.by_timeout.append(command.version)
        if command.plain:
            self._outcome.plain.append(command.version)
        self._outcome.updates.weigh(command.weights, command.orders)
        if self._on_version is not None:
            self._on_version(self._now, command.version, self._core.accepted)

    def _distil(self, command: Distil) -> None:
        """Answer before anything else happens: the core takes no update until then."""
        self._events.appendleft(self._distilled(command))

    def _distilled(self, command: Distil) -> Distilled | DistilFailed:
        return distilled(self._federation, command)

    def _finish(self, command: Finish) -> None:
        self._outcome.finished = command.reason

    def _tick(self, _: int) -> None:
        self._wakeup = None
        self._events.append(Tick())

    # Participants

    def _begin(self, task: IssueTask) -> None:
        i = self._index[task.participant_id]
        device = self._devices[i]
        if not device.willing:
            self._events.append(
                TaskDeclined(task.participant_id, task.task_id, "study", "not_idle", retry_after_s=NEVER_S)
            )
            return
        self._works += 1
        self._outcome.tasks_issued += 1
        sizes = self._sizes.of(task.base_version)
        tensor_bytes, down_bytes = sizes.payload_bytes[0], sizes.down_bytes
        if task.downlink is not None:
            spec = spec_of(self._core.tensors_of(task))
            tensor_bytes = sum(tensor.num_bytes for tensor in spec)
            down_bytes = self._sizes.coded_task(task.base_version, spec, task.training, task.downlink)
        if i not in self._have_frozen:
            self._have_frozen.add(i)
            tensor_bytes += sizes.frozen_bytes
            down_bytes += sizes.first_bytes - sizes.down_bytes
        self._issued_bytes += down_bytes
        training = device.part_of(task.training)
        work = device.begin(
            self._works,
            task,
            self._now,
            passes=example_passes(training, self._federation.num_examples[i]),
            payload_bytes=(tensor_bytes, sizes.payload_bytes[1]),
        )
        self._working[work.number] = device
        if self._measures and device.member.history is None:
            tasks, total_s = self._begun[i]
            self._begun[i] = tasks + 1, total_s + work.duration_s
        if not work.drops:
            self._lazy.add(work.number, i, self._core.task_tensors, training)
        self._plan_end(device)

    def _plan_end(self, device: Device) -> None:
        at = device.ends_at()
        if at is not None:
            assert device.work is not None
            self._plan(at, self._end, device.work.number)

    def _end(self, number: int) -> None:
        """End the work of this number: it is done or has dropped out. Do nothing if it was withdrawn before."""
        device = self._working.pop(number, None)
        if device is None:
            return
        work = device.work
        assert work is not None
        device.work = None
        if work.drops:
            self._drop_out(device, work)
        else:
            self._send(device, work)

    def _send(self, device: Device, work: Work) -> None:
        result = self._lazy.result(work.number)
        if not result.finite:
            self._diverged()
            return
        self._deliveries += 1
        coded = result.coded
        task, participant_id = work.task, device.member.participant_id
        self._sent_bytes += self._sizes.update(
            task.base_version, coded, memory=result.memory is not None, next_memory=result.remembered is not None
        )
        own_id = update_id("study", task.task_id, participant_id)
        update = Update.trusted(
            {
                "kind": "update",
                "update_id": own_id,
                "task_id": task.task_id,
                "run_id": "study",
                "participant_id": participant_id,
                "base_version": task.base_version,
                "payload": self._reply,
                "memory": result.memory,
                "next_memory": None if result.remembered is None else own_id,
                "num_examples": result.num_examples,
                "num_steps": result.num_steps,
                "metrics": result.metrics,
                "train_s": work.train_s,
                "chunks": None,
                "codec": None,
            }
        )
        self._lazy.sent(own_id, device.member.index, result)
        self._events.append(UpdateArrived(self._deliveries, update, result.payload))

    def _drop_out(self, device: Device, work: Work) -> None:
        self._outcome.dropouts += 1
        i = device.member.index
        device.away = True
        if work.drops == "declines":
            task = work.task
            self._events.append(
                TaskDeclined(task.participant_id, task.task_id, "study", "not_idle", retry_after_s=NEVER_S)
            )
        else:
            device.session += 1
        self._plan(self._now + work.away_s, self._come_back, i)

    def _come_back(self, i: int) -> None:
        self._devices[i].away = False
        self._say_hello(i)

    def _withdraw(self, command: Withdraw) -> None:
        if not self._core.stopping:  # at the end all tasks are
            self._outcome.tasks_withdrawn += 1
        i = self._index[command.participant_id]
        device = self._devices[i]
        if device.work is not None and device.work.task.task_id == command.task_id:
            del self._working[device.work.number]
            self._lazy.drop(device.work.number)
            device.work = None
            self._say_hello(i)

    def _say_hello(self, i: int) -> None:
        self._events.append(ParticipantSeen(self._devices[i].hello(self._federation.num_examples[i])))

    def _plan_turn(self, i: int, device: Device) -> None:
        if math.isfinite(device.presence.until):
            self._plan(device.presence.until, self._turn, i)

    def _turn(self, i: int) -> None:
        device = self._devices[i]
        planned = device.ends_at() is not None
        if planned:
            # Its work ends at this very moment too, and that event comes later in the order.
            self._plan(self._now, self._turn, i)
            return
        device.turn()
        self._plan_turn(i, device)
        self._plan_end(device)
        if device.work is None and not device.away:
            self._say_hello(i)

    def _plan_arrival(self, i: int) -> None:
        assert self._arrivals_per_s is not None
        wait_s = float(self._arrival_rngs[i].standard_exponential()) / self._arrivals_per_s
        self._plan(self._now + wait_s, self._arrive, i)

    def _arrive(self, i: int) -> None:
        self._plan_arrival(i)
        device = self._devices[i]
        if device.work is not None or device.away or not device.presence.on:
            self._outcome.missed_arrivals += 1
            return
        device.offers = True
        self._say_hello(i)

    # Records

    def _record(self, accept: Accept) -> None:
        update, rows = accept.update, self._outcome.updates
        rows.time_s.append(self._now)
        rows.participant.append(self._index[update.participant_id])
        rows.base_version.append(update.base_version)
        rows.staleness.append(accept.staleness)
        rows.client_weight.append(accept.client_weight)
        rows.tasks_out.append(self._core.tasks_out)
        rows.bytes_up.append(self._sent_bytes)
        rows.bytes_down.append(self._issued_bytes)

    def _evaluate(self, command: Evaluate) -> None:
        version = command.version
        metrics = self._federation.evaluate(self._core.parameters)
        check_metrics_of(metrics)
        found = Evaluation(
            version, self._now, self._core.accepted, self._sent_bytes, self._issued_bytes, metrics,
            self._outcome.tasks_issued, self._outcome.tasks_withdrawn,
        )  # fmt: skip
        self._outcome.evaluations.append(found)
        if self._on_evaluation is not None:
            self._on_evaluation(found)
        if not all(math.isfinite(v) for v in metrics.values()):
            self._diverged()
        self._events.append(EvaluationArrived(version, metrics))

    def _diverged(self) -> None:
        self._outcome.finished, self._outcome.diverged_s = "diverged", self._now

    def _plan(self, at: float, happen: Callable[[int], None], about: int) -> None:
        self._planned += 1
        heapq.heappush(self._heap, (at, self._planned, happen, about))


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Make Python search for cycles less often: the engine makes none, and each search goes through all it holds."""
    often, *others = gc.get_threshold()
    gc.set_threshold(max(often, COLLECT_EVERY) if often else 0, *others)
    try:
        yield
    finally:
        gc.set_threshold(often, *others)
