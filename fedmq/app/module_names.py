"""The name under which an app file is a module: one that other processes can import.

multiprocessing's `spawn` and `forkserver` send a function or a class by its module's name. Their process gets our
sys.path, on which the app's folder stands, and nothing else.

Rules
1. The name is that of the file (`app` for app.py) if an import in such a process finds this very file, and finds each
   neighbour of the app where the app finds it.
2. Otherwise it is `fedmq.app.files.NAME`, a package that finds the file by its name, which holds the path. It lets the
   file's neighbours be imported first (`fedmq.app.neighbours`).
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

from fedmq.app.files import name_of
from fedmq.app.neighbours import PROTECTED


def module_name(path: Path) -> str:
    """Return the name for this file. Its folder is on sys.path (`import_neighbours_of`)."""
    path = path.resolve()
    stem = path.stem
    loaded = sys.modules.get(stem)
    free = loaded is None or getattr(loaded, "__file__", None) == str(path)
    if not (stem.isidentifier() and stem not in PROTECTED and free and _found(stem) == path):
        return name_of(path)
    for name, place in _neighbours(path.parent).items():
        if name not in PROTECTED and _found(name) != place:
            return name_of(path)
    return stem


def _neighbours(folder: Path) -> dict[str, Path]:
    """Return the modules and packages beside the app by name, with the file that an import runs."""
    modules = {path.stem: path for path in folder.glob("*.py")}
    packages = {path.parent.name: path for path in folder.glob("*/__init__.py")}
    return modules | packages


def _found(name: str) -> Path | None:
    """Return the file that an import without our finder runs."""
    try:
        spec = PathFinder.find_spec(name)
    except (ImportError, ValueError):
        return None
    return None if spec is None or not spec.has_location or spec.origin is None else Path(spec.origin).resolve()
