"""The next version of a model: its arrays before a strategy writes them, in one block where they can be."""

from __future__ import annotations

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.schemas.layout import layout_of
from fedmq.schemas.parameters import Array, Parameters, is_floating


def next_version(parameters: Parameters) -> tuple[Parameters, dict[str, Array]]:
    """Parameters whose floating tensors are uninitialised, and these tensors by name; the others are carried over."""
    layout = layout_of(parameters) if parameters.layout is None else parameters.layout
    if layout is None or not is_floating(layout.dtype):
        new = arithmetic.allocate_like({n: parameters[n] for n in parameters.averaged()})
        return parameters.replace({**parameters, **new}), new
    made = Parameters.in_block(layout, arithmetic.flat(layout.size, layout.dtype), parameters.non_trainable)
    return made, dict(made)


def blocks(*parameters: Parameters) -> list[Array] | None:
    """The flat arrays of several models or payloads that lie alike in one block each; None where they do not."""
    layout = parameters[0].layout
    if layout is None:
        return None
    found = [p.block for p in parameters if p.layout is layout and p.block is not None]
    return found if len(found) == len(parameters) else None
