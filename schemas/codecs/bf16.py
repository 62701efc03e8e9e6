"""bfloat16: the upper half of each float32, rounded to the nearest, ties to even. 2 bytes a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedmq.schemas.codecs.codec import Array, Encoded, Part, Places, Values
from fedmq.schemas.tensors import DTYPES


@dataclass(frozen=True, slots=True)
class Bf16:
    """The codec of the module docstring. Its error is at most 2^-9 of a value."""

    name = "bf16"

    def parts(self, places: Places) -> tuple[Part, ...]:
        return (Part("value", "bfloat16", places.size, places.size),)

    def encode(self, values: Array, places: Places, seed: int, warm: Mapping[str, Array]) -> Encoded:  # noqa: ARG002
        return Encoded({"value": values.astype(DTYPES["bfloat16"])})

    def decode(self, parts: Mapping[str, Array], places: Places) -> Values:  # noqa: ARG002
        # The bits are the upper half of a float32's; ml_dtypes' own conversion is six times as slow.
        made = np.empty(parts["value"].size, np.uint32)
        np.left_shift(parts["value"].view(np.uint16), 16, out=made, dtype=np.uint32, casting="unsafe")
        return made.view(np.float32)
