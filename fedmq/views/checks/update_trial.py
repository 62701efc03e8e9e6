"""One update through the decision core and the strategy, in memory: the doctor's look at a strategy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fedmq.coordinator.decisions.commands import Discard, IssueTask
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import ParticipantSeen, Started, UpdateArrived
from fedmq.coordinator.decisions.failures import StrategyFailed
from fedmq.coordinator.decisions.records import Snapshot
from fedmq.coordinator.decisions.versions.model import Model
from fedmq.coordinator.settings import DownlinkSettings, RunSettings, StopSettings
from fedmq.coordinator.strategies.protocol import MEMORY, Strategy, arrivals
from fedmq.schemas.errors import AppError, StrategyError
from fedmq.schemas.local.blame import line_of
from fedmq.schemas.messages import Hello, Reply, Task, TrainingConfig, Update
from fedmq.schemas.parameters import Parameters

RUN_UID = "00000000"


class UpdateTrial:
    """A run that exists in memory alone, and gets one update."""

    def __init__(
        self,
        run: RunSettings,
        strategy: Strategy[Any],
        training: TrainingConfig,
        initial: Parameters,
        downlink: DownlinkSettings | None = None,
    ) -> None:
        """Begin the run. Raises ConfigError if the strategy refuses the model, and StrategyError if it raises.

        The run asks for as few participants as the strategy can work with, and no limit or goal ends it.
        """
        self._strategy, self._initial = strategy, initial
        self._others = 0 if strategy.cohort is None else strategy.cohort.min_updates - 1
        unlimited = {
            "min_participants": 1,
            "max_participants": max(run.max_participants, 1 + self._others),
            "max_per_user": None,
            "stop": StopSettings(max_time_s=1e9),
        }
        self._run = run.model_copy(update=unlimited)
        try:
            self._core = Core(self._run, strategy, training, initial, RUN_UID, evaluates=True, downlink=downlink)
            self._core.check_finite()
            self._tensors = self._core.task_tensors
        except StrategyFailed as failed:
            raise _shown(failed) from failed

    def task(self, participant_id: str, num_examples: int, replies: Sequence[Reply]) -> tuple[Task, Parameters]:
        """Return the first task that a participant with such a trainer gets, and its tensors.

        Raises AppError if it would get none, and StrategyError if the strategy raises.
        """
        if self._strategy.reply not in replies:
            raise AppError(
                "the trainer cannot do the strategy's tasks: its train has no argument `correction`, to be added to "
                "each gradient (see docs/guide.md)"
            )
        ids = [participant_id, *(f"doctor.{number}" for number in range(self._others))]
        try:
            commands = self._core.step(Started(), 0.0)
            for name in ids:
                hello = Hello(participant_id=name, session_id="s", num_examples=num_examples, replies=tuple(replies))
                commands += self._core.step(ParticipantSeen(hello), 0.0)
        except StrategyFailed as failed:
            raise _shown(failed) from failed
        ours = [c for c in commands if isinstance(c, IssueTask) and c.participant_id == participant_id]
        if not ours:
            raise AppError(f"a participant with {num_examples} examples and the replies {list(replies)} gets no task")
        task = Task(
            task_id=ours[0].task_id,
            run_id=self._run.run_id,
            participant_id=participant_id,
            base_version=0,
            reply=self._strategy.reply,
            training=ours[0].training,
            lease_s=ours[0].lease_s,
        )
        return task, self._tensors

    def take(self, update: Update, payload: Parameters) -> None:
        """Give the update to the core, and make a version of it alone.

        Between the two the state goes into a checkpoint and comes back, as after a crash. Raises StrategyError if the
        strategy raises or makes what is not finite, and AppError if the coordinator would discard the update.
        """
        try:
            for command in self._core.step(UpdateArrived(1, update, payload), 0.0):
                if isinstance(command, Discard):
                    raise AppError(f"the coordinator would discard its update as {command.reason}: {command.detail}")
            self._make_version(update, payload)
        except StrategyFailed as failed:
            raise _shown(failed) from failed

    def _make_version(self, update: Update, payload: Parameters) -> None:
        strategy, group = self._strategy, None if arrivals(self._strategy) is None else 0
        model = Model(strategy, self._initial)
        if strategy.cohort is not None:
            model.open_round(0.0)
        model.accumulate(update, payload, 0, 1.0, first=True, group=group)
        model.ready(strategy, 0.0)
        model = self._resumed(model)
        model.make_version(group, 1)
        model.check_finite()
        self._resumed(model)

    def _resumed(self, model: Model) -> Model:
        """Return the model as its checkpoint gives it back."""
        memories = {
            f"strategy/{MEMORY}{participant_id}/{name}": array
            for participant_id, arrays in model.changed_memories().items()
            for name, array in arrays.items()
        }
        arrays, scalars = model.arrays(), model.scalars()
        try:
            return Model.restore(self._strategy, Snapshot(arrays | memories, json.loads(json.dumps(scalars))))
        except Exception as error:
            raise model.failed("restore", error) from error


def _shown(failed: StrategyFailed) -> StrategyError:
    """Return the failure with the line of the user's own that raised."""
    if failed.failure.reason == "strategy_error":
        return StrategyError(f"its {failed.failure.function}() raised at {line_of(failed)}")
    return StrategyError(str(failed))
