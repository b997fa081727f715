"""Freed memory stays with the process."""

from __future__ import annotations

import mmap
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from common.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        b"x" * (1 << 25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
first = faults()
assert keep_freed_memory()
faults()
print(first, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the setting")
def test_an_array_as_large_as_the_last_one_costs_no_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    pages = (1 << 25) // mmap.PAGESIZE
    assert before >= 10 * pages
    assert after < pages
