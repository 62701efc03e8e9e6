from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedmq.participant.training.ensembles import Distiller
from fedmq.participant.training.logits import as_logits, mean_logits, softmax
from fedmq.schemas.errors import AppError
from tests.support import two_classes as twin


def outputs(scale: float = 1.0) -> list[tuple[np.ndarray, float]]:
    return [(twin.X @ w + b, scale * weight) for w, b, weight in twin.MODELS]


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_mean_of_logits_is_weighted_exactly(scale: float) -> None:
    assert mean_logits(outputs(scale)).tolist() == twin.MEAN_LOGITS.tolist()


def test_probabilities_count_as_logits_and_give_the_same_targets() -> None:
    as_probabilities = [(softmax(rows), weight) for rows, weight in outputs()]
    for temperature in (1.0, 3.0):
        by_logits, by_probabilities = mean_logits(outputs()), mean_logits(as_probabilities)
        found = softmax(by_probabilities / temperature)
        np.testing.assert_allclose(found, softmax(by_logits / temperature), rtol=1e-12)
    assert as_logits(np.array([[1.0, 0.0]]))[0].tolist() == [0.0, np.log(1e-7)]
    assert as_logits(np.array([[0.5, 0.75]])).tolist() == [[0.5, 0.75]]


def test_softmax_of_large_logits_is_finite() -> None:
    assert softmax(np.array([[1e300, 0.0], [-1e300, 0.0]])).tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("models", [[], [(np.zeros((1, 2)), 0.0)]])
def test_an_ensemble_without_weight_is_refused(models: list[Any]) -> None:
    with pytest.raises(AppError, match="has no model with a weight above 0"):
        mean_logits(models)


def test_the_twins_step_goes_down_the_divergence() -> None:
    """The gradient that the frameworks are compared with is the divergence's own, by differences."""
    target = twin.softmax(twin.MEAN_LOGITS / twin.TEMPERATURE)

    def divergence(w: np.ndarray) -> float:
        p = twin.softmax((twin.X @ w + twin.START[1]) / twin.TEMPERATURE)
        return float((target * np.log(target / p)).sum(axis=1).mean())

    w, _ = twin.stepped()
    for place in np.ndindex(2, 2):
        there = np.zeros((2, 2))
        there[place] = 1e-6
        slope = (divergence(twin.START[0] + there) - divergence(twin.START[0] - there)) / 2e-6
        assert (twin.START[0] - w)[place] / twin.RATE == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"steps": 2.5}, {"batch_size": True}, {"temperature": 0}, {"learning_rate": float("inf")}],
)
def test_settings_without_sense_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(AppError, match=f"Distiller got {next(iter(wrong))} = "):
        Distiller(lambda: None, np.zeros((1, 2)), **wrong)
