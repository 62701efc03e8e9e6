"""Client weights q_i: how much one participant counts beside another, whatever the staleness.

    equal      1
    examples   n_i                    (McMahan et al. 2017: FedAvg's weights)
    sqrt       √n_i
    log        log(1 + n_i)
    quality    1/(1 + loss_i), held within [0.1, 1]

each divided by its mean over the participants known so far. The mean of q is 1, so a learning rate means the same with
each of them. Weighting by falling loss is the idea of FedNolowe (Le et al. 2025, "Federated Learning with normalized
losses"). The function here is our own: it never rises with the loss, and it needs no other participant's loss. Its
bounds keep a participant that reports a loss of 0 from counting more than ten times as much as another.

The sums are integers (values in units of 2^-32): exact in any order of participants, free of drift, and the same after
a restore. Nothing here reads clocks or random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

ClientWeightKind = Literal["equal", "examples", "sqrt", "log", "quality"]

_UNIT = 2**32
_LOWEST_QUALITY = 0.1


class ClientWeights:
    """Incremental means over participants: O(1) time for a call, and one small integer for each participant."""

    def __init__(self, kind: ClientWeightKind) -> None:
        self.kind = kind
        self._values: dict[str, int] = {}
        self._total = 0
        self._pinned: tuple[int, int] | None = None

    @property
    def known(self) -> int:
        """Number of participants in the mean: those with examples, or for `quality` those with a loss."""
        return len(self._values)

    def observe(self, participant_id: str, num_examples: int, metrics: Mapping[str, float]) -> None:
        """Record what a participant's hello or update says; its last value counts.

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

    def weight(self, participant_id: str, num_examples: int, metrics: Mapping[str, float]) -> float:
        """Call `observe`, and return q_i = value/mean; 1 for a participant without a value, as one without a loss."""
        self.observe(participant_id, num_examples, metrics)
        value = self._values.get(participant_id)
        if value is None:
            return 1.0
        known, total = self._pinned or (len(self._values), self._total)
        return value * known / total

    def pin(self) -> None:
        """Keep the mean as it is now until the next `pin`: all weights of one round share one scale.

        A round of a cohort begins with it. FedAvg's Σ q_i·θ_i / Σ q_i is the examples-weighted mean only if a
        participant that joins in mid-round does not rescale the weights that follow.
        """
        self._pinned = (len(self._values), self._total) if self._values else None

    def scalars(self) -> dict[str, Any]:
        """Return the checkpoint's scalars; it also needs each participant's last num_examples and loss."""
        return {"pinned": None if self._pinned is None else list(self._pinned)}

    @classmethod
    def restore(
        cls,
        kind: ClientWeightKind,
        scalars: Mapping[str, Any],
        participants: Iterable[tuple[str, int, float | None]],
    ) -> Self:
        """Rebuild the same sums, bit for bit: `participants` are (id, last num_examples, last loss or None)."""
        weights = cls(kind)
        for participant_id, num_examples, loss in participants:
            weights.observe(participant_id, num_examples, {} if loss is None else {"loss": loss})
        pinned = scalars["pinned"]
        weights._pinned = None if pinned is None else (int(pinned[0]), int(pinned[1]))
        return weights

    def _set(self, participant_id: str, value: float) -> None:
        self._total -= self._values.pop(participant_id, 0)
        if value > 0:
            exact = max(1, round(value * _UNIT))
            self._values[participant_id] = exact
            self._total += exact


def by_examples(kind: Literal["examples", "sqrt", "log"], num_examples: int) -> float:
    """Return n, √n or log(1 + n)."""
    if kind == "examples":
        return float(num_examples)
    return math.sqrt(num_examples) if kind == "sqrt" else math.log1p(num_examples)


def quality(loss: float) -> float:
    """Return 1/(1 + loss) within [0.1, 1]: 1 for a loss of 0 or less, 0.1 for a loss of 9 or more, or NaN."""
    return _LOWEST_QUALITY if math.isnan(loss) else max(_LOWEST_QUALITY, 1.0 / (1.0 + max(loss, 0.0)))
