"""A compressor in MLflow's model registry, fetched to this machine: `models:/tokconv-demo-6x6@champion`."""

from __future__ import annotations

import re
from pathlib import Path

from tokconv.errors import CheckpointError, first_line, import_extra
from tokconv.system.files import atomic_path
from tokconv.system.mlflow_client import connect, is_local, tracking_uri
from tokconv.system.storage import cache_dir
from tokconv.system.uris import path_of, without_credentials

REGISTERED_MODEL = "models:/"
NAME = re.compile(r"models:/+(?P<name>[^/@:]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")
RUNS = Path("runs")
"""Where the tracking of sweeps is, unless MLFLOW_TRACKING_URI names another place."""


def fetch_registered(uri: str) -> Path:
    """Return this machine's copy of a registered model; a version that was fetched before is not fetched again.

    The registry is the one at MLFLOW_TRACKING_URI, or else that of the sweeps in `runs`.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        CheckpointError: there is no such registry, or no such model in it.
        MissingExtraError: MLflow is not installed.
    """
    match = NAME.fullmatch(uri)
    if match is None:
        raise CheckpointError(
            f"{uri}: names no version; write models:/NAME@ALIAS or models:/NAME/VERSION, as in "
            "models:/tokconv-demo-6x6@champion"
        )
    refused = import_extra("mlflow.exceptions", "sweep").MlflowException
    registry = tracking_uri(None, RUNS)
    if is_local(registry) and not path_of(registry).is_file():
        raise CheckpointError(
            f"{uri}: there is no MLflow database {path_of(registry)}; set MLFLOW_TRACKING_URI, or go to the folder "
            "where the sweep was started"
        )
    client = connect(registry)
    name, alias = match["name"], match["alias"]
    try:
        if alias is not None:
            version = client.get_model_version_by_alias(name, alias)
        else:
            version = client.get_model_version(name, match["version"])
        # A run has a version for every epoch of it that is a champion.
        copy = cache_dir() / "models" / name / f"{version.run_id}-{version.version}"
        if not copy.is_dir():
            with atomic_path(copy) as temporary:
                temporary.mkdir()
                client.download_artifacts(str(version.run_id), str(version.source).rpartition("/")[2], str(temporary))
    except (refused, OSError) as error:
        raise CheckpointError(
            f"{uri}: MLflow at {without_credentials(registry)} does not have it ({first_line(error)}); its models are "
            "named tokconv-SWEEP-KxK, with an alias per purpose and champion for fidelity"
        ) from error
    return copy
