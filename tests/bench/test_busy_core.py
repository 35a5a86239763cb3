"""What another process on the cores costs a computation, with OpenMP threads that spin and with threads that sleep."""

from __future__ import annotations

import os
import subprocess
import sys

STEPS = 300
POLICIES = ("PASSIVE", "ACTIVE")
WORK = f"""
import time, torch
a = torch.randn(192, 192)
for _ in range(20): (a @ a).relu().sum()
start = time.perf_counter()
for _ in range({STEPS}): (a @ a).relu().sum()
print(time.perf_counter() - start)
"""


def test_ratio_of_a_busy_to_an_idle_machine() -> None:
    cores = os.cpu_count() or 1
    for policy in POLICIES:
        idle = _seconds(policy, cores)
        spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            busy = _seconds(policy, cores)
        finally:
            spinning.kill()
            spinning.wait()
        print(f"{policy}: {idle:.2f} s idle, {busy:.2f} s beside one busy process, {busy / idle:.1f} times")


def _seconds(policy: str, threads: int) -> float:
    environment = {**os.environ, "OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)
