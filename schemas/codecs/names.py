"""Names of the codecs, and what they fit. Reading a federation file takes no more than this."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fedmq.schemas.messages import Reply

BUILT_IN = ("bf16", "int8", "int4", "topk", "powersgd")
"""Codecs that every fedmq has."""
CUSTOM = "custom"
"""Name, in a federation file, of the codec of the user's own."""
DOWNLINK = "downlink"
"""Name in a hello's codecs of a participant that reads tasks in which the model travels in a codec."""
REFERENCE = "reference"
"""Name in a hello's codecs of a participant that reads the models that tasks refer to from the stream of models."""
NEEDS_FEEDBACK = ("topk", "powersgd")
"""Codecs that leave most of an update out: without error feedback it would be lost."""

STEP_CODECS = ("int8", "int4", "topk")
"""Codecs of the hidden state's steps. They are contractive when they round to the nearest, and decode to the same bits
on every machine."""
DOWNLINKS: Mapping[Reply, tuple[str, ...]] = MappingProxyType(
    {"delta": ("bf16", "hidden"), "parameters": ("hidden",), "change": ("hidden",), "scaffold": ()}
)
"""Forms of the model in tasks that are known to fit what an update carries. A delta is against what was trained from.
Parameters carry the error of what they were trained from into the model. The hidden state's error vanishes when the
model comes to rest, and bf16's holds it on the grid of bf16. Steps of topk leave too much out for that: FedAvg on MNIST
came to .50 instead of .75."""

FITTING: Mapping[Reply, tuple[str, ...]] = MappingProxyType(
    {
        "delta": (*BUILT_IN, CUSTOM),
        "parameters": ("bf16", "int8"),
        "change": BUILT_IN,
        "scaffold": ("bf16", "int8", "int4"),
    }
)
"""Codecs that are known to fit what an update carries. Zeros are no parameters, and a control variate that is mostly
zeros corrects nothing. `change` with a contractive codec is EF21 (Richtárik et al. 2021)."""
