"""Page faults of a process that takes and frees the same memory again and again, and what it gives back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from pathlib import Path
import torch
from mlp_lab.training.heap import give_back_freed_memory, keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

ctypes.CDLL(None).mallopt(-1, 2**17)  # M_TRIM_THRESHOLD as it is at first; glibc's own adjustments depend on luck
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for step in range(8):
    if step == 2:
        before = faults()
    blocks = [torch.ones(2 * 2**20) for _ in range(8)]  # of 8 MB
    del blocks
taken = faults() - before
kept = resident()
give_back_freed_memory()
print(taken, kept - resident())
"""
PAGES = 8 * 2 * 2**20 * 4 // 4096  # of all blocks of a round


def run(mode: str) -> tuple[int, int]:
    """Returns the page faults of six rounds, and the pages given back at the end."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    taken, released = map(int, done.stdout.split())
    return taken, released


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    taken, _ = run("give back")
    kept, released = run("keep")
    assert kept < PAGES < taken / 4
    assert released > PAGES / 2
