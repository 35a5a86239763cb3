"""Starting Ray: the cluster that RAY_ADDRESS names, else a private one on this machine."""

from __future__ import annotations

import gc
import os
import signal
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokconv.errors import ClusterError, SpecError

SETTINGS = {
    # Our own record replaces Tune's CSV and JSON loggers, its snapshots and its tables.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # train.report is throttled to one call per health check, by default every 2 s: longer than a small trial's epoch.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Without this, a worker that is never scheduled waits for ever.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # Prometheus metrics of every Train worker and controller: nobody scrapes them, and they cost a second per trial.
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # A trial is several small processes that mostly wait; Ray would report more than four per CPU as a problem.
    "RAY_worker_maximum_startup_concurrency": "32",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

PRIVATE_SETTINGS = {
    # One process per trial watches for spot machines that are about to be reclaimed; this machine is not one.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

TASK_SECONDS = 120.0

LOCALHOST = "127.0.0.1"

DRIVER_RESOURCE = "tokconv_driver"
"""A custom resource of the nodes that host the trials' drivers: the head, which is never taken away."""
UPLOADED = "working_dir_files"
"""Ray unpacks the upload of a job below a directory of this name, and deletes it when the job is over."""

VERSIONS_DIFFER = "Version mismatch"
"""In Ray's message if driver and cluster have other versions of Ray or Python, which it names."""
TOKEN_ADVICE = (
    "the cluster refuses this token, or needs one and none is set; put the cluster's token into RAY_AUTH_TOKEN, into "
    "the file that RAY_AUTH_TOKEN_PATH names, or into ~/.ray/auth_token"
)


@contextmanager
def ray_cluster(*, dashboard: bool) -> Iterator[bool]:
    """Run Ray while the block runs; yield whether the cluster is private. Only a private cluster ends with the block.

    Args:
        dashboard: required by every `TorchTrainer`: Ray Train frees the resources of a stopped trial through the
            dashboard's State API; without it, an early-stopped trial keeps its CPUs for ever.

    Raises:
        ClusterError: RAY_ADDRESS names a cluster that does not answer.
    """
    address = os.environ.get("RAY_ADDRESS")
    settings = SETTINGS if address else SETTINGS | PRIVATE_SETTINGS
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if address:
        use_token()
    import ray
    from ray.exceptions import AuthenticationError

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        try:
            ray.init(address=address, runtime_env={"env_vars": {**settings, "RAY_ADDRESS": address}}, **quiet)
        except AuthenticationError as error:
            raise ClusterError(f"RAY_ADDRESS={address}: {TOKEN_ADVICE}") from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            if VERSIONS_DIFFER in str(error):
                raise ClusterError(f"RAY_ADDRESS={address}: {' '.join(str(error).split())}") from error
            raise ClusterError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there; start one, or unset RAY_ADDRESS to use this "
                "machine"
            ) from error
        with _shut_down_after():
            yield False
        return
    # This address distinguishes two clusters on one host; without it the State API refuses to choose.
    port = _free_port()
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    os.environ["RAY_ADDRESS"] = f"{LOCALHOST}:{port}"
    try:
        with _shut_down_after():
            ray.init(
                address="local",
                include_dashboard=dashboard,
                # A private cluster accepts connections from this machine only.
                _node_ip_address=LOCALHOST,
                **quiet,
            )
            yield True
    finally:
        del os.environ["RAY_ADDRESS"], os.environ["RAY_GCS_SERVER_PORT"]


@contextmanager
def _shut_down_after() -> Iterator[None]:
    """Shut Ray down after every object that refers to it is gone.

    A handle that is collected after the shutdown would end this process at once: Ray's core worker exits on it.
    """
    import ray

    try:
        yield
    except BaseException as error:
        # Ray answers SIGTERM with an exception here, and with an alarm that ends the process three seconds later.
        signal.alarm(0)
        # While the error is being handled, the frames of Tune that it passed through hold such handles.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, SystemExit):
            # Nothing else exits here, and whoever stops a command by SIGTERM is told what Ctrl-C would tell.
            raise KeyboardInterrupt from error
        raise
    finally:
        gc.collect()
        ray.shutdown()


def use_token() -> None:
    """Turn token authentication on for this process if a token is available and RAY_AUTH_MODE is not set.

    Ray's clients do not send a token to an address by default, even to a head that requires one.
    """
    in_environment = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if "RAY_AUTH_MODE" in os.environ or not (in_environment or (Path.home() / ".ray" / "auth_token").exists()):
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    from ray._raylet import Config  # type: ignore[attr-defined]  # compiled, and not in its stubs

    # Ray reads the mode once per process; if that was before, this process would send no token, even to the private
    # clusters that it starts afterwards, and they would refuse it.
    Config.initialize("")


def check_outlives_job(path: Path, key: str) -> None:
    """Refuse a place inside the directory that a Ray job uploaded, which is deleted with the job.

    Raises:
        SpecError: the place is there; `key` is the config key that names it.
    """
    if UPLOADED in path.resolve().parts:
        raise SpecError(
            f"{key}: {path} is in the directory that this job uploaded, which Ray deletes; name one that every node "
            "sees, as in storage=/shared/tokconv"
        )


def check_ray() -> str:
    """Run a task on a cluster for `tokconv doctor`; return a sentence about it. Raises what Ray raises."""
    with ray_cluster(dashboard=True):
        import ray

        answer = ray.get(ray.remote(num_cpus=0.1)(lambda: 42).remote(), timeout=TASK_SECONDS)
        if answer != 42:
            raise ClusterError(f"a Ray task returned {answer!r} instead of 42")
        resources = ray.cluster_resources()
    return f"a task ran on a cluster with {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
