"""The line of code at which something of the user's raised, as one short escaped text."""

from __future__ import annotations

import linecache
from pathlib import Path

from fedmq.schemas.texts import escaped

_OWN = Path(__file__).resolve().parents[2]
_MOST_CHARS = 300


def line_of(error: BaseException) -> str:
    """Return "file:line: code: ErrorType: text" of what raised first, at the innermost line that is not fedmq's own.

    If all lines are fedmq's, it is the innermost one. Control characters are escaped, and the text is cut.
    """
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    frames = []
    trace = root.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    theirs = [frame for frame in frames if not _is_own(frame[0])]
    text = short(f"{type(root).__name__}: {root}")
    if not frames:
        return text
    file, number = (theirs or frames)[-1]
    code = linecache.getline(file, number).strip()
    return short(f"{Path(file).name}:{number}: {code}") + f": {text}"


def short(text: str) -> str:
    """Return the text escaped, and cut to a few hundred characters."""
    return escaped(text[:_MOST_CHARS]) + ("" if len(text) <= _MOST_CHARS else "...")


def _is_own(file: str) -> bool:
    path = Path(file).resolve()
    return path.is_relative_to(_OWN) and "tests" not in path.relative_to(_OWN).parts[:1]
