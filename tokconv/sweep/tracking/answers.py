"""Answers of a vision-language model with a sweep's champions: into the sweep's record, and from there to MLflow.

The metrics of a champion's run are `answers/TASK/accuracy`, `kept`, `agreement`, `kl` and `perplexity`, as far as the
task has them. A run that is measured again keeps the earlier points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokconv.exports.champions import is_export
from tokconv.sweep.judge.snapshot import recorded_spec
from tokconv.sweep.record.figures import finite
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import Record
from tokconv.sweep.tracking.mlflow_connection import tracking_uri
from tokconv.sweep.tracking.mlflow_writer import MlflowWriter
from tokconv.system.files import read_json_object

EVENT = "trial_answered"
FIGURES = ("accuracy", "kept", "agreement", "kl", "perplexity")


def record_answers(place: Path, answered: Sequence[tuple[Path, Mapping[str, Any]]], timeout: float = 60.0) -> str:
    """Write the answers of champions to their sweep's record and deliver them; return what became of the delivery.

    Args:
        place: the sweep's directory.
        answered: folder of a champion, and its figures as `tokconv.exports.answers.figures.figures_of` has them.
        timeout: seconds that the tracking server has; what then remains is delivered by the next command.

    Raises:
        SweepError: a driver is at work there, or the record is damaged.
    """
    directory = SweepDirectory(place)
    spec, root = recorded_spec(directory), place.parents[1]
    with directory.lock():
        record = Record(directory.events)
        for folder, figures in answered:
            # A champion's export names the run that it was exported from; those of older versions do not.
            described = read_json_object(folder / "config.json") if is_export(folder) else {}
            uid = described.get("evidence", {}).get("exported")
            if uid in record.trials or uid in record.confirmations:
                record.append(EVENT, trial=uid, figures=_metrics(figures))
        record.close()
        writer = MlflowWriter(
            directory.events,
            uri=tracking_uri(spec.tracking.uri, root),
            experiment=spec.tracking.experiment or spec.name,
            artifact_root=root,
            sweep=directory.name,
            cursor=directory.cursor,
        )
        return writer.close(timeout).message


def _metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    found = {
        f"answers/{task}/{name}": own[name]
        for task, own in figures["tasks"].items()
        for name in FIGURES
        if own.get(name) is not None
    }
    return finite(found)
