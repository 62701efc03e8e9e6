"""A method's side on the participant, as pure functions: the start of a task's training, the tensors of its update,
and the memory that the update leaves.

The memory of a method is the sum of everything that the participant sent and the coordinator accepted, in float64. So
it agrees with the coordinator's books to the last rounding, however often tensors of a coarser dtype were sent.

    change      sent: y - m            m ← m + sent          m is 0 at first: the first update is y itself
    scaffold    sent: Δc beside Δy     c_i ← c_i + Δc        Δc = (x - y)/(K·η) - c; see coordinator.strategies.scaffold
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.memory import Memory
from fedmq.schemas.errors import TrainerError
from fedmq.schemas.messages import Reply, TrainingConfig
from fedmq.schemas.methods import CONTROL, METHODS, check_groups, join, split, trained
from fedmq.schemas.parameters import Parameters

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Start:
    """The start of a training."""

    parameters: Parameters
    beside: Mapping[str, Parameters]
    """The task's groups of tensors beside the parameters."""
    memory: Memory | None
    correction: Parameters | None
    """c - c_i, which is added to each gradient; None if the method has no correction."""


@dataclass(frozen=True, slots=True)
class Made:
    """The result of a training."""

    tensors: Parameters
    """Tensors of the update, its groups among them."""
    next_memory: Mapping[str, Array] | None
    """The method's memory once the update is accepted; None if the method has none."""


def method_memory(reply: Reply, memory: Memory | None) -> Memory | None:
    """Return the method's own memory; None if it has none, and if it is the codec's."""
    return memory if METHODS[reply].remembers else None


def replies_of(trainer: Any) -> tuple[Reply, ...]:
    """Return the replies that a participant with this trainer can send. Methods that correct gradients need a `train`
    with an argument `correction`."""
    return tuple(reply for reply, method in METHODS.items() if not method.corrected or takes_correction(trainer))


def takes_correction(trainer: Any) -> bool:
    """True if the trainer's `train` has an argument `correction`."""
    try:
        return "correction" in inspect.signature(trainer.train).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return False


def begin(reply: Reply, tensors: Parameters, memory: Memory | None) -> Start:
    """Return the start of a training on a task's tensors. Raises SpecMismatch if its groups do not fit its
    parameters."""
    method = METHODS[reply]
    parameters, beside = split(tensors, method.task)
    check_groups(parameters, beside)
    correction = None
    if method.corrected:
        control = beside[CONTROL]
        correction = control
        if memory is not None:
            own = memory.tensors
            correction = Parameters({n: (c - own[n]).astype(c.dtype) for n, c in control.items()})
    return Start(parameters, beside, memory, correction)


Code = Callable[[Parameters], Parameters]
"""Send an update's tensors in a codec, and return what the receiver makes of them."""


def make(  # noqa: PLR0917
    reply: Reply,
    start: Start,
    local: Mapping[str, Array],
    num_steps: int,
    config: TrainingConfig,
    code: Code = lambda tensors: tensors,
) -> Made:
    """Return the update's tensors, as they arrive, and the method's next memory, which is of these.

    The arrays are new, except for the reply "parameters".
    """
    tensors = _tensors(reply, start, local, num_steps, config)
    sent = code(tensors)
    if reply == "change":
        return Made(sent, _sum(start.memory, sent))
    if reply == "scaffold":
        return Made(sent, _sum(start.memory, split(sent, (CONTROL,))[1][CONTROL]))
    return Made(sent, None)


def _tensors(
    reply: Reply, start: Start, local: Mapping[str, Array], num_steps: int, config: TrainingConfig
) -> Parameters:
    base, memory = start.parameters, start.memory
    names = base.averaged()
    flags = base.non_trainable & frozenset(names)
    if reply == "parameters":
        if isinstance(local, Parameters) and local.layout is not None and local.layout is base.layout:
            return local
        return Parameters({n: local[n] for n in names}, flags)
    if reply == "change":
        return Parameters({n: _change(local[n], memory, n) for n in names}, flags)
    delta = _delta(base, local)
    if reply == "delta":
        return delta
    return join(delta, {CONTROL: _control_changes(start, local, num_steps, config)})


def _control_changes(
    start: Start, local: Mapping[str, Array], num_steps: int, config: TrainingConfig
) -> dict[str, Array]:
    """Return Δc = (x - y)/(K·η) - c; 0 if no step was made."""
    if config.learning_rate is None:
        raise TrainerError("SCAFFOLD needs training.learning_rate, and this task has none: set it on the coordinator")
    found = {}
    for name in trained(start.parameters):
        x, c = start.parameters[name], start.beside[CONTROL][name]
        mean_gradient = (x.astype(np.float64) - local[name]) / (max(num_steps, 1) * config.learning_rate)
        with np.errstate(over="ignore"):
            found[name] = (mean_gradient - c).astype(c.dtype) if num_steps else np.zeros_like(c)
    return found


def _change(local: Array, memory: Memory | None, name: str) -> Array:
    if memory is None:
        return np.array(local)
    with np.errstate(over="ignore"):
        return np.asarray((local.astype(np.float64) - memory.tensors[name]).astype(local.dtype))


def _sum(memory: Memory | None, sent: Mapping[str, Array]) -> dict[str, Array]:
    if memory is None:
        return {n: a.astype(np.float64) for n, a in sent.items()}
    return {n: memory.tensors[n] + a for n, a in sent.items()}


def _delta(base: Parameters, local: Mapping[str, Array]) -> Parameters:
    """Return local - base, in one block if the base lies in one."""
    names = base.averaged()
    flags = base.non_trainable & set(names)
    if base.layout is None or base.block is None or base.layout.dtype.itemsize == 2:
        return Parameters({n: _difference(local[n], base[n]) for n in names}, flags)
    if isinstance(local, Parameters) and local.layout is base.layout and local.block is not None:
        return Parameters.in_block(base.layout, np.subtract(local.block, base.block), flags)
    made = Parameters.in_block(base.layout, np.empty_like(base.block), flags)
    for name, out in made.items():
        np.subtract(local[name], base[name], out=out)
    return made


def _difference(local: Array, base: Array) -> Array:
    if local.dtype.itemsize == 2:
        # A float16 overflow becomes infinity, which check_finite reports. numpy's own warning would say less.
        with np.errstate(over="ignore"):
            return (local.astype(np.float32) - base.astype(np.float32)).astype(local.dtype)
    return np.asarray(np.subtract(local, base))
