"""Central evaluation, off the coordinator's loop. `fedmq.app.model_process` is the implementation that runs the app."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fedmq.coordinator.decisions.events import EvaluationArrived
from fedmq.schemas.parameters import Parameters


class Evaluator(Protocol):
    """Belongs to whoever made it, who also closes it: the service only submits."""

    def submit(self, version: int, parameters: Parameters, on_result: Callable[[EvaluationArrived], None]) -> None:
        """Evaluate some time soon; never blocks. `on_result` is called once, from any thread, also where it failed or
        a newer version took its place (no metrics, a `detail`)."""
