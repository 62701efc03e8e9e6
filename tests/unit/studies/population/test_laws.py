import math

import numpy as np
import pytest
from pydantic import TypeAdapter

from fedmq.studies.population import measured
from fedmq.studies.population.laws import (
    AnyLaw,
    Choice,
    Constant,
    Empirical,
    Exponential,
    HalfNormal,
    LogNormal,
    Mixture,
    Pareto,
    Part,
    Shifted,
    Uniform,
    Zipf,
    law_files,
)
from fedmq.studies.population.measured import LARGEST

LAW = TypeAdapter(AnyLaw)


def mixture(*parts):
    return Mixture(parts=tuple(Part(share=share, law=law) for share, law in parts))


LAWS = [
    Constant(value=2),
    Uniform(low=1, high=4),
    Exponential(mean=3),
    HalfNormal(mean=2),
    LogNormal(median=1, sigma=0.5),
    Pareto(minimum=1, shape=3),
    Zipf(exponent=1.5, largest=20, unit=0.5),
    Choice(values=(5, 1, 2), shares=(0.2, 0.3, 0.5)),
    Shifted(by=2, law=Exponential(mean=1)),
    mixture((0.7, LogNormal(median=1, sigma=0.5)), (0.2, Uniform(low=4, high=6)), (0.1, Constant(value=3))),
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_the_mean_is_the_integral_of_the_quantile_function(law):
    middles = (np.arange(4_000) + 0.5) / 4_000
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
    lengths = np.array([law.quantile(u) for u in (np.arange(4_000) + 0.5) / 4_000])
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
    with pytest.raises(ValueError, match="greater than 1"):
        TypeAdapter(AnyLaw).validate_python({"name": "pareto", "minimum": 1, "shape": 0.5})
    with pytest.raises(ValueError, match="exchange them"):
        Uniform(low=2, high=1)


def test_what_is_left_of_laws_at_the_edge_of_floats_is_a_number_or_for_ever():
    assert Pareto(minimum=1, shape=1.001).left(0.9999, 0.5) == math.inf
    assert Pareto(minimum=2, shape=2).left(0.75, 0.5) == 4
    assert Uniform(low=0, high=LARGEST).left(0.25, 0.5) == 0.25 * LARGEST
    assert Uniform(low=3, high=3).left(0.3, 0.5) == 1.5
    assert Uniform(low=3, high=5).left(0.5, 1.0) == pytest.approx(math.sqrt(17))


# Distribution functions


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_a_quantile_is_the_least_value_up_to_which_its_part_lies(law):
    for u in (0.013, 0.11, 0.29, 0.41, 0.62, 0.83, 0.97):
        x = law.quantile(u)
        assert law.below(x) >= u * (1 - 1e-9)
        assert law.below(x * (1 - 1e-9)) <= u * (1 + 1e-9)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_draws_are_below_a_value_as_often_as_the_distribution_function_says(law):
    drawn = np.array([law.quantile(u) for u in np.random.default_rng(1).random(4_000).tolist()])
    for x in np.quantile(drawn, [0.2, 0.5, 0.9]).tolist():
        assert np.mean(drawn <= x) == pytest.approx(law.below(x), abs=0.03)
    assert law.below(0.0) == 0.0
    assert law.below(1e9) == pytest.approx(1.0)


# Laws of given values, and laws made of laws


def test_a_choice_gives_each_value_its_share():
    law = LAW.validate_python({"name": "choice", "values": [10, 1, 4], "shares": [0.25, 0.5, 0.25]})
    assert [law.quantile(u) for u in (0.0, 0.499, 0.5, 0.749, 0.75, 0.999)] == [1, 1, 4, 4, 10, 10]
    assert law.mean == 4.0
    assert [law.left(u, 0.5) for u in (0.0, 0.12, 0.13, 0.37, 0.38)] == [0.5, 0.5, 2, 2, 5]
    assert Choice(values=(0, 3)).mean == 1.5
    assert Choice(values=(1, 2, 3), shares=(0.3333333, 0.3333333, 0.3333333)).mean == 2.0
    assert Choice(values=(0,)).left(0.5, 0.5) == 0.0


def test_a_shifted_law_adds_the_same_to_each_draw():
    law = Shifted(by=2, law=Constant(value=3))
    assert (law.quantile(0.7), law.mean, law.below(4.9), law.below(5.0)) == (5.0, 5.0, 0.0, 1.0)
    assert law.left(0.3, 0.5) == 1.0  # two fifths of the time the shift itself is left
    assert law.left(0.5, 0.5) == 3.5
    assert Shifted(by=0, law=Constant(value=3)).left(0.0, 0.5) == 1.5


def test_a_mixtures_quantiles_are_those_of_its_distribution_function():
    law = mixture((0.5, Uniform(low=0, high=1)), (0.5, Uniform(low=2, high=4)))
    assert [law.quantile(u) for u in (0.0, 0.25, 0.75)] == [0.0, 0.5, 3.0]
    assert law.mean == 1.75
    assert law.left(0.5 / 3.5, 1.0) == pytest.approx(2.0)  # the first part is met in a seventh of all cases
    atoms = mixture((0.25, Constant(value=2)), (0.75, Exponential(mean=1)))
    assert [atoms.quantile(u) for u in (0.66, 0.85)] == [2.0, 2.0]
    assert atoms.quantile(0.5) == pytest.approx(-math.log(1 / 3))


def test_one_law_alone_is_the_same_within_a_mixture():
    alone, law = HalfNormal(mean=2), mixture((1.0, HalfNormal(mean=2)))
    for u in (0.1, 0.5, 0.9):
        assert law.quantile(u) == alone.quantile(u)
        assert law.left(u, 0.3) == alone.left(u, 0.3)


def written(folder, text, name="durations.csv"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_an_empirical_law_draws_the_values_of_its_file(tmp_path):
    law = Empirical(file=written(tmp_path, "device,seconds\na,3\nb,1\n\nc,4\nd,2\n"), column="seconds")
    assert [law.quantile(u) for u in (0.0, 0.24, 0.25, 0.5, 0.99)] == [1, 1, 2, 3, 4]
    assert (law.mean, law.below(2.5), law.left(0.25, 0.5)) == (2.5, 0.5, 1.0)  # lengths met: 1, 2, 3, 4 of 10
    assert law.left(0.7, 0.5) == 2.0
    plain = Empirical(file=written(tmp_path, "seconds\n2\n4\n"))
    assert plain.mean == 3.0
    assert Empirical(file=written(tmp_path, "2\n4\n9\n")).mean == 5.0


def test_the_files_of_laws_are_found_at_any_depth(tmp_path):
    law = Empirical(file=written(tmp_path, "2\n"))
    assert list(law_files(mixture((0.5, Shifted(by=1, law=law)), (0.5, Constant(value=1))))) == [law.file]


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("1\nfast\n", None, "line 2: got 'fast', expected a number from 0 to 1e\\+30"),
        ("1\n-2\n", None, "line 2: got '-2', expected a number from 0"),
        ("1\ninf\n", None, "line 2: got 'inf', expected a number from 0"),
        ("a,b\n1,2\n", None, "has 2 columns: name one of them with column"),
        ("a,b\n1,2\n", "c", "has no column 'c', its first row has: a, b"),
        ("a,b\n1,2\n3\n", "b", "line 3: there are 1 cells, expected 2 or more"),
        ("\n", None, "has no values, expected a number in each row"),
    ],
)
def test_a_file_of_measurements_is_refused_with_its_line(tmp_path, text, column, said):
    with pytest.raises(ValueError, match=said):
        Empirical(file=written(tmp_path, text), column=column)


def test_a_file_of_too_many_measurements_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "MOST_VALUES", 2)
    assert Empirical(file=written(tmp_path, "1\n2\n")).mean == 1.5
    with pytest.raises(ValueError, match="has more than 2 values, the most for one law: take a sample"):
        Empirical(file=written(tmp_path, "1\n2\n3\nno number\n"))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"name": "choice", "values": [1, 2], "shares": [0.5, 0.4]}, "the shares add up to 0.9, expected 1"),
        ({"name": "choice", "values": [1, 2], "shares": [1]}, "got 2 values and 1 shares: give a share for each"),
        ({"name": "choice", "values": []}, "at least 1 item"),
        ({"name": "choice", "values": [-1]}, "greater than or equal to 0"),
        ({"name": "shifted", "by": -1, "law": {"name": "constant", "value": 1}}, "greater than or equal to 0"),
        ({"name": "mixture", "parts": [{"share": 0.5, "law": {"name": "constant", "value": 1}}]}, "add up to 0.5"),
        ({"name": "empirical", "file": "/nowhere/x.csv"}, "there is no file /nowhere/x.csv"),
    ],
)
def test_laws_that_cannot_be_are_refused_in_a_sentence(table, said):
    with pytest.raises(ValueError, match=said):
        LAW.validate_python(table)


TOO_LARGE = [
    {"name": "lognormal", "median": 1, "sigma": 1000},
    {"name": "half_normal", "mean": 1.7e308},
    {"name": "constant", "value": 1e308},
    {"name": "choice", "values": [1, 2], "shares": [1e308, 1e308]},
    {"name": "mixture", "parts": [{"share": 1e308, "law": {"name": "constant", "value": 1}}] * 2},
    {"name": "shifted", "by": 1, "law": {"name": "pareto", "minimum": 1e308, "shape": 2}},
]


@pytest.mark.parametrize("law", TOO_LARGE, ids=lambda law: law["name"])
def test_a_number_beyond_all_use_is_refused(law):
    with pytest.raises(ValueError, match="less than or equal to"):
        LAW.validate_python(law)


@pytest.mark.parametrize(
    "law",
    [
        LogNormal(median=LARGEST, sigma=10), HalfNormal(mean=LARGEST), Exponential(mean=LARGEST),
        Uniform(low=LARGEST, high=LARGEST), Pareto(minimum=LARGEST, shape=math.nextafter(1, 2)),
        Zipf(exponent=1e-300, largest=1_000_000, unit=LARGEST), Choice(values=(LARGEST, LARGEST)),
    ],
    ids=lambda law: law.name,
)  # fmt: skip
def test_the_largest_numbers_give_finite_draws_whose_products_are_finite(law):
    most = max(law.mean, law.quantile(math.nextafter(1, 0)))
    assert 0 < law.quantile(0.0) <= most or law.name in ("half_normal", "exponential")
    assert math.isfinite(most**3)


def test_a_measured_value_beyond_all_use_is_refused_with_its_line(tmp_path):
    (tmp_path / "seconds.csv").write_text("1\n1e308\n")
    with pytest.raises(ValueError, match=r"line 2: got '?1e308'?, expected a number from 0 to 1e\+30"):
        Empirical(file=str(tmp_path / "seconds.csv"))
