"""A linear model of two classes and its distillation in plain numpy: the twin of what the frameworks compute."""

from __future__ import annotations

import numpy as np

X = np.array([[1.0, 2.0], [3.0, -1.0]])
"""Two public examples."""
MODELS = (
    (np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0.0, 0.0]), 0.75),
    (np.array([[0.0, 2.0], [1.0, 0.0]]), np.array([1.0, 0.0]), 0.25),
)
"""(W, b, weight) of each model of the ensemble."""
MEAN_LOGITS = np.array([[1.5, 2.0], [2.25, 0.75]])
"""0.75·[[1, 2], [3, -1]] + 0.25·[[3, 2], [0, 6]]."""
START = (np.array([[0.5, -0.5], [0.0, 0.25]]), np.array([0.125, 0.0]))
RATE, TEMPERATURE = 0.5, 2.0


def softmax(rows: np.ndarray) -> np.ndarray:
    e = np.exp(rows)
    return e / e.sum(axis=1, keepdims=True)


def stepped(temperature: float = TEMPERATURE, steps: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return W and b after steps of plain gradient descent on the mean KL divergence of both examples.

    ∂/∂z KL(t, softmax(z/T)) = (softmax(z/T) - t)/T
    """
    (w, b), target = START, softmax(MEAN_LOGITS / temperature)
    for _ in range(steps):
        gradient = (softmax((X @ w + b) / temperature) - target) / temperature / len(X)
        w, b = w - RATE * X.T @ gradient, b - RATE * gradient.sum(axis=0)
    return w, b
