"""The champion of a grid in MLflow's model registry: a pyfunc model from code around the exported compressor."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokconv import __version__
from tokconv.errors import printable
from tokconv.evaluation.protocol import protocol_of
from tokconv.sweep.judge.evidence import PROVEN, UNCONFIRMED
from tokconv.sweep.record.events import Event, relative_place
from tokconv.sweep.tracking.mlflow_view import shown
from tokconv.system.uris import file_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "champion"
MOST_TAG = 5000
"""Characters that a tag holds."""
MODEL_PATH = "model"
"""The model's directory among the artifacts of the trial's run."""
MISSING = "tokconv.missing"
"""Tag of a run: the path of what should have been uploaded but is gone."""
SERVING = Path(__file__).with_name("serving.py")


def register_all(
    client: MlflowClient, experiment: str, event: Event, directory: Path, sweep_run: str, run_of: Callable[[str], str]
) -> None:
    """Register what a sweep exported, tag its run with the evidence per grid, and withdraw what no longer holds.

    Args:
        experiment: the experiment's name, valid as part of a model's name.
        event: `sweep_ended` of a finished sweep. Events written before confirmation existed name neither the exported
            run nor any evidence, and hold absolute paths.
        directory: the sweep's directory, to which the paths in the event are relative.
        sweep_run: the id of the parent run.
        run_of: uid of a trial or confirmation -> id of its run.
    """
    for grid, champion in event["champions"].items():
        run_id = run_of(champion.get("run", champion["trial"]))
        known = {"evidence": UNCONFIRMED, **champion, "export": directory / relative_place(champion["export"])}
        register(client, f"tokconv-{experiment}-{grid}x{grid}", run_id, sweep_run, known)
    for grid, evidence in event.get("evidence", {}).items():
        client.set_tag(sweep_run, f"tokconv.evidence.{grid}x{grid}", evidence[:MOST_TAG])
        if grid not in event["champions"]:
            withdraw(client, f"tokconv-{experiment}-{grid}x{grid}", sweep_run)


def register(client: MlflowClient, name: str, run_id: str, sweep_run: str, champion: Mapping[str, Any]) -> None:
    """Register the compressor of a trial's run, and let the alias `champion` point at it.

    A run has one version, however often this is called. The alias stays where it is if another sweep has a newer
    version: delivering an old sweep again must not replace the present champion. Only a proven champion gets the alias.

    Args:
        name: the name of the registered model.
        run_id: the id of the trial's run.
        sweep_run: the id of its parent run.
        champion: `export` (the directory that `tokconv.export` wrote), `meets_targets` and `evidence`. An export
            that is gone is named in a tag of the run.

    Raises:
        OSError, ValueError: the export cannot be read.
        MlflowException: MLflow cannot be reached, or refuses.
    """
    export = champion["export"]
    if not export.is_dir():
        client.set_tag(run_id, MISSING, printable(export))
        return
    description = json.loads((export / "config.json").read_text(encoding="utf-8"))
    tags = {
        "ratio": shown(description["figures"]["compression_ratio"]),
        "fvu": shown(description["figures"]["val/fvu"]),
        "meets_targets": str(champion["meets_targets"]).lower(),
        "tokconv.protocol": str(protocol_of(description)),
        "tokconv.evidence": champion["evidence"],
        "tokconv.sweep_run": sweep_run,
    }
    client.set_tag(run_id, "tokconv.evidence", champion["evidence"])
    _create_model(client, name)
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((found for found in versions if found.run_id == run_id), None)
    if version is None:
        source = upload_model(client, run_id, export, description)
        version = client.create_model_version(name, source, run_id, tags)
    else:
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, value)
    if champion["evidence"] != PROVEN:
        withdraw(client, name, sweep_run)
        return
    others = [int(found.version) for found in versions if found.tags.get("tokconv.sweep_run") != sweep_run]
    if all(other < int(version.version) for other in others):
        client.set_registered_model_alias(name, ALIAS, version.version)


def withdraw(client: MlflowClient, name: str, sweep_run: str) -> None:
    """Remove the alias `champion` from a version of this sweep, which an earlier judgement gave it."""
    for model in client.search_registered_models(f"name = '{name}'"):
        version = model.aliases.get(ALIAS)
        if version and client.get_model_version(name, version).tags.get("tokconv.sweep_run") == sweep_run:
            client.delete_registered_model_alias(name, ALIAS)


def upload_model(client: MlflowClient, run_id: str, export: Path, description: Mapping[str, Any]) -> str:
    """Add the pyfunc model to a run: the code of `serving.py`, the export as its artifact, nothing pickled.

    Returns:
        The URI of the model.
    """
    # An example would be stored as JSON, and the signature below says more.
    warnings.filterwarnings("ignore", message=".*An input example was not provided", category=UserWarning)
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types.schema import Schema, TensorSpec

    sizes = description["compressor"]
    float32, dim = np.dtype(np.float32), sizes["dim"]
    with tempfile.TemporaryDirectory(prefix="tokconv-") as scratch:
        save_model(
            f"{scratch}/{MODEL_PATH}",
            python_model=str(SERVING),
            # A plain path would be unquoted, and MLflow would look for another folder.
            artifacts={"model_dir": file_uri(export)},
            signature=ModelSignature(
                inputs=Schema([TensorSpec(float32, (-1, sizes["token_grid"] ** 2, dim))]),
                outputs=Schema([TensorSpec(float32, (-1, sizes["output_grid_size"] ** 2, dim))]),
            ),
            # Named, since inferring them takes seconds. The "+cpu" of a local build is on no package index.
            pip_requirements=[f"tokconv=={__version__}", f"torch=={installed('torch').split('+')[0]}"],
        )
        client.log_artifacts(run_id, scratch)
    return f"{client.get_run(run_id).info.artifact_uri}/{MODEL_PATH}"


def _create_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
