"""Freed memory is kept for the next request, so that a request that grows does not cost new pages each time."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

GROWING = """
import resource
from graphton._process import keep_freed_memory
keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for size in range(500_000, 600_000, 1_000):
    body = b"x" * size
    sent = b"head" + body
    del body, sent
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_blocks_that_are_larger_than_any_before_cost_no_new_pages() -> None:
    ran = subprocess.run([sys.executable, "-c", GROWING], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 2_000  # A hundred times two blocks of 122 to 146 pages are 26,800.
