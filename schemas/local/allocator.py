"""The C library's use of memory that was freed."""

from __future__ import annotations

import numpy as np

_BLOCK_BYTES = 31 * 2**20


def keep_freed_memory() -> None:
    """Let the allocator keep the memory of freed payloads for the next payloads.

    The kernel clears each fresh page. That costs a fifth of a coordinator's work with updates of 10 MB, and as much as
    the training of a small model. glibc returns freed memory to the kernel beyond a threshold. It raises the threshold
    to twice the largest mapped block that was ever freed, up to 32 MiB blocks. Such a block is allocated here and never
    touched. Other allocators ignore it. The process keeps at most 62 MiB more than it uses.
    """
    np.empty(_BLOCK_BYTES, np.uint8)
