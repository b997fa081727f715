"""This machine: its processor, memory and libraries, and whether a model fits into it."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import BackendError, ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1

LIBRARIES = ("torch", "lightning", "numpy", "scipy", "scikit-learn", "pyarrow", "faiss-cpu")
"""The installed libraries whose versions a record keeps; absent ones are left out."""


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


def versions() -> dict[str, str]:
    """Versions of Python, of this distribution and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("causalneg-lain", *LIBRARIES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Processor, cores, threads that torch uses, GPUs, and memory in bytes."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "memory": machine_memory(),
    }


def describe_hardware(found: Mapping[str, Any]) -> str:
    """What :func:`hardware` found, in one line for the head of a table."""
    parts = [
        f"{found.get('cpu', 'processor not recorded')}",
        f"{found.get('cores', '?')} cores",
        f"{found.get('threads', '?')} torch threads a run",
        *(found.get("gpu") or []),
    ]
    if memory := found.get("memory"):
        parts.append(f"{memory / 2**30:.0f} GiB")
    return ", ".join(parts)


def peak_memory(process: int | None = None) -> int:
    """The most main memory that a process has held, in bytes.

    Args:
        process: Its id; by default this one. Others are known on Linux only.

    Raises:
        BackendError: The system keeps no such figure of another process.
    """
    status = Path("/proc") / ("self" if process is None else str(process)) / "status"
    if status.exists():
        # Unlike ru_maxrss this is not inherited from the process that started this one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if process is not None:
        raise BackendError(f"process {process}: this system does not know how much memory it has held")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
