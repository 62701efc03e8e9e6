"""The rules of Keras's optimizers on tensors of many participants at once, and the models that they can train."""

from __future__ import annotations

from typing import Any

from fedmq.participant.training.keras.backend import keras, tf
from fedmq.participant.training.keras.model import check_plain

Stack = list[Any]
"""Tensors with the participants of a chunk on their first axis."""


class NotVectorised(Exception):
    """The model has no cohort path. The message says why."""


class Rule:
    """An optimizer's step on stacked tensors, as Keras computes it (keras.optimizers.SGD and Adam)."""

    def __init__(self, optimizer: Any) -> None:
        self._o = optimizer
        self._rate = float(optimizer.learning_rate.numpy())
        self._adam = isinstance(optimizer, keras.optimizers.Adam)
        self.num_slots = 2 if self._adam else int(bool(optimizer.momentum))

    def rate(self, asked: float | None) -> float:
        return self._rate if asked is None else asked

    def check_plain(self) -> None:
        """Raise AppError if the optimizer's steps are not plain gradient steps."""
        check_plain(self._o)

    def slots(self, trainable: Stack) -> Stack:
        """Return zeros: first moments of all tensors, then second moments."""
        return [tf.zeros_like(w) for _ in range(self.num_slots) for w in trainable]

    def apply(self, gradients: Stack, trainable: Stack, slots: Stack, t: Any, rates: Any) -> tuple[Stack, Stack]:
        """Return the weights and slots after step `t` (from 1), with a rate for each participant."""
        if self._adam:
            return self._apply_adam(gradients, trainable, slots, tf.cast(t, tf.float32), rates)
        moves = [-wide(rates, g) * g for g in gradients]
        if not self.num_slots:
            return [w + d for w, d in zip(trainable, moves, strict=True)], []
        momentum = self._o.momentum
        slots = [momentum * m + d for m, d in zip(slots, moves, strict=True)]
        moves = [momentum * m + d for m, d in zip(slots, moves, strict=True)] if self._o.nesterov else slots
        return [w + d for w, d in zip(trainable, moves, strict=True)], slots

    def _apply_adam(self, gradients: Stack, trainable: Stack, slots: Stack, t: Any, rates: Any) -> tuple[Stack, Stack]:
        b1, b2, n = self._o.beta_1, self._o.beta_2, len(trainable)
        rates = rates * tf.sqrt(1 - tf.pow(b2, t)) / (1 - tf.pow(b1, t))
        first = [m + (g - m) * (1 - b1) for m, g in zip(slots[:n], gradients, strict=True)]
        second = [v + (tf.square(g) - v) * (1 - b2) for v, g in zip(slots[n:], gradients, strict=True)]
        moved = [
            w - m * wide(rates, w) / (tf.sqrt(v) + self._o.epsilon)
            for w, m, v in zip(trainable, first, second, strict=True)
        ]
        return moved, [*first, *second]


def wide(per_participant: Any, like: Any) -> Any:
    """Reshape [participants] to as many axes as `like` has."""
    return tf.reshape(per_participant, [-1] + [1] * (len(like.shape) - 1))
