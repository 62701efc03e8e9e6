from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fedmq.coordinator.strategies.math.staleness_weights import (
    AnyStalenessWeight,
    Constant,
    DelayAdaptive,
    Hinge,
    Polynomial,
)

ADAPTER = TypeAdapter(AnyStalenessWeight)


@pytest.mark.parametrize(
    ("function", "table"),
    [
        (Constant(), {0: 1.0, 1: 1.0, 1000: 1.0}),
        (Polynomial(0.5), {0: 1.0, 3: 0.5, 8: 1 / 3, 99: 0.1}),
        (Polynomial(2.0), {0: 1.0, 1: 0.25, 3: 0.0625}),
        (Hinge(a=10, b=4), {0: 1.0, 4: 1.0, 5: 1 / 11, 6: 1 / 21}),
        (Hinge(a=0.5, b=0), {0: 1.0, 1: 2 / 3, 2: 0.5, 6: 0.25}),
        (DelayAdaptive(4), {0: 1.0, 4: 1.0, 5: 0.8, 8: 0.5, 400: 0.01}),
        (Hinge(a=1, b=2.5), {2: 1.0, 3: 1 / 1.5}),
    ],
)
def test_each_function_has_its_values(function: AnyStalenessWeight, table: dict[int, float]) -> None:
    assert {tau: function(tau) for tau in table} == pytest.approx(table, rel=1e-15)


@given(st.floats(0.01, 10), st.floats(0, 20), st.integers(0, 10_000))
def test_all_start_at_one_and_never_rise(a: float, b: float, tau: int) -> None:
    for function in (Constant(), Polynomial(a), Hinge(a, b), DelayAdaptive(a)):
        assert function(0) == 1.0
        assert 0 < function(tau + 1) <= function(tau) <= 1.0


def test_a_negative_staleness_is_an_error() -> None:
    for function in (Constant(), Polynomial(0.5), Hinge(1, 1), DelayAdaptive(1)):
        with pytest.raises(ValueError, match="staleness of -1"):
            function(-1)


def test_they_come_from_tables_print_and_compare() -> None:
    assert ADAPTER.validate_python({"name": "constant"}) == Constant()
    assert ADAPTER.validate_python({"name": "polynomial", "a": 0.5}) == Polynomial(0.5) != Polynomial(0.6)
    assert repr(ADAPTER.validate_python({"name": "hinge", "a": 10, "b": 4})) == "Hinge(a=10.0, b=4.0, name='hinge')"


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ({"name": "polynomal"}, ()),
        ({"name": "polynomial", "a": 0}, ("polynomial", "a")),
        ({"name": "polynomial", "a": float("nan")}, ("polynomial", "a")),
        ({"name": "hinge", "a": 1}, ("hinge", "b")),
        ({"name": "hinge", "a": 1, "b": -1}, ("hinge", "b")),
        ({"name": "delay_adaptive"}, ("delay_adaptive", "concurrency")),
        ({"name": "constant", "a": 1}, ("constant", "a")),
    ],
)
def test_mistakes_are_named_with_their_place(table: dict[str, object], place: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(table)
    assert caught.value.errors()[0]["loc"] == place
