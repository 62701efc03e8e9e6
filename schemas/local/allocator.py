"""The C library's use of memory that was freed."""

from __future__ import annotations

import ctypes

import numpy as np

_M_ARENA_MAX = -8
"""Number of glibc's setting, in malloc.h."""
_BLOCK_BYTES = 31 * 2**20


def keep_freed_memory() -> None:
    """Let the allocator keep the memory of freed payloads for the next payloads.

    The kernel clears each fresh page. That costs a fifth of a coordinator's work with updates of 10 MB, and as much as
    the training of a small model. glibc returns freed memory to the kernel beyond a threshold. It raises the threshold
    to twice the largest mapped block that was ever freed, up to 32 MiB blocks. Such a block is allocated here and never
    touched. Other allocators ignore it. The process keeps at most 62 MiB more than it uses.
    """
    np.empty(_BLOCK_BYTES, np.uint8)


def one_place_for_threads() -> None:
    """Let all threads take memory from one place, for `give_back`. Call this before threads are started.

    glibc keeps places of their own for threads. It cannot give back the top of such a place, which is up to 62 MB of
    models that were freed. Other allocators do without.
    """
    _libc("mallopt", _M_ARENA_MAX, 1)


def give_back() -> None:
    """Give the memory of freed payloads back to the kernel, as far as the allocator can."""
    _libc("malloc_trim", 0)


def _libc(name: str, *arguments: int) -> None:
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):  # another C library
        return
    function(*arguments)
