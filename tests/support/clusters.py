"""A real Ray head in processes of its own, with token authentication; with worker types also Ray's fake autoscaler.

Ray's fake provider starts every worker node as a raylet on this machine. `ray.cluster_utils.AutoscalingCluster` cannot
be used: it needs a file that the wheel lacks, and ends every Ray process of the machine.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

import tokconv
from support.ports import free_port

HEAD = "ray.head.default"


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        address: of the GCS, as in RAY_ADDRESS.
        dashboard: URL of the job server.
        environment: for client processes; contains the token.
        scratch: Ray's own files.
    """

    address: str
    dashboard: str
    environment: Mapping[str, str]
    scratch: Path

    def get(self, path: str) -> Any:
        """Return the answer of the dashboard's REST API."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        for last in (False, False, True):
            try:
                answer = requests.get(
                    f"{self.dashboard}{path}", headers={"Authorization": f"Bearer {token}"}, timeout=30
                )
                answer.raise_for_status()
                return answer.json()
            except (requests.HTTPError, requests.Timeout):
                # On a busy machine the State API answers 500 when its own time is up.
                if last:
                    raise
                time.sleep(1)

    def alive(self, what: str) -> list[dict[str, Any]]:
        """Return the living `nodes` or `actors` as Ray's State API describes them."""
        found = self.get(f"/api/v0/{what}?detail=1&limit=1000")["data"]["result"]["result"]
        return [entry for entry in found if entry["state"] == "ALIVE"]

    def pids(self) -> list[int]:
        """Return its processes, those of its worker nodes included."""
        return [pid for pid in _processes() if str(self.scratch) in _read(f"/proc/{pid}/cmdline")]

    def kill_node(self, node: str) -> None:
        """Kill a node's raylet and all of its children with SIGKILL, as if the machine were taken away."""
        raylets = [pid for pid in self.pids() if f"--node_id={node}" in _read(f"/proc/{pid}/cmdline")]
        assert len(raylets) == 1, (node, raylets)
        for pid in [*raylets, *_descendants(raylets[0])]:
            _end(pid)


@contextmanager
def head(**options: Any) -> Iterator[Head]:
    """Run a Ray head during the block; the options are those of `_head`."""
    # Linux allows 107 characters for the path of a socket, and Ray appends more than 70 to its folder: pytest's own
    # folders were too long for processes with a pid of five digits.
    with (
        tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as scratch,
        _head(Path(scratch), **options) as running,
    ):
        yield running


@contextmanager
def _head(
    scratch: Path,
    *,
    cpus: int,
    resources: Mapping[str, float] | None = None,
    workers: Mapping[str, Any] | None = None,
    idle_minutes: float = 0.1,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Head]:
    """Run a Ray head during the block.

    Args:
        scratch: holds Ray's files.
        cpus, resources: of the head.
        workers: node types of the autoscaler, as in a cluster file.
        idle_minutes: time after which an idle worker is removed.
    """
    port, dashboard_port = free_port(), free_port()
    address = f"127.0.0.1:{port}"
    token = scratch / "token"
    token.write_text(secrets.token_hex(16))
    token.chmod(0o600)
    own = _environment(token, environment or {})
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={port}", f"--dashboard-port={dashboard_port}", "--dashboard-host=127.0.0.1"]
    command += [f"--temp-dir={scratch}", f"--num-cpus={cpus}", "--node-ip-address=127.0.0.1"]
    command += [
        f"--ray-client-server-port={free_port()}",
        "--dashboard-agent-listen-port=0",
        "--include-dashboard=true",
    ]
    if resources:
        command.append(f"--resources={json.dumps(resources)}")
    start = dict(own)
    if workers:
        config = scratch / "autoscaler.yaml"
        config.write_text(json.dumps(_autoscaler(address, cpus, resources or {}, workers, idle_minutes)))
        command.append(f"--autoscaling-config={config}")
        start |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_TMPDIR": str(scratch)}
    found = Head(address, f"http://127.0.0.1:{dashboard_port}", {**own, "RAY_ADDRESS": address}, scratch)
    with (scratch / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=start, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_for(found, process)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            # A head waits for lost nodes for half a minute before it ends.
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in found.pids():
            _end(pid)


def _environment(token: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a head whose token is in a file."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(tokconv.__file__).parents[1]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        # A head without CPUs runs many small processes.
        "RAY_worker_maximum_startup_concurrency": "32",
        **more,
    }


def _autoscaler(
    address: str, cpus: int, resources: Mapping[str, float], workers: Mapping[str, Any], idle_minutes: float
) -> dict[str, Any]:
    head_type = {"resources": {"CPU": cpus, **resources}, "node_config": {}, "max_workers": 0}
    lists = [
        *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
        *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude"),
        "rsync_filter",
    ]
    return {
        "cluster_name": "fake",
        "max_workers": sum(kind["max_workers"] for kind in workers.values()),
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "available_node_types": {**workers, HEAD: head_type},
        "head_node_type": HEAD,
        "upscaling_speed": 10,
        "idle_timeout_minutes": idle_minutes,
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in lists},
        "file_mounts_sync_continuously": False,
    }


def _wait_for(found: Head, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None, (found.scratch / "head.log").read_text()
        assert time.monotonic() < deadline, (found.scratch / "head.log").read_text()
        with suppress(requests.ConnectionError, requests.HTTPError, requests.Timeout):
            if found.alive("nodes"):
                return
        time.sleep(0.5)


def _processes() -> list[int]:
    names = (path.name for path in Path("/proc").iterdir())
    return [int(name) for name in names if name.isdigit() and int(name) != os.getpid()]


def _descendants(pid: int) -> list[int]:
    parents = {child: _parent(child) for child in _processes()}
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def _parent(pid: int) -> int | None:
    status = _read(f"/proc/{pid}/status")
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:")), None)


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it ended meanwhile
        return ""


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
