"""Memory of freed tensors is used again, unless the user's environment decides."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from tokconv.system.memory import keep_freed_memory
keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16, 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what glibc does")
def test_memory_is_used_again_unless_the_environment_says_otherwise() -> None:
    faults = []
    for given in ({}, {"MALLOC_MMAP_THRESHOLD_": "131072"}):
        environment = {**os.environ, **given}
        done = subprocess.run(
            [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
        )
        faults.append(int(done.stdout))
    kept, given_back = faults
    assert kept < given_back / 20
