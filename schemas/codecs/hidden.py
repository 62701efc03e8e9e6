"""The hidden state of a model: what all participants train from, moved by small coded steps.

    q_v = C(x_v - h_{v-1}),  h_v = h_{v-1} + decoded q_v,  h_0 = x_0         QAFeL (Ortega & Jafarkhani 2023)

x_v is the model of version v, and h_v its hidden state. What a step leaves out is in the next difference, so h follows
x. A run may make a step at every m-th version only ([downlink] step_every). Between two steps h stays as it is. Both
sides add in one order, element by element, in float32 (float64 if a tensor of the model is), and round to each tensor's
dtype after each step. So they have the same bits, whatever the machines are.

    step:<version>:<part>    a part of the step to this version, from the step before it
    <tensor>                 each tensor that no codec codes, as the newest version has it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fedmq.schemas.codecs.checked import check_parts
from fedmq.schemas.codecs.codec import Array, Codec
from fedmq.schemas.codecs.known import codec_of
from fedmq.schemas.codecs.names import STEP_CODECS
from fedmq.schemas.codecs.wire import Wire, flat
from fedmq.schemas.errors import AppError, MalformedMessage, SpecMismatch, shown
from fedmq.schemas.messages import Uplink
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import ModelSpec, spec_of

GROUP = "step"
MOST_STEPS = 32
"""Most steps that one task carries, and that the coordinator keeps."""
MOST_DIGITS = 19
"""Digits of the largest version."""


class Step(NamedTuple):
    """One step of a hidden state."""

    version: int
    """The version that it leads to."""
    parts: Mapping[str, Array]
    digest: str
    """Digest of the hidden state that it leads to."""

    @property
    def num_bytes(self) -> int:
        return sum(a.nbytes for a in self.parts.values())


def step_codec(order: Uplink | None) -> Codec:
    """Return the codec of the steps. Raises MalformedMessage for one that is not among STEP_CODECS."""
    codec = codec_of(order) if order is not None and order.codec in STEP_CODECS else None
    if codec is None:
        asked = "no codec" if order is None else f"the codec {order.codec!r}"
        raise MalformedMessage(f"the steps of a task have {asked}, expected one of {', '.join(STEP_CODECS)}")
    return codec


def wire_of(order: Uplink | None, spec: ModelSpec) -> Wire:
    """Return the steps' codec on the tensors of a model. Raises MalformedMessage as `step_codec` does."""
    return Wire(step_codec(order), False, spec)


def check_names(spec: ModelSpec) -> None:
    """Raise AppError if a tensor of the model would be read as a part of a step."""
    for tensor in spec:
        if tensor.name.startswith(f"{GROUP}:"):
            raise AppError(f"the model's tensor {shown(tensor.name)} begins as a step does: give it another name")


def parts_of_step(wire: Wire, parameters: Parameters, hidden: Parameters) -> dict[str, Array]:
    """Return the parts of the step that brings the hidden state to these parameters."""
    places = wire.places
    with np.errstate(over="ignore", invalid="ignore"):  # `after` makes what is not finite, and its caller looks
        difference = flat(parameters, places) - flat(hidden, places)
        parts = wire.codec.encode(difference, places, 0, {}).parts
    return {name: np.ascontiguousarray(array) for name, array in parts.items()}


def after(wire: Wire, hidden: Parameters, parts: Mapping[str, Array], plain: Mapping[str, Array]) -> Parameters:
    """Return the hidden state after a step. `plain` has the tensors that no codec codes.

    Raises MalformedMessage if the parts say something impossible.
    """
    places = wire.places
    with np.errstate(over="ignore", invalid="ignore"):
        values = flat(hidden, places) + wire.codec.decode(parts, places)
    return wire.tensors(values, plain)


def joined(steps: Sequence[Step], plain: Parameters) -> Parameters:
    """Return the tensors of a task with these steps. One without steps has no tensors."""
    if not steps:
        return Parameters({})
    parts = {f"{GROUP}:{step.version}:{name}": a for step in steps for name, a in step.parts.items()}
    return Parameters({**parts, **plain}, plain.non_trainable)


def applied(order: Uplink | None, hidden: Parameters, tensors: Parameters, held: int, version: int) -> Parameters:
    """Return the hidden state that the newest step leads to, at `version`, from that of the version `held` and a task's
    tensors.

    Raises a PeerError, and nothing else, whatever the tensors are.
    """
    wire = wire_of(order, spec_of(hidden))
    names = [part.name for part in wire.parts]
    versions = _versions(tensors, held, version)
    expected = [f"{GROUP}:{v}:{name}" for v in versions for name in names]
    if versions:
        expected += [tensor.name for tensor in wire.places.plain]
    if list(tensors) != expected:
        raise SpecMismatch(f"the steps have the tensors {shown(list(tensors)[:3])}..., expected {expected[:3]}...")
    plain = {t.name: tensors[t.name] for t in wire.places.plain} if versions else dict(hidden)
    for tensor in wire.places.plain:
        if (plain[tensor.name].shape, plain[tensor.name].dtype) != (tensor.shape, hidden[tensor.name].dtype):
            raise SpecMismatch(f"the steps have another tensor than {tensor}, which this model has")
    for v in versions:
        parts = {name: tensors[f"{GROUP}:{v}:{name}"] for name in names}
        check_parts(wire.parts, parts)
        hidden = after(wire, hidden, parts, plain)
    return hidden


def _versions(tensors: Parameters, held: int, version: int) -> list[int]:
    """Return the versions that the steps among these tensors lead to. Raises SpecMismatch unless they rise from
    `held` to `version`, and are at most MOST_STEPS."""
    said = dict.fromkeys(name.split(":")[1] for name in tensors if name.startswith(f"{GROUP}:"))
    digits = [text for text in said if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS]
    versions = [int(text) for text in digits]
    rising = all(a < b for a, b in pairwise([held, *versions]))
    if len(versions) != len(said) or len(versions) > MOST_STEPS or not rising or (versions or [held])[-1] != version:
        raise SpecMismatch(
            f"a task's steps lead from the hidden state of version {held} to {shown(', '.join(said))}, expected rising "
            f"versions up to {version}, and at most {MOST_STEPS}"
        )
    return versions
