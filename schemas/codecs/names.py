"""Names of the codecs, and what they fit. Reading a federation file takes no more than this."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fedmq.schemas.messages import Reply

BUILT_IN = ("bf16", "int8", "int4", "topk", "powersgd")
"""Codecs that every fedmq has."""
CUSTOM = "custom"
"""Name, in a federation file, of the codec of the user's own."""
NEEDS_FEEDBACK = ("topk", "powersgd")
"""Codecs that leave most of an update out: without error feedback it would be lost."""

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
