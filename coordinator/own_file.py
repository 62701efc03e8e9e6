"""Python files of the user's own that a federation file names: a strategy's, a codec's.

Each is a file of its own, not the app, because the coordinator loads it and the app loads TensorFlow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from fedmq.schemas.errors import AppError
from fedmq.schemas.nearest import near


def call(file: str, options: Mapping[str, Any], what: str, table: str) -> Any:
    """Return what a file's `build_<what>(**options)` makes. `table` is the federation file's, which has the options.

    Raises AppError if there is no such file or function, or if it fails.
    """
    function = f"build_{what}"
    module_name = f"fedmq_custom_{what}_{hashlib.sha256(os.path.abspath(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise AppError(f"The {what} file {file} is not a Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        raise AppError(
            f"There is no {what} file {file}. {table}.file is relative to the federation file that names it."
        ) from None
    except (Exception, SystemExit) as e:
        raise AppError(f"The {what} file {file} fails when it is loaded: {type(e).__name__}: {e}") from e
    if not callable(getattr(module, function, None)):
        there = ", ".join(name for name in vars(module) if not name.startswith("_"))
        raise AppError(f"{file} has no function {function}(**options). It has {there}.")
    try:
        return getattr(module, function)(**options)
    except (Exception, SystemExit) as e:
        said = str(e)
        if isinstance(e, ValidationError):  # its text has many lines
            said = "; ".join(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in e.errors())
        said = f"{function} in {file} failed with {dict(options)}: {type(e).__name__}: {said}"
        raise AppError(said + _allowed(module, function, options, str(e), table)) from e


def _allowed(module: ModuleType, function: str, options: Mapping[str, Any], said: str, table: str) -> str:
    """Return a text on the first unknown option and the allowed ones; an empty one if no option is unknown.

    The function takes every name, so the class that refused one is asked too: the error names it.
    """
    named = [value for name, value in vars(module).items() if re.search(rf"\b{name}\b", said)]
    for names in map(_names, (getattr(module, function), *(value for value in named if isinstance(value, type)))):
        for option in options:
            if names and option not in names:
                hint = near(option, names)
                return f". {table}.options has an unknown key {option}, allowed: {', '.join(names)}{hint}"
    return ""


def _names(function: Any) -> list[str]:
    """Return the names of a dataclass's or a function's parameters; an empty list if it takes any name."""
    if isinstance(function, type):  # pydantic's signature lacks the fields of a plain dataclass that extends one
        return (
            sorted(f.name for f in dataclasses.fields(function) if f.init) if dataclasses.is_dataclass(function) else []
        )
    parameters = inspect.signature(function).parameters.values()
    return [] if any(p.kind is p.VAR_KEYWORD for p in parameters) else sorted(p.name for p in parameters)
