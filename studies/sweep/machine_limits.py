"""The cores and the memory that a study may take. A container's limits count, and not only the machine's own."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes(cgroup: Path = _CGROUP) -> int:
    """Return the bytes of memory that are available now, within the container's limit if there is one (cgroup v2)."""
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return available if limit == "max" else max(0, min(available, int(limit) - int(used)))
    except (OSError, ValueError):
        return available
