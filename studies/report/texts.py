"""Labels and other texts of a study as what they are, wherever they are shown: in HTML, in figures, in spreadsheets."""

from __future__ import annotations

import functools
import html
import re
from typing import Any

from fedmq.schemas.texts import escaped


def as_html(text: str) -> str:
    """Return a text for a page: no markup, and no character that does not print."""
    return html.escape(escaped(text))


def as_lines(text: str) -> str:
    """Return a text of several lines for a page, within <pre>."""
    return html.escape(escaped(text, keep="\n"))


def write(artist: Any, text: str, longest: int) -> None:
    """Give a matplotlib text its words, which are no formula between dollar signs, shortened to `longest` characters.

    A legend leaves out a label that begins with an underscore. So its texts are written after it is made.
    """
    artist.set_text(shortened(text, longest))
    artist.set_parse_math(False)


def shortened(text: str, longest: int) -> str:
    """Return the text with at most so many characters, all of which print."""
    text = escaped(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def as_text(value: Any) -> Any:
    """Return a text that prints, and that no spreadsheet takes for a formula; other values as they are.

    A text that begins with a letter, a digit, a bracket or an underscore is safe. Any other one gets an apostrophe
    before it. The same holds for the part after a character at which a spreadsheet may split: some countries' versions
    take the semicolon. A character that does not print, such as a line end, becomes an escape.
    """
    return _as_text(escaped(value)) if isinstance(value, str) else value


@functools.lru_cache(maxsize=4096)  # a label stands in as many rows as there are values
def _as_text(value: str) -> str:
    first, *others = _SPLIT.split(value)
    parts = [first if _SAFE.match(first) else f"'{first}", *(p if _SAFE.match(p.lstrip()) else f"'{p}" for p in others)]
    return "".join(parts)


_SPLIT = re.compile(r"(?<=[;|])")
_SAFE = re.compile(r"\w|[(\[{<]|$")


__all__ = ["as_html", "as_lines", "as_text", "shortened", "write"]
