"""The [participant] table of a federation file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ParticipantSettings(BaseModel):
    """Behaviour of the participants. One file serves all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spool_dir: str = "spool"
    """Folder of the spools. Each participant keeps its tasks and outbox in a folder of its own below it."""
    hello_interval_s: float = Field(default=15.0, gt=0)
    conditions: tuple[Literal["idle", "charging", "unmetered"], ...] = ()
    """Conditions that must all hold before a task is taken. The app file's `conditions(participant_id)` adds the user's
    own."""
    keep_trainer_s: float = Field(default=300.0, ge=0)
    """Seconds without a task after which the process with the trainer leaves. 0: after each task. inf: never."""
    retry_after_s: float = Field(default=60.0, ge=0)
    """Seconds that a decline for conditions asks the coordinator to wait before it sends another task."""
