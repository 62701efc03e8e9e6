"""A strategy from a file of one's own, in a study: built anew in each process, as its class has no home to be imported
from. Everything else is the strategy's own, so that what was studied is what a federation file deploys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedmq.config.custom_strategy import CustomStrategy, build


@dataclass(frozen=True)
class StrategyFromFile:
    """`file` has build_strategy(**options), as `name = "custom"` in a federation file names it."""

    file: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """What decides the strategy besides its options."""
        return (self.file,)

    def with_field(self, name: str, value: Any) -> StrategyFromFile:
        """With another value of one option. Raises AppError where the file refuses it."""
        changed = StrategyFromFile(self.file, {**self.options, name: value})
        changed.built()
        return changed

    def settings(self) -> dict[str, Any]:
        """As a [strategy] table."""
        return {"name": "custom", "file": self.file, "options": dict(self.options)}

    def built(self) -> Any:
        """The strategy itself, built on first use. Raises AppError."""
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
