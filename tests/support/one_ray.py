"""One Ray for many tests: starting Ray takes longer than most of the sweeps that are tested.

It runs in a process of its own, started by the first test that asks for it and ended with the test session. A sweep
finds it by RAY_ADDRESS, as it finds a cluster; a test about Ray's start, its end or its environment has its own.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

import tokconv
from tokconv.system.ray_cluster import PRIVATE_SETTINGS, SETTINGS

OUTSIDE = dict(os.environ)
"""The environment of the tests, without what the first test that asks for Ray sets for itself."""
PROGRAM = """
import os, sys
from tokconv.system.ray_cluster import ray_cluster
with ray_cluster(dashboard=True):
    print(os.environ["RAY_ADDRESS"], flush=True)
    sys.stdin.read()
"""


@contextmanager
def one_ray(**environment: str) -> Iterator[None]:
    """Let all sweeps of the block use the Ray of this session, those of child processes too.

    Args:
        environment: of the sweeps' trials, which otherwise inherit Ray's and not the test's.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", _address())
        # What a private cluster has; a sweep gives the rest to any cluster.
        for name, value in PRIVATE_SETTINGS.items():
            patch.setenv(name, value)
        # As Ray hands a job's environment to its driver, whose own settings join it.
        patch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"env_vars": environment}}))
        yield


@cache
def _address() -> str:
    environment = {name: value for name, value in OUTSIDE.items() if not name.startswith("RAY_")}
    environment |= {**SETTINGS, **PRIVATE_SETTINGS, "PYTHONPATH": str(Path(tokconv.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    # It ends when nobody holds the other end of its input, also if this process is killed.
    atexit.register(process.communicate)
    address = process.stdout.readline().strip()
    assert address, "Ray did not start"
    return address
