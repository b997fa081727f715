"""Memory: what a model takes, what the machine has, and that freed memory stays with the process."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

from common.errors import ConfigError

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


def machine_memory() -> int:
    """Bytes of main memory that the machine has; of one that does not say, as many as can be counted."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return sys.maxsize


def check_fits(
    make: Callable[[], nn.Module], *, copies: int, advice: Callable[[nn.Module | None], str]
) -> None:
    """Refuse a model that is larger than the machine's memory, before any of it is allocated.

    A system that promises more memory than it has would kill the process at some later moment. The model is
    made without its numbers (on torch's device ``meta``), which takes no memory and no random numbers.

    Args:
        make: Makes the model.
        copies: How many numbers are kept for each of its weights.
        advice: What to do when it is too large, from the model without its numbers; None where even that
            cannot be made.

    Raises:
        ConfigError: The model is too large.
    """
    try:
        with torch.device("meta"):
            model = make()
    except (RuntimeError, TypeError, OverflowError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise ConfigError(f"model: too large for any machine; {advice(None)}") from error
    weights = sum(weight.nbytes for weight in model.parameters())
    needed = copies * weights + sum(buffer.nbytes for buffer in model.buffers())
    there = machine_memory()
    if needed > there:
        name, largest = max(model.state_dict().items(), key=lambda named: named[1].nbytes)
        shape = " x ".join(str(size) for size in largest.shape)
        state = " with Adam's moments" if copies > 1 else ""
        raise ConfigError(
            f"model: needs {needed / 1e9:,.1f} GB{state}, this machine has {there / 1e9:,.1f} GB "
            f"(its largest part is {name}, {shape}); {advice(model)}"
        )


@contextmanager
def out_of_memory(advice: str) -> Iterator[None]:
    """Turn a failed allocation inside the block, of NumPy or torch, on any device, into a clear line.

    Args:
        advice: What to do then.

    Raises:
        ConfigError: An allocation failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = ("DefaultCPUAllocator", "out of memory")
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in known):
            raise
        raise ConfigError(f"not enough memory; {advice}") from error
