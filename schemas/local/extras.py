"""Packages that a plain install leaves out, and the command that installs them.

1. The base install has what a coordinator needs, and a participant with a trainer of its own.
2. A module that needs more calls `require` before its import. A missing package is then one sentence with one command.
3. A package that is installed but fails to load is another problem: its own error stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from fedmq.schemas.errors import MissingExtra

EXTRAS: Mapping[str, str] = {
    "cryptography": "fleet",
    "keras": "keras",
    "tensorflow": "keras",
    "matplotlib": "studies",
    "numba": "studies",
    "pyarrow": "studies",
    "torch": "torch",
    "zstandard": "zstd",
}
"""Package to the extra that installs it, as in pyproject.toml."""


def require(module: str, needed_for: str) -> ModuleType:
    """Import a module of an extra.

    `needed_for` completes "It is needed for ...", as in "the report's figures". Raises MissingExtra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as e:
        missing = missing_extra(e, needed_for)
        if missing is None:
            raise
        raise missing from e


def check_installed(module: str, needed_for: str) -> None:
    """Do what `require` does, without the time and the memory of an import. Raises MissingExtra."""
    if find_spec(module) is None:
        raise _missing(module, needed_for)


def missing_extra(error: BaseException, needed_for: str) -> MissingExtra | None:
    """Return the error to raise in place of `error`; None if that is not about a package of an extra."""
    if isinstance(error, MissingExtra):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name is not None and error.name in EXTRAS:
        return _missing(error.name, needed_for)
    return None


def _missing(module: str, needed_for: str) -> MissingExtra:
    return MissingExtra(
        f"The package {module} is not installed. It is needed for {needed_for}. "
        f"Install it with: pip install 'fedmq[{EXTRAS[module]}]'"
    )
