"""The buffer of a strategy: weighted sums in the accumulator's dtype, and a server optimiser's moments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast

import numpy as np

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.math.next_version import blocks, next_version
from fedmq.coordinator.strategies.math.server_optimizers import ServerOptimizer
from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.layout import Layout, layout_of
from fedmq.schemas.parameters import Array, Parameters


@dataclass(slots=True)
class BufferState:
    """Σ coefficient·payload over the buffered updates, by tensor; changed in place.

    `arrays()` hands out the live arrays: write them before the next update is accumulated.
    """

    sums: dict[str, Array]
    moments: dict[str, dict[str, Array]]
    """moment -> trainable tensor -> array; empty without a server optimiser."""
    coefficients: list[float] = field(default_factory=list)
    """Coefficients of the buffered updates in order of arrival: s·q for FedBuff, q for FedAvg."""
    opened_at_s: float | None = None
    """Run time (seconds) at which the open round began; None if no round is open."""
    layout: Layout | None = None
    """Layout of the sums; None unless the model's floating tensors share one dtype."""
    block: Array | None = None
    """The array that holds all sums if there is a layout: one operation on it is one on all of them."""

    @classmethod
    def zero(cls, parameters: Parameters, optimizer: ServerOptimizer | None) -> Self:
        """Return an empty buffer for a model, with the server optimiser's moments at their initial values."""
        averaged = {n: parameters[n] for n in parameters.averaged()}
        trainable = {n: x for n, x in averaged.items() if n not in parameters.non_trainable}
        initial = optimizer.initial() if optimizer else {}
        moments = {moment: arithmetic.accumulators(trainable, value) for moment, value in initial.items()}
        layout = layout_of(averaged)
        if layout is None:
            return cls(arithmetic.accumulators(averaged), moments)
        block = arithmetic.flat(layout.size, arithmetic.accumulator_dtype(layout.dtype))
        block.fill(0)
        return cls(layout.views(block), moments, layout=layout, block=block)

    @property
    def count(self) -> int:
        """Number of updates in the buffer."""
        return len(self.coefficients)

    def total(self) -> float:
        """Return the sum of the coefficients, exactly rounded."""
        return math.fsum(self.coefficients)

    def per_total(self) -> float:
        """Return 1 over the sum of the coefficients, or 0 if all of them are 0: then nothing moves."""
        total = self.total()
        return 1.0 / total if total > 0 else 0.0

    def check(self, update: ClientUpdate) -> None:
        """Raise ValueError unless the payload has the names and shapes of the sums."""
        if not self._lies_alike(update.payload):
            check_payload(update, {n: acc.shape for n, acc in self.sums.items()})

    def accumulate(self, update: ClientUpdate, coefficient: float) -> None:
        """Add coefficient·payload to the sums. Raises ValueError, and changes nothing, if the update does not fit."""
        self.check(update)
        check_coefficient(update, coefficient)
        payload = update.payload
        if self._lies_alike(payload):
            arithmetic.scale_add(cast(Array, self.block), coefficient, cast(Array, payload.block))
        else:
            for name, acc in self.sums.items():
                arithmetic.scale_add(acc, coefficient, payload[name])
        self.coefficients.append(coefficient)

    def merge(self, other: BufferState) -> None:
        """Add the updates of another buffer of the same model."""
        if self.block is not None and other.block is not None:
            arithmetic.scale_add(self.block, 1.0, other.block)
        else:
            for name, acc in self.sums.items():
                arithmetic.scale_add(acc, 1.0, other.sums[name])
        self.coefficients += other.coefficients

    def clear(self) -> None:
        """Empty the buffer; the moments stay."""
        for acc in self.sums.values() if self.block is None else (self.block,):
            acc.fill(0)
        self.coefficients.clear()
        self.opened_at_s = None

    def drop(self, group: int | None) -> None:  # noqa: ARG002 - only states with arrival groups have several buffers
        """Lose the updates of the buffer."""
        self.clear()

    def arrays(self) -> dict[str, Array]:
        """Return the checkpoint's arrays: sum/{tensor} and {moment}/{tensor}; a subclass may add its own."""
        return self._buffer_arrays()

    def _lies_alike(self, payload: Parameters) -> bool:
        """True if the payload lies in one block, in the layout of the sums."""
        return payload.block is not None and payload.layout is self.layout

    def _buffer_arrays(self) -> dict[str, Array]:
        named = {f"sum/{n}": a for n, a in self.sums.items()}
        for moment, tensors in self.moments.items():
            named.update({f"{moment}/{n}": a for n, a in tensors.items()})
        return named

    def scalars(self) -> dict[str, Any]:
        """Return the checkpoint's scalars."""
        return {"coefficients": list(self.coefficients), "opened_at_s": self.opened_at_s}

    def load(self, arrays: Arrays, scalars: Mapping[str, Any]) -> Self:
        """Read what `arrays()` and `scalars()` gave. Raises CheckpointError if it belongs to another model."""
        own = self._buffer_arrays()
        if own.keys() != arrays.keys():
            raise CheckpointError(
                f"the checkpoint's strategy state has other arrays: missing {sorted(own.keys() - arrays.keys())[:3]}, "
                f"unknown {sorted(arrays.keys() - own.keys())[:3]}; resume with the strategy and model that wrote it"
            )
        for name, mine in own.items():
            theirs = arrays[name]
            if (theirs.shape, theirs.dtype) != (mine.shape, mine.dtype):
                raise CheckpointError(
                    f"array {name!r} of the checkpoint's strategy state is {theirs.dtype}{list(theirs.shape)}, "
                    f"expected {mine.dtype}{list(mine.shape)}; resume with the strategy and model that wrote it"
                )
            np.copyto(mine, theirs)
        self.coefficients = [float(c) for c in scalars["coefficients"]]
        opened = scalars["opened_at_s"]
        self.opened_at_s = None if opened is None else float(opened)
        return self

    def step(self, parameters: Parameters, rate: float, mean: float) -> Parameters:
        """Return x + rate·mean·sums for trainable tensors, x + mean·sums for the others; the buffer stays as it is."""
        made, new = next_version(parameters)
        if self.block is not None and not made.non_trainable and (both := blocks(parameters, made)) is not None:
            arithmetic.step(both[0], rate * mean, self.block, both[1])
            return made
        for name, total in self.sums.items():
            factor = mean if name in parameters.non_trainable else rate * mean
            arithmetic.step(parameters[name], factor, total, new[name])
        return made

    def optimize(
        self, optimizer: ServerOptimizer, name: str, x: Array, mean_delta: arithmetic.FillChunk, out: Array
    ) -> None:
        """Write x + the optimiser's step for tensor `name` into `out`; `mean_delta` writes the chunks of Δ̄."""
        moments = {moment: tensors[name].reshape(-1) for moment, tensors in self.moments.items()}

        def advance(part: slice, chunk: Array) -> None:
            mean_delta(part, chunk)
            optimizer.advance(chunk, {moment: flat[part] for moment, flat in moments.items()})

        arithmetic.step_by(x, advance, out)


def check_payload(update: ClientUpdate, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless the payload has exactly these names and shapes: half an update cannot be undone."""
    payload = update.payload
    if payload.keys() != shapes.keys():
        raise ValueError(
            f"update {update.update_id} carries other tensors than the model's floating ones: missing "
            f"{sorted(shapes.keys() - payload.keys())[:3]}, unknown {sorted(payload.keys() - shapes.keys())[:3]}"
        )
    for name, shape in shapes.items():
        if payload[name].shape != shape:
            raise ValueError(
                f"update {update.update_id}: tensor {name!r} has shape {payload[name].shape}, expected {shape}"
            )


def check_coefficient(update: ClientUpdate, coefficient: float) -> None:
    """Raise ValueError unless the coefficient is finite and not negative."""
    if not (math.isfinite(coefficient) and coefficient >= 0):
        raise ValueError(
            f"update {update.update_id} has the coefficient {coefficient}, expected a finite number of 0 or more: "
            f"check its client weight {update.client_weight}"
        )


def scaled(total: Array, factor: float) -> arithmetic.FillChunk:
    """Return a function that writes chunks of factor·total."""
    flat, by = total.reshape(-1), total.dtype.type(factor)

    def fill(part: slice, out: Array) -> None:
        np.multiply(flat[part], by, out=out)

    return fill
