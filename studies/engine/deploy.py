"""The findings of a study as the tables of a federation file: the strategy that wins is deployed unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.engine.settings import StudyRun

_RUN_KEYS = ("concurrency", "selection", "client_weights", "max_staleness", "steps", "lease_s")


def federation_tables(strategy: Strategy[Any], training: TrainingConfig, run: StudyRun) -> str:
    """Return [run], [strategy] and [training] as TOML, [run] with the keys that a study decides.

    Keys at their defaults are left out.
    """
    own = getattr(strategy, "settings", None)
    found = own() if callable(own) else {"name": strategy.name} | _set_fields(strategy)
    return "\n\n".join(
        [
            _table("run", {k: v for k, v in _set_values(run).items() if k in _RUN_KEYS}),
            _table("strategy", found),
            _table("training", {k: v for k, v in _set_values(training).items() if k != "seed"}),
        ]
    )


def _table(name: str, values: Mapping[str, Any]) -> str:
    return "\n".join([f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())])


def _set_values(model: Any) -> dict[str, Any]:
    """Return the fields of a pydantic model that are not at their defaults."""
    found: dict[str, Any] = model.model_dump(exclude_defaults=True, exclude_none=True, mode="json")
    return found


def _set_fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are not at their defaults; nested dataclasses become named tables."""
    found = {}
    for f in fields(value):
        now = getattr(value, f.name)
        default = (
            f.default if f.default is not MISSING else f.default_factory() if callable(f.default_factory) else MISSING
        )
        if f.name == "name" or not f.init or now is None or now == default:
            continue
        nested = is_dataclass(now) and not isinstance(now, type)
        found[f.name] = {"name": now.name} | _set_fields(now) if nested else now
    return found


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(v) for v in value)}]"
    return json.dumps(value, ensure_ascii=False)
