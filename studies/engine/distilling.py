"""Distillation in a study: the problem's own function, which takes no virtual time.

An error of that function ends the study. A coordinator would go on with the plain mean, which nobody wants to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedmq.coordinator.decisions.commands import Distil
from fedmq.coordinator.decisions.events import Distilled
from fedmq.coordinator.strategies.protocol import Distils, Strategy
from fedmq.schemas.errors import AppError, ConfigError, shown
from fedmq.schemas.parameters import Array, Parameters
from fedmq.studies.problems.problem import Federation

Models = Sequence[tuple[Parameters, float]]
"""The ensemble's models, each with the weight of its logits."""
DistilFunction = Callable[[Models, Parameters, int], Mapping[str, Array]]


def distil_of(federation: Federation) -> DistilFunction | None:
    """Return the federation's optional `distil(ensemble, start, seed)`, which gets whole models."""
    found: DistilFunction | None = getattr(federation, "distil", None)
    return found


def check_distils(strategy: Strategy[Any], federation: Federation) -> None:
    """Raise ConfigError if the strategy distils, and the problem cannot."""
    if isinstance(strategy, Distils) and distil_of(federation) is None:
        raise ConfigError(
            f"the strategy {strategy.name} distils each version, and the problem has no function for that: give the "
            "app a distil(ensemble, start, seed)"
        )


def distilled(federation: Federation, order: Distil) -> Distilled:
    """Answer an order of the core."""
    distil, parts = distil_of(federation), getattr(federation, "frozen", None)
    assert distil is not None, "checked at the start"
    part = None if parts is None else parts.at(order.version - 1)

    def whole(parameters: Parameters) -> Parameters:
        return parameters if part is None else part.join(parameters)

    asked = order.ensemble
    models = [(whole(model), weight) for model, weight in zip(asked.models, asked.weights, strict=True)]
    made = distil(models, whole(asked.start), order.seed)
    names = asked.start.averaged()
    missing = [name for name in names if name not in made]
    if missing:
        raise AppError(
            f"distil gave no tensor {shown(missing[0])}, expected all floating-point ones that are not frozen"
        )
    return Distilled(order.version, Parameters({n: made[n] for n in names}, asked.start.non_trainable & set(names)))
