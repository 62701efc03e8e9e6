"""The looks of strategies, and what a page says about curves that it does not show."""

import re
from dataclasses import replace

import pytest

from fedmq.coordinator.settings import TargetMetric
from fedmq.studies.report.figures import curves
from fedmq.studies.report.look import COLOURS, DARK, Look, with_page_colours
from fedmq.studies.report.page import write_report
from tests.unit.studies.report.test_report import CELL, with_losses


def luminance(colour):
    """Relative luminance (WCAG 2.1) of a colour such as #0072b2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_no_two_strategies_look_alike():
    names = tuple(f"s{i}" for i in range(200))
    look = Look(names)
    assert len({(look.colour(s), look.marker(s)) for s in names}) == 200
    assert len({look.key(s) for s in names}) == 200
    assert len({(look.colour(s), look.line(s).get("marker")) for s in names}) == 200
    assert "marker" not in look.line("s7"), "the first eight have colours of their own"
    assert look.line("s8")["marker"] == "s"


def test_a_dark_page_has_colours_that_show_on_it():
    assert len(set(DARK)) == len(DARK) == len(COLOURS)
    assert min(contrast(colour, "#15171b") for colour in DARK) > 4.5
    assert min(contrast(colour, "#ffffff") for colour in COLOURS) > 2


def test_figures_take_their_colours_from_the_page(tmp_path):
    cells = [replace(CELL, strategy=s, population=p, seed=i) for s in "AB" for p in "pq" for i in (0, 1)]
    page = write_report(tmp_path / "report.html", "a study", cells, "").read_text()
    assert "@media screen and (prefers-color-scheme:dark)" in page
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(figures) == 7
    for figure in figures:
        assert "var(--ink)" in figure
        assert "var(--c1)" in figure
        assert not re.search(r"(fill|stroke): ?#(?!b0b0b1)", figure), "no colour of a light page alone"
    assert with_page_colours('style="fill: #0072b2; stroke:#1c1c1d"') == 'style="fill: var(--c0); stroke:var(--ink)"'


@pytest.mark.usefixtures("no_figures")
def test_no_number_of_a_table_has_more_than_three_significant_digits(tmp_path):
    cells = [
        replace(CELL, strategy=s, seed=i, time_s=12345.678 + i, updates=98765 + i, mean_staleness=1.23456 + i)
        for s in "AB"
        for i in (0, 1)
    ]
    page = write_report(tmp_path / "report.html", "a study", cells, "").read_text()
    found = re.findall(r"[-+]?[\d,]*\.?\d+(?:e-?\d+)?", " ".join(re.findall(r"<td>(.*?)</td>", page)))
    assert {"12,300", "98,800", "1.73"} <= set(found)
    digits = {number: re.sub(r"e.*|[^\d]", "", number).strip("0") for number in found}
    assert {number for number, kept in digits.items() if len(kept) > 3} == set()


def test_a_curve_that_leaves_the_panels_is_named():
    good = [with_losses(*(2.0 - 0.03 * t for t in range(60)), seed=s) for s in (0, 1)]
    worse = [with_losses(*(2.0 + 0.05 * t for t in range(60)), strategy="worse", seed=s) for s in (0, 1)]
    look = Look((CELL.strategy, "worse"))
    _, outside = curves(good, "loss", look, TargetMetric(name="loss", value=1.0, mode="min"))
    assert outside == ""
    _, outside = curves([*good, *worse], "loss", look, TargetMetric(name="loss", value=50.0, mode="min"))
    assert outside == "Outside of the panels: worse (in part: 2.25 to 4.95), the target (50)."
