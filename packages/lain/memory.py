"""Memory that is freed stays with the process."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed for the next allocation, from now on.

    glibc gives every large block back to the system when it is freed, and the system clears each page of
    the next one: in a training step on a CPU, whose arrays are as large in every step, that takes up to
    40 % of the time. Costs nothing but that the process's size stays at its peak.

    Returns:
        Whether the C library has this setting; others are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all(mallopt(parameter, _MOST) == 1 for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
