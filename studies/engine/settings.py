"""What a study says about its runs: `RunSettings` where time is virtual and nobody need be asked whether it lives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedmq.coordinator.settings import RunSettings, StepAssignment, StopSettings
from fedmq.studies.value import Value

NEVER_S = 1e15
"""Later than any study ends, and small enough for sums of it to stay finite and ordered."""


class StudyRun(Value):
    """One run in virtual time. How tasks go out:

    closed loop         `concurrency` tasks are kept out (asynchronous strategies)
    open loop           `arrivals_per_s`: participants offer themselves for one task each, as Poisson processes
    synchronous rounds  by the strategy's own cohort (FedAvg), with its over-selection
    """

    stop: StopSettings
    concurrency: Annotated[int, Field(ge=1)] = 16
    arrivals_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Of all participants together; each has its own process at an equal share of this rate. One that is busy or off
    when its turn comes lets it pass."""
    selection: Literal["uniform", "least_used"] = "uniform"
    client_weights: Literal["equal", "examples", "sqrt", "log", "quality"] = "equal"
    max_staleness: Annotated[int, Field(ge=0)] | None = None
    steps: StepAssignment | None = None
    """Steps by measured speed; None asks all participants for the same training."""
    lease_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """None: a task holds its slot until its participant is heard from."""
    evaluate_interval_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Virtual time between evaluations, at least; 0 evaluates every version."""

    def run_settings(self, participants: int, seed: int) -> RunSettings:
        """For the core. The run begins when all participants are here, so that selection is among all of them."""
        return RunSettings(
            run_id="study",
            seed=seed,
            concurrency=self.concurrency if self.arrivals_per_s is None else participants,
            min_participants=participants,
            selection=self.selection,
            client_weights=self.client_weights,
            max_staleness=self.max_staleness,
            steps=self.steps,
            lease_s=NEVER_S if self.lease_s is None else self.lease_s,
            participant_timeout_s=NEVER_S,
            evaluate_interval_s=self.evaluate_interval_s,
            stop=self.stop,
        )
