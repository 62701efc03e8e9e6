"""Client weights q_i: how much one participant counts beside another, whatever the staleness.

    equal      1
    examples   n_i                    (McMahan et al. 2017: FedAvg's weights)
    sqrt       √n_i
    log        log(1 + n_i)
    quality    1/(1 + loss_i), held within [0.1, 1]

each divided by its mean over the participants that have had an update accepted. The mean of q is 1, so a learning rate
means the same with each of them. Weighting by falling loss is the idea of FedNolowe (Le et al. 2025, "Federated
Learning with normalized losses"). The function here is our own: it never rises with the loss, and it needs no other
participant's loss. Its bounds keep a participant that reports a loss of 0 from counting more than ten times as much as
another.

A value is what a participant says about itself, so there is a cap (capped_sum.py). It cuts a value down in the weight
and in the mean. Without the cut in the mean, one participant that claims 10^7 examples would take everybody else's
weight.

The sums are integers (values in units of 2^-32): exact in any order of participants, free of drift, and the same after
a restore. Nothing here reads clocks or random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from fedmq.coordinator.strategies.math.capped_sum import CappedSum, Scale

ClientWeightKind = Literal["equal", "examples", "sqrt", "log", "quality"]

_UNIT = 2**32
_LOWEST_QUALITY = 0.1


class ClientWeights:
    """Incremental means over participants: at most O(log n) comparisons a call, and small integers for each."""

    def __init__(self, kind: ClientWeightKind, most: float = math.inf) -> None:
        """`most` is the cap: the largest value that counts, as a multiple of the mean of the smaller ones."""
        self.kind = kind
        self._values = CappedSum(most)
        self._pinned: Scale | None = None
        self._pins_next = False

    @property
    def known(self) -> int:
        """Number of participants in the mean: those with examples, or for `quality` those with a loss."""
        return len(self._values)

    def observe(self, participant_id: str, num_examples: int, metrics: Mapping[str, float]) -> None:
        """Record what a participant's accepted update says; its last value counts.

        If `metrics` has no "loss", the participant's last loss stays. If `num_examples` is 0, the participant leaves
        the mean of the kinds that go by examples.
        """
        if self.kind == "equal":
            return
        if self.kind == "quality":
            if "loss" in metrics:
                self._set(participant_id, quality(metrics["loss"]))
        else:
            self._set(participant_id, by_examples(self.kind, num_examples))

    def forget(self, participant_id: str) -> None:
        """Take a participant out of the mean."""
        self._set(participant_id, 0.0)

    def weight(self, participant_id: str, num_examples: int, metrics: Mapping[str, float]) -> float:
        """Call `observe`, and return q_i = value/mean; 1 for a participant without a value, as one without a loss."""
        self.observe(participant_id, num_examples, metrics)
        value = self._values.get(participant_id)
        if value is None:
            return 1.0
        if self._pins_next:
            self._pinned, self._pins_next = self._values.scale(), False
        now = self._values.scale() if self._pinned is None or self._pinned.limit is None else self._pinned
        scale = self._pinned or now
        return now.cut(value) * scale.known / scale.total

    def pin(self) -> None:
        """Keep the mean as it is now until the next `pin`: all weights of one round share one scale.

        A round of a cohort begins with it. FedAvg's Σ q_i·θ_i / Σ q_i is the examples-weighted mean only if a
        participant that joins in mid-round does not rescale the weights that follow. If nobody is known yet, the
        round's first update sets the scale; `quality` has no scale in such a round.
        """
        self._pinned = self._values.scale() if len(self._values) else None
        self._pins_next = self._pinned is None and self.kind not in ("equal", "quality")

    def scalars(self) -> dict[str, Any]:
        """Return the checkpoint's scalars; it also needs each participant's last num_examples and loss."""
        return {"pinned": None if self._pinned is None else list(self._pinned), "pins_next": self._pins_next}

    @classmethod
    def restore(
        cls,
        kind: ClientWeightKind,
        scalars: Mapping[str, Any],
        participants: Iterable[tuple[str, int, float | None]],
        most: float = math.inf,
    ) -> Self:
        """Rebuild the same sums, bit for bit: `participants` are (id, last num_examples, last loss or None)."""
        weights = cls(kind, most)
        for participant_id, num_examples, loss in participants:
            weights.observe(participant_id, num_examples, {} if loss is None else {"loss": loss})
        pinned = scalars["pinned"]
        weights._pinned = None if pinned is None else Scale(*pinned)
        weights._pins_next = bool(scalars.get("pins_next", False))
        return weights

    def _set(self, participant_id: str, value: float) -> None:
        self._values.set(participant_id, max(1, round(value * _UNIT)) if value > 0 else 0)


def by_examples(kind: Literal["examples", "sqrt", "log"], num_examples: int) -> float:
    """Return n, √n or log(1 + n)."""
    if kind == "examples":
        return float(num_examples)
    return math.sqrt(num_examples) if kind == "sqrt" else math.log1p(num_examples)


def quality(loss: float) -> float:
    """Return 1/(1 + loss) within [0.1, 1]: 1 for a loss of 0 or less, 0.1 for a loss of 9 or more, or NaN."""
    return _LOWEST_QUALITY if math.isnan(loss) else max(_LOWEST_QUALITY, 1.0 / (1.0 + max(loss, 0.0)))
