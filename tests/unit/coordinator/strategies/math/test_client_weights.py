from __future__ import annotations

import json
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.coordinator.strategies.math.client_weights import ClientWeightKind, ClientWeights, quality

KINDS: tuple[ClientWeightKind, ...] = get_args(ClientWeightKind)

seen = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.integers(0, 10**7),
        st.one_of(st.none(), st.floats(-5, 50), st.just(math.inf), st.just(math.nan)),
    ),
    max_size=30,
)


def known(kind: ClientWeightKind, examples: dict[str, int], losses: dict[str, float] | None = None) -> ClientWeights:
    weights = ClientWeights(kind)
    for participant_id, n in examples.items():
        loss = (losses or {}).get(participant_id)
        weights.observe(participant_id, n, {} if loss is None else {"loss": loss})
    return weights


def naive(kind: str, last: dict[str, tuple[int, float | None]], participant_id: str) -> float:
    """The definition, over all participants at once."""

    def value(n: int, loss: float | None) -> float | None:
        if kind == "quality":
            if loss is None:
                return None
            return 0.1 if math.isnan(loss) else max(0.1, 1 / (1 + max(0.0, loss)))
        v = {"equal": 1.0, "examples": float(n), "sqrt": n**0.5, "log": math.log(1 + n)}[kind]
        return v or None

    values = {p: value(*pair) for p, pair in last.items()}
    mine = values[participant_id]
    if mine is None:
        return 1.0
    counted = [v for v in values.values() if v is not None]
    return mine / (sum(counted) / len(counted))


def test_exact_weights_of_three_participants() -> None:
    examples = {"a": 3, "b": 8, "c": 1}
    assert [known("equal", examples).weight(p, n, {}) for p, n in examples.items()] == [1, 1, 1]
    assert [known("examples", examples).weight(p, n, {}) for p, n in examples.items()] == [0.75, 2.0, 0.25]
    roots = [known("sqrt", {"a": 4, "b": 16}).weight(p, n, {}) for p, n in {"a": 4, "b": 16}.items()]
    assert roots == [pytest.approx(2 / 3), pytest.approx(4 / 3)]
    logs = [known("log", {"a": 1, "b": 7}).weight(p, n, {}) for p, n in {"a": 1, "b": 7}.items()]
    assert logs == [pytest.approx(0.5), pytest.approx(1.5)]


def test_quality_falls_with_the_loss_between_its_bounds() -> None:
    assert [quality(x) for x in (-1.0, 0.0, 1.0, 3.0, 9.0, 1e9, math.inf)] == [1.0, 1.0, 0.5, 0.25, 0.1, 0.1, 0.1]
    weights = known("quality", {"a": 10, "b": 10}, {"a": 0.0, "b": 1.0})
    assert weights.weight("a", 10, {}) == pytest.approx(4 / 3)
    assert weights.weight("b", 10, {"loss": 1.0}) == pytest.approx(2 / 3)


def test_without_a_loss_quality_is_one_and_leaves_the_mean_alone() -> None:
    weights = known("quality", {"a": 10, "b": 10}, {"a": 1.0})
    assert weights.weight("b", 10, {}) == 1.0
    assert weights.known == 1
    assert weights.weight("a", 10, {}) == 1.0


def test_a_loss_of_nan_counts_as_the_worst() -> None:
    assert quality(math.nan) == quality(math.inf) == 0.1
    weights = known("quality", {"a": 1, "b": 1}, {"a": 0.0})
    assert weights.weight("b", 1, {"loss": math.nan}) == pytest.approx(0.1 / 0.55)


def test_a_participant_without_examples_is_not_part_of_the_mean() -> None:
    weights = known("examples", {"a": 4, "b": 0})
    assert weights.known == 1
    assert weights.weight("a", 4, {}) == 1.0
    weights.observe("b", 12, {})
    assert weights.weight("a", 4, {}) == 0.5
    weights.observe("b", 0, {})
    assert weights.weight("a", 4, {}) == 1.0


@pytest.mark.parametrize("kind", KINDS)
@given(seen)
def test_every_weight_is_the_definition_and_the_mean_is_one(
    kind: ClientWeightKind, calls: list[tuple[str, int, float | None]]
) -> None:
    weights = ClientWeights(kind)
    last: dict[str, tuple[int, float | None]] = {}
    for participant_id, n, loss in calls:
        metrics = {} if loss is None else {"loss": loss}
        last[participant_id] = (n, last.get(participant_id, (0, None))[1] if loss is None else loss)
        weights.observe(participant_id, n, metrics)
        assert weights.weight(participant_id, n, metrics) == pytest.approx(naive(kind, last, participant_id), rel=1e-6)
    counted = [p for p, (n, loss) in last.items() if (loss is not None if kind == "quality" else n > 0)]
    if counted:
        assert math.fsum(weights.weight(p, last[p][0], {}) for p in counted) / len(counted) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
@given(seen, st.integers(0, 30))
def test_a_restore_gives_the_same_weights_bit_for_bit(
    kind: ClientWeightKind, calls: list[tuple[str, int, float | None]], pin_after: int
) -> None:
    weights = ClientWeights(kind)
    last: dict[str, tuple[int, float | None]] = {}
    for number, (participant_id, n, loss) in enumerate(calls):
        metrics = {} if loss is None else {"loss": loss}
        last[participant_id] = (n, last.get(participant_id, (0, None))[1] if loss is None else loss)
        weights.observe(participant_id, n, metrics)
        if number == pin_after:
            weights.pin()
    scalars = json.loads(json.dumps(weights.scalars()))
    rows = [(p, n, loss) for p, (n, loss) in sorted(last.items(), reverse=True)]
    restored = ClientWeights.restore(kind, scalars, rows)
    for p, (n, _) in last.items():
        assert restored.weight(p, n, {}) == weights.weight(p, n, {})
    assert restored.weight("new", 5, {"loss": 2.0}) == weights.weight("new", 5, {"loss": 2.0})


def test_sums_do_not_drift() -> None:
    weights = known("sqrt", {"a": 2, "b": 3})
    before = weights.weight("a", 2, {})
    for n in range(1, 2000):
        weights.observe("b", n, {})
    weights.observe("b", 3, {})
    assert weights.weight("a", 2, {}) == before


def test_a_pinned_mean_keeps_the_weights_of_a_round_on_one_scale() -> None:
    weights = known("examples", {"a": 10, "b": 30})
    weights.pin()
    assert weights.weight("a", 10, {}) == 0.5
    weights.observe("c", 500, {})
    assert weights.weight("b", 30, {}) == 1.5
    weights.pin()
    assert weights.weight("b", 30, {}) == pytest.approx(30 * 3 / 540)
