"""The values that decide a cell's result, as JSON. It is equal for equal values, and differs for any that can be told
apart."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import BaseModel

_OUR_OWN = frozenset({"fedmq"})
"""Packages whose changes are covered by `studies.sweep.cell.FORMAT`."""
_LATER = frozenset(
    {
        "buffer_timeout_s",
        "min_updates",
        "partial_work",
        "optima",
        "curvatures",
        "local_steps",
        "evaluate_every_updates",
        "ties",
        "uplink",
        "downlink",
    }
)
"""Settings that came later. They are not named while they are None, and the results of before are found
again."""
_OTHERS = frozenset({*sys.stdlib_module_names, "pydantic", "numpy", "keras", "tensorflow", "torch"}) - {"__main__"}


def plain(value: Any) -> Any:
    """Return a value as JSON.

    A value has the name of its class and, if the class is the user's own, its source. An array becomes a digest of its
    bytes, a function its source, and anything else its `repr`.
    """
    if isinstance(value, np.ndarray):
        raw = repr(value.tolist()).encode() if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
        return ["array", str(value.dtype), list(value.shape), hashlib.sha256(raw).hexdigest()]
    if isinstance(value, BaseModel):
        return _with_class(value, list(type(value).model_fields))
    if is_dataclass(value) and not isinstance(value, type):
        return _with_class(value, [f.name for f in fields(value)])
    if inspect.isfunction(value):
        return [value.__module__, value.__qualname__, _source(value)]
    if isinstance(value, Mapping):
        return [type(value).__name__, [[plain(k), plain(v)] for k, v in value.items()]]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [plain(v) for v in value]]
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def _with_class(value: Any, names: list[str]) -> list[Any]:
    kind: type = type(value)
    own = {name: getattr(value, name) for name in names}
    told = {name: plain(one) for name, one in own.items() if name not in _LATER or one is not None}
    return [kind.__name__, _class_source(kind), told]


@lru_cache(maxsize=256)
def _class_source(kind: type) -> str:
    """Return the source of a class and its bases, as far as they are the user's own.

    So a changed method makes another cell. Code that the methods call elsewhere is not seen here.
    """
    own = [k for k in kind.__mro__ if k.__module__.partition(".")[0] not in _OUR_OWN | _OTHERS]
    return "".join(_source(k) for k in own)


def _source(of: Any) -> str:
    try:
        return inspect.getsource(of)
    except (OSError, TypeError):  # typed in at a prompt
        return ""
