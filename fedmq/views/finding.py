"""One result of `fedmq doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedmq.schemas.errors import FedmqError

Level = Literal["ok", "warning", "wrong"]
Role = Literal["participant", "coordinator"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `advice` says what to do if it is not ok."""

    level: Level
    what: str
    advice: str = ""
    error: FedmqError | None = None
