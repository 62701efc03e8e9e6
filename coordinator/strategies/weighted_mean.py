"""Weighted means of deltas: a new version of every K updates.

    at K updates   x ← x + η_g·(1/D)·Σ w_i·Δ_i

A strategy of this form is two functions, and only the first must be written:

    weight(self, update, staleness)    gives w_i; a third parameter, `state`, shows it what came before
    divisor(self, state)               gives D; without it D is K

Everything else is here: the sum, the step, the checkpoint, and the check of what the two functions give. An error in
them is an AppError that names the strategy, and it leaves the state as it was.

Sums are float32 for most models. So w_i is at most 1e30, and a D too small for 1/D in the sums' dtype moves nothing,
as a D of 0 does: no weight makes a version that is not finite.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from numbers import Real
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass, is_pydantic_dataclass
from pydantic_core import ErrorDetails

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.math.next_version import next_version
from fedmq.coordinator.strategies.math.server_optimizers import ServerOptimizer
from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate
from fedmq.coordinator.strategies.rounds_or_buffer import Buffered, MinUpdates, TimeoutS, check_timeout
from fedmq.coordinator.strategies.states.buffer import BufferState, check_coefficient, scaled
from fedmq.schemas.errors import AppError, ConfigError, shown
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Parameters

MOST_WEIGHT = 1e30
"""Largest weight: times a delta of 1e8 it is still a float32."""
_SAFE_DIVISOR = 1e-30
"""Divisors from here up have a reciprocal in every dtype that sums have."""


class MeanOfDeltas(Buffered):
    """The mechanism, for a strategy that declares all of its hyper-parameters itself.

    Non-trainable floating tensors (BatchNorm statistics) take the same mean with rate 1 and no server optimiser.
    """

    server_optimizer: ServerOptimizer | None = None
    """Server optimiser; it takes Δ̄ = (1/D)·Σ w·Δ, with a learning rate of its own."""
    weight: Callable[..., float]
    """The weight w: weight(update, staleness) or weight(update, staleness, state), a number from 0 to 1e30."""
    takes_new_tensors: ClassVar[bool] = True
    _weight_takes_state = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if callable(getattr(cls, "weight", None)):
            cls._weight_takes_state = "state" in inspect.signature(cls.weight).parameters

    def divisor(self, state: Any) -> float:
        """Return D, a finite number of 0 or more; at 0, or too near to it for 1/D, nothing moves."""
        return float(state.count)

    @property
    def _rate(self) -> float:
        """η_g; 1 if the strategy has no server learning rate. Its name is private: tuning looks for public rates."""
        return 1.0

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def reply(self) -> Reply:
        return "delta"

    def init(self, parameters: Parameters) -> BufferState:
        return BufferState.zero(parameters, self.server_optimizer)

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> BufferState:
        return self.init(parameters).load(arrays, scalars)

    def accumulate(self, state: Any, update: ClientUpdate, staleness: int) -> Any:
        """Add w·Δ to the sums. Raises AppError if `weight` fails, before anything is added."""
        state.check(update)
        check_coefficient(update, update.client_weight)
        seen = (update, staleness, state) if self._weight_takes_state else (update, staleness)
        state.accumulate(update, self._number("weight", MOST_WEIGHT, *seen))
        return state

    def weights(self, state: Any) -> tuple[float, ...]:
        """Return η_g·w/D of each update; with a server optimiser, its share w/D of Δ̄."""
        mean = self._per_divisor(state)
        return tuple(self._rate * mean * c for c in state.coefficients)

    def aggregate(self, state: Any, parameters: Parameters) -> tuple[Any, Parameters]:
        mean = self._per_divisor(state)
        if self.server_optimizer is None:
            made = state.step(parameters, self._rate, mean)
        else:
            made, new = next_version(parameters)
            for name, total in state.sums.items():
                x, out = parameters[name], new[name]
                if name in parameters.non_trainable:
                    arithmetic.step(x, mean, total, out)
                else:
                    state.optimize(self.server_optimizer, name, x, scaled(total, mean), out)
        state.clear()
        return state, made

    def _per_divisor(self, state: Any) -> float:
        divisor = self._number("divisor", math.inf, state)
        if divisor >= _SAFE_DIVISOR:
            return 1.0 / divisor
        smallest = max((float(np.finfo(acc.dtype).tiny) for acc in state.sums.values()), default=_SAFE_DIVISOR)
        return 1.0 / divisor if divisor >= smallest * max(1.0, self._rate) else 0.0

    def _number(self, function: str, most: float, *seen: Any) -> float:
        """Call `weight` or `divisor`. Raises AppError unless it gives a finite number from 0 to `most`."""
        try:
            got = getattr(self, function)(*seen)
            number = got if type(got) is float else float(got) if isinstance(got, Real) else math.nan
        except Exception as e:
            raise self._wrong(function, most, f"raised {type(e).__name__}: {e};") from e
        if 0 <= number <= most and number != math.inf:
            return number
        raise self._wrong(function, most, f"gave {shown(got)},")

    def _wrong(self, function: str, most: float, what: str) -> AppError:
        limit = f", at most {most:g}" if math.isfinite(most) else ""
        expected = f"expected a finite number of 0 or more{limit}"
        return AppError(f"strategy {type(self).__name__}: {function}() {what} {expected}.{self._advice(function)}")

    def _advice(self, function: str) -> str:
        """Return what a user can do about a wrong `function`; an empty text if the strategy is one of fedmq's own."""
        home = type(self).__module__
        if home.startswith("fedmq."):
            return ""
        file = getattr(sys.modules.get(home), "__file__", None)
        place = f"{function}()" if file is None else f"{function}() in {file}"
        return f" Mend {place} and start again. A coordinator loses nothing: the update waits at the broker"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class WeightedMean(MeanOfDeltas):
    """A weighted mean of deltas, for a plain dataclass to extend with a `weight`; see the top of this file.

    @dataclasses.dataclass(frozen=True)
    class Impatient(WeightedMean):
        patience: int = 2

        def weight(self, update, staleness):
            return update.client_weight if staleness < self.patience else 0.0
    """

    buffer_size: Annotated[int, Field(ge=1)] = 10
    """K: updates in a version."""
    server_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """η_g."""
    buffer_timeout_s: TimeoutS | None = field(default=None, kw_only=True)
    min_updates: MinUpdates | None = field(default=None, kw_only=True)
    """None means 1."""

    _timeout = model_validator(mode="after")(check_timeout)

    @property
    def _rate(self) -> float:
        return self.server_learning_rate

    def __post_init__(self) -> None:
        """Check the inherited hyper-parameters of a plain dataclass, which checks nothing by itself.

        Raises ConfigError for a value that is not allowed. Raises AppError if there is no `weight`, or if the class
        declares fields without the decorator.
        """
        if is_pydantic_dataclass(type(self)):
            return
        if not hasattr(self, "weight"):
            raise AppError(f"strategy {type(self).__name__} has no weight(self, update, staleness): write one")
        if undeclared := _undeclared(type(self)):
            raise AppError(
                f"strategy {type(self).__name__} declares {', '.join(undeclared)}, but it is not a dataclass, so the "
                "values are not set: write @dataclasses.dataclass(frozen=True) above the class"
            )
        base = next(kind for kind in type(self).__mro__ if is_pydantic_dataclass(kind))
        names = [f.name for f in fields(base)]
        try:
            checked = base(**{name: getattr(self, name) for name in names})
        except ValidationError as e:
            raise ConfigError(f"strategy {type(self).__name__}: {'; '.join(map(_mistake, e.errors()))}") from None
        for name in names:
            object.__setattr__(self, name, getattr(checked, name))


def _undeclared(strategy: type) -> list[str]:
    """Return the names that a class annotates as a dataclass would, without being one: its __init__ ignores them."""
    plain = [k for k in strategy.__mro__ if issubclass(k, WeightedMean) and "__dataclass_fields__" not in vars(k)]
    found = [pair for kind in plain for pair in inspect.get_annotations(kind).items()]
    return [name for name, annotation in found if "ClassVar" not in str(annotation)]


def _mistake(found: ErrorDetails) -> str:
    """Return what pydantic found wrong, in one line."""
    place = ".".join(map(str, found["loc"]))
    return f"got {place} = {shown(found['input'])}: {found['msg']}" if place else found["msg"]
