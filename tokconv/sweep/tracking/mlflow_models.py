"""The champions of a grid in MLflow's model registry: a pyfunc model from code around each exported compressor."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokconv import __version__
from tokconv.errors import printable
from tokconv.evaluation.protocol import protocol_of
from tokconv.evaluation.purposes import FIDELITY, PURPOSES
from tokconv.sweep.judge.evidence import PROVEN, UNCONFIRMED
from tokconv.sweep.record.events import Event
from tokconv.sweep.record.layout import relative_place
from tokconv.sweep.tracking.mlflow_runs import MISSING
from tokconv.sweep.tracking.mlflow_view import model_note, shown
from tokconv.system.uris import file_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIASES = {FIDELITY: (FIDELITY, "champion")}
"""Purpose -> the aliases of its champion, if they are not its name alone. Earlier versions knew one purpose and called
its champion `champion`."""
PURPOSES_TAG = "tokconv.purposes"
"""Tag of a version: the purposes that it was judged for, separated by spaces."""
EPOCH_TAG = "tokconv.epoch"
"""Tag of a version: the epoch of its run that was exported. Versions of earlier tokconvs lack it."""
MOST_TAG = 5000
"""Characters that a tag holds."""
WON_TAG = "tokconv.champion"
"""Tag of a trial's run: what the trial won, with the evidence, as in `fidelity: proven (3)`."""
MOST_WINNERS = 10_000
MODEL_PATH = "model"
"""The model's directory among the artifacts of the trial's run; other epochs of the run have their number behind it."""
SERVING = Path(__file__).with_name("serving.py")


def champions_of(event: Event) -> dict[str, dict[str, dict[str, Any]]]:
    """Return grid -> purpose -> what was exported, from a `sweep_ended` of any version.

    Older events have one champion per grid; the oldest name neither the exported run nor any evidence.
    """
    found = {}
    for grid, champions in event["champions"].items():
        named = {FIDELITY: champions} if "trial" in champions else champions
        found[grid] = {purpose: {"evidence": UNCONFIRMED, **champion} for purpose, champion in named.items()}
    return found


def evidence_of(event: Event) -> dict[str, dict[str, str]]:
    """Return grid -> purpose -> the evidence in words, from a `sweep_ended` of any version."""
    found = event.get("evidence", {})
    return {grid: {FIDELITY: words} if isinstance(words, str) else words for grid, words in found.items()}


def register_all(
    client: MlflowClient, experiment: str, event: Event, directory: Path, sweep_run: str, run_of: Callable[[str], str]
) -> None:
    """Register what a sweep exported, tag its run with the evidence per grid and purpose, and withdraw the rest.

    Args:
        experiment: the experiment's name, valid as part of a model's name.
        event: `sweep_ended` of a finished sweep.
        directory: the sweep's directory, to which the paths in the event are relative.
        sweep_run: the id of the parent run.
        run_of: uid of a trial or confirmation -> id of its run.
    """
    champions = champions_of(event)
    for grid, named in champions.items():
        for purpose, champion in named.items():
            run_id = run_of(champion.get("run", champion["trial"]))
            known = {**champion, "export": directory / relative_place(champion["export"])}
            register(client, f"tokconv-{experiment}-{grid}x{grid}", run_id, sweep_run, known, purpose)
    for grid, evidence in evidence_of(event).items():
        for purpose, words in evidence.items():
            client.set_tag(sweep_run, f"tokconv.evidence.{grid}x{grid}.{purpose}", words[:MOST_TAG])
        others = PURPOSES.keys() - champions.get(grid, {}).keys()
        withdraw(client, f"tokconv-{experiment}-{grid}x{grid}", sweep_run, others)


def mark_winners(
    client: MlflowClient, experiment_id: str, event: Event, sweep_run: str, run_of: Callable[[str], str]
) -> None:
    """Tag the runs of the trials that won with what for, and take the tag from those that no longer do.

    Args:
        experiment_id: the experiment of the runs.
        event: `sweep_ended`; one of an earlier version does not name winners.
        sweep_run: the id of the parent run.
        run_of: uid of a trial -> id of its run.
    """
    if "winners" not in event:
        return
    won = {run_of(uid): words for named in event["winners"].values() for uid, words in named.items()}
    wanted = f"tags.`mlflow.parentRunId` = '{sweep_run}' and tags.`{WON_TAG}` LIKE '%:%'"
    before = {run.info.run_id for run in client.search_runs([experiment_id], wanted, max_results=MOST_WINNERS)}
    for run_id in before - won.keys():
        client.set_tag(run_id, WON_TAG, "")
    for run_id, words in won.items():
        client.set_tag(run_id, WON_TAG, words)


def register(
    client: MlflowClient,
    name: str,
    run_id: str,
    sweep_run: str,
    champion: Mapping[str, Any],
    purpose: str = FIDELITY,
) -> None:
    """Register the compressor of a trial's run, and let the alias of its purpose point at it.

    An epoch of a run has one version, however often this is called; purposes that are judged at the same epoch share
    it. The alias stays where it is if another sweep has a newer version for this purpose: delivering an old sweep again
    must not replace the present champion. Only a proven champion gets the alias.

    Args:
        name: the name of the registered model.
        run_id: the id of the trial's run.
        sweep_run: the id of its parent run.
        champion: `export` (the directory that `tokconv.export` wrote), its `epoch`, `meets_targets` and `evidence`. An
            export that is gone is named in a tag of the run.
        purpose: what it is the champion for.

    Raises:
        OSError, ValueError: the export cannot be read.
        MlflowException: MLflow cannot be reached, or refuses.
    """
    export = champion["export"]
    if not export.is_dir():
        client.set_tag(run_id, MISSING, printable(export))
        return
    description = json.loads((export / "config.json").read_text(encoding="utf-8"))
    epoch = str(champion.get("epoch", ""))
    tags = {
        EPOCH_TAG: epoch,
        "ratio": shown(description["figures"]["compression_ratio"]),
        "fvu": shown(description["figures"]["val/fvu"]),
        "meets_targets": str(champion["meets_targets"]).lower(),
        "tokconv.protocol": str(protocol_of(description)),
        f"tokconv.evidence.{purpose}": champion["evidence"],
        "tokconv.sweep_run": sweep_run,
    }
    client.set_tag(run_id, f"tokconv.evidence.{purpose}", champion["evidence"])
    _create_model(client, name, _note(description, name))
    versions = client.search_model_versions(f"name = '{name}'")
    of_run = [found for found in versions if found.run_id == run_id]
    version = next((found for found in of_run if found.tags.get(EPOCH_TAG, epoch) == epoch), None)
    judged_for = set() if version is None else set(version.tags.get(PURPOSES_TAG, "").split())
    tags[PURPOSES_TAG] = " ".join(sorted({*judged_for, purpose}))
    if version is None:
        place = f"{MODEL_PATH}-epoch-{epoch}" if of_run else MODEL_PATH
        source = upload_model(client, run_id, export, description, place)
        version = client.create_model_version(name, source, run_id, tags)
    else:
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, value)
    if champion["evidence"] != PROVEN:
        withdraw(client, name, sweep_run, [purpose])
        return
    # Versions of earlier tokconvs have no such tag, and were for fidelity.
    others = [found for found in versions if found.tags.get("tokconv.sweep_run") != sweep_run]
    rivals = [int(found.version) for found in others if purpose in found.tags.get(PURPOSES_TAG, FIDELITY).split()]
    if all(rival < int(version.version) for rival in rivals):
        for alias in ALIASES.get(purpose, (purpose,)):
            client.set_registered_model_alias(name, alias, version.version)


def withdraw(client: MlflowClient, name: str, sweep_run: str, purposes: Collection[str]) -> None:
    """Remove the aliases of these purposes from versions of this sweep, which an earlier judgement gave them."""
    aliases = {alias for purpose in purposes for alias in ALIASES.get(purpose, (purpose,))}
    for model in client.search_registered_models(f"name = '{name}'"):
        for alias in sorted(aliases & model.aliases.keys()):
            version = client.get_model_version(name, model.aliases[alias])
            if version.tags.get("tokconv.sweep_run") == sweep_run:
                client.delete_registered_model_alias(name, alias)


def upload_model(client: MlflowClient, run_id: str, export: Path, description: Mapping[str, Any], place: str) -> str:
    """Add the pyfunc model to a run: the code of `serving.py`, the export as its artifact, nothing pickled.

    Args:
        place: its directory among the run's artifacts.

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
            f"{scratch}/{place}",
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
    return f"{client.get_run(run_id).info.artifact_uri}/{place}"


def _note(description: Mapping[str, Any], name: str) -> str:
    sizes, tower = description["compressor"], printable(description["encoder"]["name"])
    experiment = name.removeprefix("tokconv-").rpartition("-")[0]
    return model_note(sizes["output_grid_size"], sizes["token_grid"] ** 2, tower, experiment)


def _create_model(client: MlflowClient, name: str, note: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=note)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        # A description that somebody wrote stays.
        if not client.get_registered_model(name).description:
            client.update_registered_model(name, note)
