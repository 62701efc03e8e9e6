"""Tables that are never cut. Rich cuts them to a terminal's width, and to 80 columns in a pipe."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.measure import Measurement

MOST_COLUMNS = 100_000


def print_uncut(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print tables, and other things, as wide as they are."""
    wide = console.options.update(max_width=MOST_COLUMNS)
    for part in parts:
        console.width = max(console.width, Measurement.get(console, wide, part).maximum)
        console.print(part)
