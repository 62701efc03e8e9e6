"""Colours, dashes and marks of the strategies in one report, in a light and in a dark page.

The colours are those of Okabe and Ito ("Color Universal Design"), which people with any common colour blindness can
tell apart. The dashes do so in grey. From the ninth strategy on the colours come again, each time with a mark of their
own. So no two strategies look the same.

matplotlib draws in the colours of a light page. In an SVG each of them becomes a variable of the page's style, which
has another value in a dark page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5a5a5a", "#8c7a00")
DARK = ("#4fa8e0", "#f08542", "#2fc79a", "#e59cc5", "#f2b538", "#86ccf5", "#c4c4c4", "#cdbb3a")
"""The same strategies' colours on a dark page."""
INK, GRID = "#1c1c1d", "#b0b0b1"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"), ("*", "★"))
"""Marks of the first eight strategies, of the next eight, and so on: matplotlib's name, and a character."""

Form = Literal["svg", "png", "small png"]

_LIGHT_PAGE = {
    "ink": "#1c1c1c", "back": "#fff", "soft": "#444", "rule": "#e6e6e6", "line": "#888", "grid": "#b0b0b0",
    "loud": "#b00020", "loud-back": "#fff3f3", "warn": "#c98a00", "warn-back": "#fffaf0", "code": "#f6f6f6",
}  # fmt: skip
_DARK_PAGE = {
    "ink": "#e6e6e6", "back": "#15171b", "soft": "#b4b8bf", "rule": "#30343b", "line": "#767c86", "grid": "#8a9099",
    "loud": "#ff7a85", "loud-back": "#331a1d", "warn": "#e0a52e", "warn-back": "#2d2515", "code": "#1f2228",
}  # fmt: skip
_VARIABLES = {INK: "ink", GRID: "grid"} | {colour: f"c{i}" for i, colour in enumerate(COLOURS)}


@dataclass(frozen=True)
class Look:
    """The colours and lines of the strategies in one report, and the form of its figures."""

    strategies: tuple[str, ...]
    form: Form = "svg"

    def colour(self, strategy: str) -> str:
        """Return the colour on a light page."""
        return COLOURS[self.strategies.index(strategy) % len(COLOURS)]

    def line(self, strategy: str, points: int = 0) -> dict[str, Any]:
        """Return matplotlib's arguments for a line. If it has many `points`, it has a mark at some of them."""
        place = self.strategies.index(strategy)
        again = place // len(COLOURS)
        style = {"color": self.colour(strategy), "ls": DASHES[(place + again) % len(DASHES)], "lw": 1.7}
        if not again:
            return style
        every = max(1, points // 6)
        return style | {"marker": self.marker(strategy), "ms": 6, "markevery": (place % every, every)}

    def marker(self, strategy: str) -> str:
        """Return matplotlib's name of the strategy's mark: a shape, or a number when shapes have run out."""
        again = self.strategies.index(strategy) // len(COLOURS)
        return MARKS[again][0] if again < len(MARKS) else f"${again + 1}$"

    def key(self, strategy: str) -> str:
        """Return the strategy's mark in its colour, as HTML."""
        place = self.strategies.index(strategy)
        again = place // len(COLOURS)
        glyph = MARKS[again][1] if again < len(MARKS) else str(again + 1)
        return f'<span class=key style="color:var(--c{place % len(COLOURS)})">{glyph}</span>'


def page_colours() -> str:
    """Return the variables of a page's style. A printed page is a light one."""
    light = _LIGHT_PAGE | {f"c{i}": colour for i, colour in enumerate(COLOURS)}
    dark = _DARK_PAGE | {f"c{i}": colour for i, colour in enumerate(DARK)}
    return (
        f":root{{color-scheme:light dark;{_declared(light)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_declared(dark)}}}}}\n"
    )


def _declared(values: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in values.items())


def with_page_colours(svg: str) -> str:
    """Return an SVG for a page, with the variables of the page's style in the place of its colours."""
    return _COLOUR.sub(lambda found: f"{found[1]}var(--{_VARIABLES[found[2]]})", svg)


_COLOUR = re.compile(rf"((?:fill|stroke): ?)({'|'.join(_VARIABLES)})\b")


__all__ = ["COLOURS", "DARK", "GRID", "INK", "Form", "Look", "page_colours", "with_page_colours"]
