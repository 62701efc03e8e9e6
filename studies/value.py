"""The base of the tables in a study's file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from fedmq.schemas.told import Told


class Value(BaseModel, metaclass=Told):
    """A frozen value that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
