"""The modules that an app file may import: its neighbours, and all that is installed.

Rules
1. A module that is loaded already stays what it is, as in any Python program.
2. The standard library, fedmq, and the packages that fedmq depends on come from where they are installed. fedmq loads
   many of them late: a neighbour called queue.py or keras.py must not take their place. A warning names such a
   neighbour when the app is loaded.
3. Every other name is looked for beside the app file before it is looked for anywhere else. A neighbour called
   schemas.py or utils.py is the app's own, whatever is installed under that name.
4. The app's folder also stands at the end of sys.path: for processes that the app starts with multiprocessing
   (`fedmq.app.module_names`), and for folders without an __init__.py.
5. Nothing else puts a user's folder in front of what is installed. `python -m fedmq` moves the current folder to the
   end of sys.path (fedmq.__main__), and each process that fedmq starts runs under `python -P` (fedmq.app.children).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.local.extras import EXTRAS

log = EventLog(__name__)

DEPENDENCIES = frozenset(
    {
        "annotated_doc", "annotated_types", "click", "markdown_it", "mdurl", "ml_dtypes", "msgpack", "numpy", "pika",
        "psutil", "pydantic", "pydantic_core", "pygments", "rich", "shellingham", "sortedcontainers", "typer",
        "typing_extensions", "typing_inspection", *EXTRAS,
    }
)  # fmt: skip
"""Import names of the base install, and of the packages that its extras name."""
PROTECTED = frozenset({"fedmq", *DEPENDENCIES, *sys.stdlib_module_names})


class Neighbours:
    """A finder for sys.meta_path that looks in one app's folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a top-level module beside the app; None leaves it to the finders that come next."""
        if path is not None or fullname in PROTECTED:
            return None
        spec = PathFinder.find_spec(fullname, [self.folder])
        return None if spec is None or spec.loader is None else spec  # no loader: a plain folder, of data perhaps


def import_neighbours_of(app: Path) -> None:
    """Let the app file's folder answer imports, by the rules above. Idempotent."""
    folder = app.resolve().parent
    if any(isinstance(one, Neighbours) and one.folder == str(folder) for one in sys.meta_path):
        return
    sys.meta_path.insert(sys.meta_path.index(PathFinder), Neighbours(str(folder)))
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    for file in hidden_by(app):
        name = file.stem if file.name != "__init__.py" else file.parent.name
        log.warning("neighbour_hidden", file=file, why=f"`import {name}` gives the installed module")


def hidden_by(app: Path) -> list[Path]:
    """Return the modules and packages beside an app file that it cannot import, because their names are taken."""
    folder = app.resolve().parent
    modules = [path for path in folder.glob("*.py") if path.stem in PROTECTED - {app.stem}]
    return sorted([*modules, *(path for path in folder.glob("*/__init__.py") if path.parent.name in PROTECTED)])
