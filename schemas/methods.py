"""Tensors that a method's tasks and updates carry beside the model's own, and the memory of its participants.

A `reply` names the method's side on the participant. A tensor `w` of the group `control` travels as `control:w`, after
the model's own tensors and in the same body. The codec, its limits and its checks therefore need not know of groups.
The tensors of a group are the model's trainable floating-point tensors, with their dtypes and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from fedmq.schemas.errors import AppError, SpecMismatch, shown
from fedmq.schemas.messages import Reply, Task, Uplink
from fedmq.schemas.parameters import Parameters, is_floating
from fedmq.schemas.tensors import ModelSpec, TensorSpec, averaged_spec

CONTROL = "control"
"""SCAFFOLD's control variates: c in a task, the change of c_i in an update."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method's part in the messages (see the module docstring)."""

    task: tuple[str, ...] = ()
    """Groups that a task carries."""
    update: tuple[str, ...] = ()
    """Groups that an update carries."""
    remembers: bool = False
    """True if a participant keeps the sum of its accepted updates (docs/decisions/0009)."""
    corrected: bool = False
    """True if the trainer gets a correction of each gradient."""


METHODS: Mapping[Reply, Method] = MappingProxyType(
    {
        "delta": Method(),
        "parameters": Method(),
        "change": Method(remembers=True),
        "scaffold": Method(task=(CONTROL,), update=(CONTROL,), remembers=True, corrected=True),
    }
)


MemoryKind = Literal["none", "soft", "hard"]
"""The memory that a participant keeps of its accepted updates. A hard one is part of the model: without it no update of
the participant can be taken. A soft one (error feedback) is work that was not sent yet: without it the participant goes
on from nothing. Two updates that were made from one memory are never both taken, whichever it is."""


def memory_kind(reply: Reply, uplink: Uplink | None) -> MemoryKind:
    """Return the kind of memory that tasks with this reply and this codec need."""
    if METHODS[reply].remembers:
        return "hard"
    return "soft" if uplink is not None and uplink.remembers else "none"


def has_memory(task: Task) -> bool:
    """Return True if the task's method or its codec has a memory on the participant."""
    return task.work == "train" and memory_kind(task.reply, task.uplink) != "none"


def trained(parameters: Parameters) -> tuple[str, ...]:
    """Return the names of the tensors that gradients step: floating-point and trainable. A group has one tensor for
    each."""
    return tuple(n for n, a in parameters.items() if is_floating(a.dtype) and n not in parameters.non_trainable)


def update_spec(reply: Reply, model: ModelSpec) -> ModelSpec:
    """Return the spec of an update of this model: its floating-point tensors, then those of the method's groups."""
    own = averaged_spec(model)
    beside = [
        TensorSpec(f"{group}:{s.name}", s.dtype, s.shape) for group in METHODS[reply].update for s in own if s.trainable
    ]
    return (*own, *beside)


def join(parameters: Parameters, groups: Mapping[str, Mapping[str, object]]) -> Parameters:
    """Return the tensors of a message: the model's, then each group's under `group:name`.

    Raises AppError if a name of the model's would be read as one of a group.
    """
    if not groups:
        return parameters
    for name in parameters:
        if name.partition(":")[0] in groups and ":" in name:
            raise AppError(
                f"the model's tensor {shown(name)} has the prefix of the method's group {name.partition(':')[0]!r}: "
                "give it another name"
            )
    beside = {f"{group}:{n}": a for group, tensors in groups.items() for n, a in tensors.items()}
    return Parameters({**parameters, **beside}, parameters.non_trainable)  # type: ignore[dict-item]


def split(tensors: Parameters, groups: tuple[str, ...]) -> tuple[Parameters, dict[str, Parameters]]:
    """Return the model's tensors, and each group's under their plain names. They are views: nothing is copied."""
    if not groups:
        return tensors, {}
    found: dict[str, dict[str, object]] = {group: {} for group in groups}
    own: list[str] = []
    for name in tensors:
        group, colon, rest = name.partition(":")
        if colon and group in found:
            found[group][rest] = tensors[name]
        else:
            own.append(name)
    return tensors.select(own), {group: Parameters(inside) for group, inside in found.items()}  # type: ignore[arg-type]


def check_groups(parameters: Parameters, beside: Mapping[str, Parameters]) -> None:
    """Raise SpecMismatch unless each group has exactly the tensors that this model trains."""
    if not beside:
        return
    expected = [(n, parameters[n].dtype, parameters[n].shape) for n in trained(parameters)]
    for group, tensors in beside.items():
        if [(n, a.dtype, a.shape) for n, a in tensors.items()] != expected:
            raise SpecMismatch(
                f"the group {group!r} has the tensors {list(tensors)[:3]}..., expected the model's trainable ones, "
                f"{[n for n, *_ in expected][:3]}..., in their order and with their dtypes and shapes"
            )
