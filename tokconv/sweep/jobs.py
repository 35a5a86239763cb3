"""Submits a sweep as a Ray job: the cluster's head runs the same command in a copy of the current directory."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokconv.errors import SpecError, SweepError, first_line, printable
from tokconv.sweep.spec.schema import Spec
from tokconv.system.mlflow_client import is_local
from tokconv.system.ray_cluster import TOKEN_ADVICE, use_token
from tokconv.system.storage import is_url
from tokconv.system.uris import path_of

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STOP_SECONDS = 60
"""Seconds that `ray job stop` gives a sweep to record what is finished; Ray's own 3 s end in a kill."""
OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Variables that Ray's job client prefers to the address it is given."""

TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Ray's loggers that report every step of an upload."""


def submit(
    address: str, path: Path, spec: Spec, overrides: Sequence[str], *, options: Sequence[str] = (), wait: bool = True
) -> int:
    """Run `tokconv sweep` on a cluster and follow its output; Ctrl-C leaves the job running.

    The current directory is uploaded as by `ray job submit --working-dir .`, without the files that `.gitignore` and
    `.rayignore` name.

    Args:
        address: the address of the head's dashboard, `http://HOST:8265` or `HOST:8265`.
        path: the spec's file, below the current directory.
        spec: the checked spec of that file and the overrides.
        overrides, options: the arguments of the command.
        wait: follow the output until the job has ended.

    Returns:
        0 if the job succeeded, or was submitted without waiting; 1 if it failed or was stopped.

    Raises:
        SpecError: the results would not outlive the job, or the file is outside the current directory.
        SweepError: no head answers at this address, or it refuses the token.
    """
    inside = _below_here(path)
    check_spec(spec)
    use_token()
    with _client(address) as client:
        job = client.submit_job(
            entrypoint=shlex.join(["tokconv", "sweep", inside, *overrides, *options]),
            submission_id=f"{spec.name}-{uuid.uuid4().hex[:8]}",
            runtime_env={"working_dir": ".", "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}},
            metadata={"tokconv.sweep": spec.name},
        )
        at = f"--address {shlex.quote(address)}"
        print(f"job {job} is submitted; follow it: ray job logs {at} {job} --follow", flush=True)
        print(f"  stop it: ray job stop {at} {job}; go on with it: the same command with --resume", flush=True)
        if not wait:
            return 0
        try:
            asyncio.run(_follow(client, job))
        except KeyboardInterrupt:
            print(f"\nno longer following; job {job} goes on", flush=True)
            raise
        status, detail = client.get_job_status(job), client.get_job_info(job).message
    if status.value == "SUCCEEDED":
        return 0
    print(f"tokconv: job {job}: {status.value.lower()} ({printable(detail)})", file=sys.stderr)
    return 1


def check_spec(spec: Spec) -> None:
    """Raise SpecError if a sweep's results would be deleted with the job's directory.

    Raises:
        SpecError: `storage` is missing or relative, or `data.store` or the database of `tracking.uri` is relative.
    """
    uri = spec.tracking.uri or ""
    database = str(path_of(uri)) if is_local(uri) else None
    places = {"storage": spec.storage or "", "data.store": spec.base_config().data.store, "tracking.uri": database}
    for key, place in places.items():
        if place is not None and not (is_url(place) or Path(place).is_absolute()):
            raise SpecError(
                f"{key}: {place or 'not set'}; a job's own directory is deleted with it; name a place that every "
                "node sees, as in storage=/shared/tokconv"
            )


def _below_here(path: Path) -> str:
    here = Path.cwd()
    try:
        return str(path.resolve().relative_to(here))
    except ValueError as error:
        raise SpecError(
            f"{path}: a job is sent the current directory ({here}), and this file is outside; go to a directory that "
            "holds it"
        ) from error


@contextmanager
def _client(address: str) -> Iterator[JobSubmissionClient]:
    """Yield a client; turn Ray's errors into sentences, and unset the variables that override the address."""
    aside = {name: os.environ.pop(name) for name in OVERRIDING if name in os.environ}
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield JobSubmissionClient(address if is_url(address) else f"http://{address}")
    except AuthenticationError as error:
        raise SweepError(f"--submit {address}: {TOKEN_ADVICE}") from error
    except (ConnectionError, TimeoutError) as error:
        raise SweepError(
            f"--submit {address}: no Ray head answers there; start one, or open a way to its dashboard (ray dashboard "
            "CLUSTER.yaml, or kubectl port-forward service/NAME-head-svc 8265:8265) and submit to http://localhost:8265"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise SweepError(f"--submit {address}: {first_line(error)}") from error
    finally:
        os.environ.update(aside)


async def _follow(client: JobSubmissionClient, job: str) -> None:
    lines: Any
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)
