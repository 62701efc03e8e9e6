"""App files as modules of this package, for an app whose own name is taken: `fedmq.app.files.NAME`.

NAME is the file's path in hexadecimal, so another process can import it and needs to know nothing.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from fedmq.app.neighbours import import_neighbours_of

__path__: list[str] = []
"""Empty, but there: this makes the module a package."""
_PREFIX = f"{__name__}.app_"


def name_of(path: Path) -> str:
    """Return the name of the module of this file."""
    return _PREFIX + os.fsencode(path).hex()


class _Files:
    """A finder for sys.meta_path."""

    @staticmethod
    def find_spec(
        fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            return None
        path = Path(os.fsdecode(bytes.fromhex(fullname.removeprefix(_PREFIX))))
        import_neighbours_of(path)
        return importlib.util.spec_from_file_location(fullname, path)


sys.meta_path.append(_Files)
