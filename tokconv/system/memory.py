"""How long the C library keeps memory that was freed."""

from __future__ import annotations

import ctypes
import os
import sys

LARGEST_KEPT = 2**28
"""Larger blocks go back to the system at once, in bytes."""
MOST_KEPT = 2**29
"""Free memory at the end of the heap beyond this goes back, in bytes."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
OF_THE_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones, unless the environment says how it should be.

    It returns blocks of more than 32 MiB at once, and the next one costs page faults: a fifth of the time of closed
    forms on a thousand images. With another C library nothing changes.
    """
    if sys.platform != "linux" or any(name in os.environ for name in OF_THE_USER):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
