"""Starting Ray for a sweep: an existing cluster when RAY_ADDRESS names one, else a private one on this machine."""

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
    # Our own record replaces Tune's CSV and JSON loggers, its snapshots and its boxes.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # train.report is throttled to one per health check, which is 2 s by default: longer than a small trial's epoch.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Without it a worker that is never scheduled waits for ever.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # Prometheus metrics of every Train worker and controller: nobody scrapes them, and they cost a second a trial.
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # A trial is several small processes that mostly wait; more than four per CPU would be reported as a problem.
    "RAY_worker_maximum_startup_concurrency": "32",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

PRIVATE_SETTINGS = {
    # It watches for spot machines about to be taken away, with a process of its own a trial: not on this machine.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

TASK_SECONDS = 120.0

LOCALHOST = "127.0.0.1"

DRIVER_RESOURCE = "tokconv_driver"
"""A custom resource of the nodes that shall host the trials' drivers: the head, which is never taken away."""
UPLOADED = "working_dir_files"
"""Ray unpacks what a job uploads below a directory of this name, and deletes it when the job is over."""

TOKEN_ADVICE = (
    "the cluster refuses this token, or asks for one and there is none; put the cluster's token into RAY_AUTH_TOKEN, "
    "into the file that RAY_AUTH_TOKEN_PATH names, or into ~/.ray/auth_token"
)


@contextmanager
def ray_cluster(*, dashboard: bool) -> Iterator[bool]:
    """Ray while the block runs; a private cluster is ended with it, a shared one is left. Yields whether it is private.

    Args:
        dashboard: needed by every `TorchTrainer`: Ray Train frees the resources of a stopped trial through the
            dashboard's State API, and without it an early-stopped trial keeps its CPUs for ever.

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
            raise ClusterError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there; start one, or unset RAY_ADDRESS to use this "
                "machine"
            ) from error
        with _shut_down_after():
            yield False
        return
    # Two clusters on one host are told apart by this address; without it the State API refuses to choose.
    port = _free_port()
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    os.environ["RAY_ADDRESS"] = f"{LOCALHOST}:{port}"
    try:
        with _shut_down_after():
            ray.init(
                address="local",
                include_dashboard=dashboard,
                # Nothing of a private cluster listens beyond this machine.
                _node_ip_address=LOCALHOST,
                **quiet,
            )
            yield True
    finally:
        del os.environ["RAY_ADDRESS"], os.environ["RAY_GCS_SERVER_PORT"]


@contextmanager
def _shut_down_after() -> Iterator[None]:
    """Shut Ray down with nothing left that refers to it.

    A handle that is collected later would end this process on the spot: Ray's core worker exits on it.
    """
    import ray

    try:
        yield
    except BaseException as error:
        # Ray answers SIGTERM by an exception here, and by an alarm that ends the process three seconds later.
        signal.alarm(0)
        # As long as the error is handled, the frames of Tune that it has passed hold such handles.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()
        ray.shutdown()


def use_token() -> None:
    """Turn token authentication on for this process when a token is at hand; to be called before Ray is imported.

    Ray's clients send a token only when told to, also to a head that asks for one.
    """
    at_hand = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if at_hand or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def check_lasting(path: Path, key: str) -> None:
    """Refuse a place inside the tree that a Ray job uploaded, which is deleted with the job.

    Raises:
        SpecError: with the key that names the place.
    """
    if UPLOADED in path.resolve().parts:
        raise SpecError(
            f"{key}: {path} is in the directory that this job uploaded, which Ray deletes; name one that every node "
            "sees, as in storage=/shared/tokconv"
        )


def check_ray() -> str:
    """Run a task on a cluster, for `tokconv doctor`; what was found comes back. Raises what Ray raises."""
    with ray_cluster(dashboard=True):
        import ray

        answer = ray.get(ray.remote(num_cpus=0.1)(lambda: 42).remote(), timeout=TASK_SECONDS)
        if answer != 42:
            raise ClusterError(f"a Ray task was to return 42 and returned {answer!r}")
        resources = ray.cluster_resources()
    return f"a task ran on a cluster with {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
