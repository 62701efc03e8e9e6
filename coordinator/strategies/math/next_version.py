"""The next version of a model: arrays for a strategy to write, in one block of memory if that is possible."""

from __future__ import annotations

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.schemas.layout import layout_of
from fedmq.schemas.parameters import Array, Parameters, is_floating


def next_version(parameters: Parameters) -> tuple[Parameters, dict[str, Array]]:
    """Return parameters with uninitialised floating tensors, and these tensors by name; others are carried over."""
    layout = layout_of(parameters) if parameters.layout is None else parameters.layout
    if layout is None or not is_floating(layout.dtype):
        new = arithmetic.allocate_like({n: parameters[n] for n in parameters.averaged()})
        return parameters.replace({**parameters, **new}), new
    made = Parameters.in_block(layout, arithmetic.flat(layout.size, layout.dtype), parameters.non_trainable)
    return made, dict(made)


def blocks(*parameters: Parameters) -> list[Array] | None:
    """Return the blocks of several models or payloads that share one layout; None unless all of them do."""
    layout = parameters[0].layout
    if layout is None:
        return None
    found = [p.block for p in parameters if p.layout is layout and p.block is not None]
    return found if len(found) == len(parameters) else None
