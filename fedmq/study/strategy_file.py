"""A strategy from the user's own file, in a study.

Each process builds it anew, because pickle cannot import its class. Everything else is the strategy's own: a federation
file deploys exactly what was studied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedmq.config.custom_strategy import CustomStrategy, build


@dataclass(frozen=True)
class StrategyFromFile:
    """The file and the options of a strategy, as in a [strategy] table with `name = "custom"`."""

    file: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """Files that decide the strategy besides its options."""
        return (self.file,)

    def with_field(self, name: str, value: Any) -> StrategyFromFile:
        """Return the strategy with another value of one option. Raises AppError if the file refuses it."""
        changed = StrategyFromFile(self.file, {**self.options, name: value})
        changed.built()
        return changed

    def settings(self) -> dict[str, Any]:
        """Return the [strategy] table."""
        return {"name": "custom", "file": self.file, "options": dict(self.options)}

    def built(self) -> Any:
        """Return the strategy itself, built on first use. Raises AppError."""
        if "_built" not in self.__dict__:
            object.__setattr__(self, "_built", build(CustomStrategy(self.file, dict(self.options))))
        return self.__dict__["_built"]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_built":  # pickle and copy ask before there are any fields
            raise AttributeError(name)
        return getattr(self.built(), name)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "options": self.options}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
