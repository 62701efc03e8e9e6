"""Bad parts of a codec: what can be done to flat arrays whose names, dtypes and lengths the receiver knows.

Updates in a codec and tasks in steps of a hidden state are made of such parts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.schemas.tensors import DTYPES, MOST_MAGNITUDE

Array = npt.NDArray[Any]
Parts = dict[str, Array]
FLOATS = (
    np.nan, np.inf, -np.inf, -1.0, 3.4e38, -3.4e38, 1e-45, -1e-45, 1.1754942e-38, 0.0, -0.0, 1e30, 65504.0, 65520.0,
    MOST_MAGNITUDE, 1.0000001 * MOST_MAGNITUDE, MOST_MAGNITUDE / 127, MOST_MAGNITUDE / 126, 2.7e36, -2.0**-149,
)  # fmt: skip
"""Numbers that are not finite, at the edges of a dtype, or at the limit of an update once they are multiplied."""


class PartNoise:
    """Changes of parts. `prefix` begins the names of the parts that a codec made; other tensors are beside them."""

    def __init__(self, rng: random.Random, prefix: str) -> None:
        self._rng = rng
        self._prefix = prefix
        self.of_parts: list[Callable[[Parts], None]] = [
            self.floats, self.floats, self.bits, self.lengths, self.dtypes, self.names_of_parts, self.gaps, self.gaps,
            self.gaps_at_the_end, self.padding, self.shapes,
        ]  # fmt: skip

    def spoil(self, parts: Parts, times: Sequence[int] = (1, 1, 1, 2)) -> list[str]:
        """Change parts in place. Return the names of what was done."""
        done = []
        for _ in range(self._rng.choice(times)):
            change = self._rng.choice(self.of_parts)
            done.append(change.__name__)
            change(parts)
        return done

    def _some(self, parts: Parts, kind: str = "") -> str | None:
        return self._rng.choice(
            [name for name, a in parts.items() if a.size and a.dtype.kind in (kind or "fiuV")] or [None]
        )  # type: ignore[list-item]

    def floats(self, parts: Parts) -> None:
        """Put scales and values that are not finite, negative, tiny or far too large."""
        name = self._some(parts, "f")
        if name is not None:
            number = self._rng.choice(FLOATS)
            with np.errstate(over="ignore"):
                flat = parts[name].reshape(-1)
                flat[slice(None) if self._rng.random() < 0.2 else self._rng.randrange(flat.size)] = number

    def bits(self, parts: Parts) -> None:
        if (name := self._some(parts)) is not None:
            raw = np.frombuffer(bytearray(parts[name].tobytes()), np.uint8)
            for _ in range(self._rng.choice([1, 2, 8, 100])):
                raw[self._rng.randrange(raw.size)] ^= 1 << self._rng.randrange(8)
            parts[name] = raw.view(parts[name].dtype).reshape(parts[name].shape)

    def lengths(self, parts: Parts) -> None:
        """Make a part longer or shorter, often by one element."""
        if (name := self._some(parts)) is not None:
            size = parts[name].size
            parts[name] = np.resize(parts[name], self._rng.choice([0, 1, size - 1, size + 1, 2 * size, size + 60_000]))

    def shapes(self, parts: Parts) -> None:
        if (name := self._some(parts)) is not None:
            parts[name] = parts[name].reshape(self._rng.choice([(-1, 1), (1, -1), (1, 1, -1)]))

    def dtypes(self, parts: Parts) -> None:
        """Say that the bytes have another dtype, of the same or another size."""
        if (name := self._some(parts)) is not None:
            raw = np.frombuffer(parts[name].tobytes(), np.uint8)
            dtype = DTYPES[self._rng.choice(sorted(DTYPES))]
            parts[name] = raw[: raw.size // dtype.itemsize * dtype.itemsize].copy().view(dtype)

    def names_of_parts(self, parts: Parts) -> None:
        """Drop, add, rename or reorder parts."""
        rng, names = self._rng, list(parts)
        change = rng.randrange(5)
        if change == 0 and names:
            del parts[rng.choice(names)]
        elif change == 1:
            parts[f"{self._prefix}{rng.choice(['q', 'scale', 'gap', 'value', 'p', 'zstd', '', 'x' * 500])}"] = np.zeros(
                rng.choice([0, 1, 3]), rng.choice([np.float32, np.uint8])
            )
        elif change == 2 and names:
            parts[f"{self._prefix}other"] = parts.pop(rng.choice(names))
        else:
            rng.shuffle(names)
            for name in names:
                parts[name] = parts.pop(name)

    def gaps(self, parts: Parts) -> None:
        """Put indices that do not rise, are far too large, or are no LEB128; else any bytes in a part of bytes."""
        name = self._gap_of(parts) or self._some(parts, "u")
        if name is None:
            return
        rng, size = self._rng, parts[name].size
        tail = rng.choice([b"\0", b"\x80", b"\xff\xff\xff\xff\x7f", b"\xff\xff\xff\xff\xff\x01", b"\x80\0", b"\x7f"])
        made = bytearray(parts[name].tobytes())
        change = rng.randrange(4)
        if change == 0:
            made[-len(tail) :] = tail
        elif change == 1:
            made = bytearray((tail * (size + 1))[: max(size, 1)])
        elif change == 2:
            at = rng.randrange(size + 1)
            made[at : at + len(tail)] = tail
        else:
            made = bytearray(rng.randbytes(size))
        parts[name] = np.frombuffer(bytearray(made), np.uint8)

    def gaps_at_the_end(self, parts: Parts) -> None:
        """Move the last kept index by a little: to the last one of the model, and beyond it."""
        name = self._gap_of(parts)
        if name is not None and parts[name].size:
            raw = np.frombuffer(bytearray(parts[name].tobytes()), np.uint8)
            raw[-1] = (int(raw[-1] & 0x7F) + self._rng.choice([-1, 1, 2, 64])) & 0x7F
            parts[name] = raw.view(parts[name].dtype).reshape(parts[name].shape)

    def padding(self, parts: Parts) -> None:
        """Set what no encoder sets: the second half of a last byte, and the most negative number."""
        name = self._some(parts, "iu")
        if name is not None:
            parts[name].reshape(-1)[-1] = self._rng.choice([0, 15, 127]) if parts[name].dtype.kind == "u" else -128

    def _gap_of(self, parts: Parts) -> str | None:
        return next((name for name in parts if name.startswith(self._prefix) and name.endswith("gap")), None)
