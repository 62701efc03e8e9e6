import math

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from fedmq.studies.population.laws import AnyLaw, Constant, Exponential, HalfNormal, LogNormal, Pareto, Uniform, Zipf

LAWS = [
    Constant(value=2),
    Uniform(low=1, high=4),
    Exponential(mean=3),
    HalfNormal(mean=2),
    LogNormal(median=1, sigma=0.5),
    Pareto(minimum=1, shape=3),
    Zipf(exponent=1.5, largest=20, unit=0.5),
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_the_mean_is_the_integral_of_the_quantile_function(law):
    middles = (np.arange(20_000) + 0.5) / 20_000
    assert np.mean([law.quantile(u) for u in middles]) == pytest.approx(law.mean, rel=1e-2)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_quantiles_rise_and_are_finite_from_0_to_just_below_1(law):
    values = [law.quantile(u) for u in (0.0, 0.1, 0.5, 0.9, math.nextafter(1, 0))]
    assert values == sorted(values)
    assert all(0 <= v < math.inf for v in values)


@pytest.mark.parametrize("law", [*LAWS, Pareto(minimum=1, shape=5)], ids=lambda law: law.name)
def test_what_is_left_at_a_random_moment_has_the_density_of_the_survivors(law):
    """The density is P(X > x)/mean. Its integral up to x is E[min(X, x)]/mean."""
    rng = np.random.default_rng(0)
    left = np.array([law.left(u, v) for u, v in rng.random((20_000, 2)).tolist()])
    lengths = np.array([law.quantile(u) for u in (np.arange(20_000) + 0.5) / 20_000])
    for x in np.quantile(lengths, [0.1, 0.5, 0.9]) * 0.7:
        assert np.mean(left <= x) == pytest.approx(np.minimum(lengths, x).mean() / law.mean, abs=0.015)


def test_medians_are_the_textbooks():
    assert Exponential(mean=3).quantile(0.5) == pytest.approx(3 * math.log(2))
    assert HalfNormal(mean=1).quantile(0.5) == pytest.approx(0.6744897501960817 * math.sqrt(math.pi / 2))
    assert LogNormal(median=7, sigma=2).quantile(0.5) == pytest.approx(7)
    assert Pareto(minimum=2, shape=2).quantile(0.75) == pytest.approx(4)


def test_zipf_gives_each_rank_its_share():
    law = Zipf(exponent=1, largest=3)  # 6/11, 3/11, 2/11
    assert [law.quantile(u) for u in (0.0, 0.54, 0.55, 0.81, 0.82, 0.99)] == [1, 1, 2, 2, 3, 3]


def test_a_law_comes_from_a_table_and_a_mistake_in_it_is_named():
    assert TypeAdapter(AnyLaw).validate_python({"name": "half_normal", "mean": 2}) == HalfNormal(mean=2)
    with pytest.raises(ValidationError, match="greater than 1"):
        TypeAdapter(AnyLaw).validate_python({"name": "pareto", "minimum": 1, "shape": 0.5})
    with pytest.raises(ValidationError, match="exchange them"):
        Uniform(low=2, high=1)


def test_what_is_left_of_laws_at_the_edge_of_floats_is_a_number_or_for_ever():
    assert Pareto(minimum=1, shape=1.001).left(0.9999, 0.5) == math.inf
    assert Pareto(minimum=2, shape=2).left(0.75, 0.5) == 4
    assert Uniform(low=0, high=1e200).left(0.25, 0.5) == 0.25e200
    assert Uniform(low=3, high=3).left(0.3, 0.5) == 1.5
    assert Uniform(low=3, high=5).left(0.5, 1.0) == pytest.approx(math.sqrt(17))
