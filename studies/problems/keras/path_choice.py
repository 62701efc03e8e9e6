"""Choices by time, made once for all cells of a study and kept in its folder.

So all cells of a study make the same choice, and so does a study that goes on later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path

FOLDER = "choices"
_folder: Path | None = None


def keep_in(results: Path) -> None:
    """Share the choices of this process with the study that has this results' folder."""
    global _folder  # noqa: PLW0603 - what a process has for its whole life
    _folder = results / FOLDER


def shared(key: str, names: Collection[str], choose: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Return the choice of this key (a file name), with these `names` as its fields.

    If there is none yet, `choose()` makes it. If two processes choose at the same time, the first one decides. Outside
    of a study nothing is kept.
    """
    if _folder is None:
        return choose()
    path = _folder / f"{key}.json"
    found = _read(path, names)
    if found is not None:
        return found
    chosen = choose()
    _folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(chosen), encoding="utf-8")
    try:
        os.link(part, path)
    except OSError:  # the file is there by now, or it is damaged, or this file system has no links
        if _read(path, names) is None:
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return _read(path, names) or chosen


def _read(path: Path, names: Collection[str]) -> dict[str, str] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(found, dict) and all(isinstance(found.get(name), str) for name in names)
    return {name: found[name] for name in names} if known else None
