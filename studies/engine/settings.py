"""The settings of a study's runs: `RunSettings` for virtual time, without any check that participants are alive."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedmq.coordinator.settings import DownlinkSettings, RunSettings, StepAssignment, StopSettings, UplinkSettings
from fedmq.studies.value import Value

NEVER_S = 1e15
"""A time later than the end of any study. Sums of it stay finite and ordered."""


class StudyRun(Value):
    """One run in virtual time. Tasks go out in one of three ways:

    closed loop         `concurrency` tasks are kept out (asynchronous strategies)
    open loop           `arrivals_per_s`: participants offer themselves for one task each, as Poisson processes
    synchronous rounds  the strategy's own cohort decides (FedAvg), with its over-selection
    """

    stop: StopSettings
    concurrency: Annotated[int, Field(ge=1)] = 16
    arrivals_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Arrivals of all participants together. Each has a process of its own, with an equal share of this rate. A
    participant that is busy or off when its turn comes lets it pass."""
    selection: Literal["uniform", "least_used"] = "uniform"
    client_weights: Literal["equal", "examples", "sqrt", "log", "quality"] = "equal"
    max_staleness: Annotated[int, Field(ge=0)] | None = None
    steps: StepAssignment | None = None
    """Steps by measured speed. None asks all participants for the same training."""
    lease_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Lease of a task. None: a task holds its slot until its participant is heard from."""
    evaluate_interval_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Shortest virtual time between two evaluations. 0 evaluates every version."""
    evaluate_every_updates: Annotated[int, Field(ge=1)] | None = None
    """Accepted updates between two evaluations. The newest version is evaluated after n, 2n, 3n ... updates."""

    ties: Literal["seed"] | None = None
    """Order of tasks that end at one time, to the last bit of it. None: the one that went out first comes first.
    `seed`: the seed draws the order (studies.engine.ties)."""

    uplink: UplinkSettings | None = None
    """Codec of the updates, as in a federation file's [uplink] table. None sends plain tensors."""
    downlink: DownlinkSettings | None = None
    """Form of the model in tasks, as in a federation file's [downlink] table. None sends the model as it is."""

    def run_settings(self, participants: int, seed: int) -> RunSettings:
        """Return the core's settings. The run begins when all participants are there, so that any can be selected."""
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
            lapse_backoff_s=0.0,
            max_participants=participants,
            evaluate_interval_s=self.evaluate_interval_s,
            evaluate_every_updates=self.evaluate_every_updates,
            stop=self.stop,
        )
