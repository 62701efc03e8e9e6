"""The name that was probably meant, for a name that is not known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

NEAR = 0.75
"""Least likeness, by difflib's ratio, of two names of which one is taken for a misspelling of the other."""


def near(got: object, allowed: Iterable[object]) -> str:
    """Return a suggestion to append, or an empty text."""
    close = nearest(str(got), [str(value) for value in allowed])
    return "" if close is None else f"; did you mean {close}?"


def nearest(got: str, allowed: Iterable[str]) -> str | None:
    """Return the name that was probably meant: nearly the same letters, else the only one with all of its words."""
    texts = {text.lower(): text for text in allowed}
    close = difflib.get_close_matches(got.lower(), list(texts), n=1, cutoff=NEAR)
    if close:
        return texts[close[0]]
    words = _words(got)
    longer = [text for text in texts.values() if words and words < _words(text)]
    return longer[0] if len(longer) == 1 else None


def _words(name: str) -> set[str]:
    return {word for word in re.split(r"[\W_]+", name.lower()) if word}
