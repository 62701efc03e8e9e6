"""Choices that go by time, made once for all cells of a study and kept in its folder: a study is of one piece, and the
same again where it goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path

FOLDER = "choices"
_folder: Path | None = None


def keep_in(results: Path) -> None:
    """The choices of this process are those of the study with this folder."""
    global _folder  # noqa: PLW0603 - what a process has for its whole life
    _folder = results / FOLDER


def shared(key: str, names: Collection[str], choose: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What was chosen by this key, a file name, under these names. `choose()` is asked where nothing was; of two
    processes that ask at one time the first has its way. Outside of a study nothing is kept."""
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
    except OSError:  # it is there by now; or it is damaged, or links are unknown here
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
