"""Start another Python process that runs fedmq: this very fedmq, with no folder of a user's in front of it."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Folder that this fedmq lies in."""


def python(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of fedmq. `-P` keeps the current folder off sys.path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without settings of a federation: one of them is the broker's URL, with its password.

    FEDMQ_TF_THREADS and FEDMQ_FAULT stay, because they are about processes.
    """
    return {k: v for k, v in environ.items() if not k.startswith("FEDMQ_") or k in ("FEDMQ_TF_THREADS", "FEDMQ_FAULT")}


def importable(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which a child finds this fedmq, also from a clone that is not installed."""
    found = dict(environ)
    if str(ROOT) not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (environ.get("PYTHONPATH"), str(ROOT))))
    return found
