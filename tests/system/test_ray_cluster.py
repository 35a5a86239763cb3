"""Private clusters, and the tokens of clusters that others started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray

from tokconv.system.ray_cluster import _shut_down_after

AFTER_A_TOKEN = """
import ray
from ray._raylet import AuthenticationMode, get_authentication_mode
from tokconv.system.ray_cluster import check_ray, use_token

assert get_authentication_mode() == AuthenticationMode.DISABLED
use_token()
assert get_authentication_mode() == AuthenticationMode.TOKEN
print(check_ray())
"""


@pytest.mark.slow
def test_a_private_cluster_starts_in_a_process_that_asked_for_a_token_after_ray_was_imported(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("c0ffee" * 8)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", AFTER_A_TOKEN], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.startswith("a task ran on a cluster"), done.stdout + done.stderr


def test_a_command_that_is_ended_by_sigterm_is_interrupted_as_by_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray answers SIGTERM with SystemExit, which would leave a command without a word and with another exit code."""
    shut_down: list[bool] = []
    monkeypatch.setattr(ray, "shutdown", lambda: shut_down.append(True))
    with pytest.raises(KeyboardInterrupt), _shut_down_after():
        raise SystemExit(1)
    assert shut_down == [True]
