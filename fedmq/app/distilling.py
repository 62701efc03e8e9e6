"""An app's `distil(ensemble, start, seed)`: the step from an ensemble of models to the next version (strategy feddf).

    ensemble    the buffer's models with their weights, (parameters, weight), as often as they are asked for; it has a
                len. The weights are above 0 and their sum is 1
    start       the parameters to begin with: the plain mean
    seed        seed of everything that is drawn
    returns     name -> array, with the floating-point tensors of `start`; frozen ones may be left out

fedmq.Distiller is one for Keras and PyTorch models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import numpy as np

from fedmq.schemas.errors import AppError, shown
from fedmq.schemas.parameters import Parameters


class Functions(Protocol):
    """The part of an app (fedmq.app.app.App) that is needed here."""

    @property
    def path(self) -> Any: ...

    def need(self, name: str, why: str) -> Callable[..., Any]: ...


def distilled_by(
    app: Functions, ensemble: Any, start: Parameters, seed: int, needed: Collection[str] = ()
) -> Parameters:
    """Call the app's function, and return the floating-point tensors of `start` that it made.

    Raises AppError, also if one of the `needed` ones is missing.
    """
    made = app.need("distil", "to distil versions, as the strategy asks for")(ensemble, start, seed)
    if not isinstance(made, Mapping):
        raise AppError(f"distil in {app.path} gave {shown(made)}, expected name -> array")
    missing = [name for name in needed if name not in made]
    if missing:
        raise AppError(
            f"distil in {app.path} gave no tensor {shown(missing[0])}, expected the floating-point ones of `start`, "
            "apart from frozen ones"
        )
    tensors = {name: np.asarray(made[name]) for name in start.averaged() if name in made}
    return Parameters(tensors, start.non_trainable & tensors.keys())
