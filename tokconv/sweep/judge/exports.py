"""What leaves a sweep: the compressor of every complete trial, and of every grid whose champion deserves the name."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokconv.errors import StoreError, SweepError
from tokconv.evaluation.pictures import draw_compression
from tokconv.exports.artefact import export, load_compressor, load_decoder
from tokconv.exports.dynamic.fit import fit_dynamic
from tokconv.store.reader import TokenStore
from tokconv.sweep.judge.evidence import PENDING, UNPROVEN
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.remote_checkpoints import OUTAGE_SECONDS
from tokconv.system.files import write_text
from tokconv.system.storage import local_copy

ANYWAY = "--allow-unproven"
READ_PATIENCE_SECONDS = 60.0
"""How long the end of a sweep waits for a storage that is away before it gives up a checkpoint there."""
PICTURED_IMAGES = 4


def export_trial(trial: TrialRecord, directory: SweepDirectory, store: TokenStore) -> Path:
    """Export a complete trial's compressor and draw what it does to a few held-out images.

    Returns:
        The directory with `compressor/` and `reconstruction.png`, relative to the sweep's.

    Raises:
        SweepError: the trial has no checkpoint.
        StorageError: the checkpoint's storage was away for too long.
    """
    out = directory.artifacts(trial.uid)
    if trial.checkpoint is None:
        raise SweepError(f"trial {trial.uid} ended without a checkpoint")
    with local_copy(directory.place(trial.checkpoint), retry_seconds=OUTAGE_SECONDS) as checkpoint:
        exported = export(checkpoint, out / "compressor")
    tokens = store.tokens(store.val_indices[:PICTURED_IMAGES])
    codec = load_compressor(exported), load_decoder(exported)
    draw_compression([codec] * len(tokens), tokens, out / "reconstruction.png")
    return out.relative_to(directory.path)


def export_champions(
    verdicts: Iterable[Verdict], directory: SweepDirectory, *, allow_unproven: bool
) -> dict[str, dict[str, Any]]:
    """Write `champions/grid-NN` and return what was exported, by grid, with its place in the sweep's directory.

    An unproven champion is exported only if that is allowed; otherwise an export that an earlier judgement left in its
    place is removed, since the sweep no longer stands by it. While confirmation is pending nothing is touched.
    """
    exported = {}
    for verdict in verdicts:
        evidence, out = verdict.evidence, directory.champion(verdict.grid)
        if evidence is None or evidence.status == PENDING:
            continue
        if evidence.status == UNPROVEN and not allow_unproven:
            if out.is_dir():
                shutil.rmtree(out)
            continue
        if evidence.exported.checkpoint is None:
            continue
        place = directory.place(evidence.exported.checkpoint)
        with local_copy(place, retry_seconds=READ_PATIENCE_SECONDS) as checkpoint:
            export(checkpoint, out, evidence=evidence.as_dict())
        exported[str(verdict.grid)] = {
            "trial": evidence.champion.uid,
            "run": evidence.exported.uid,
            "export": str(out.relative_to(directory.path)),
            "meets_targets": verdict.meets_targets,
            "evidence": evidence.status,
        }
    return exported


def export_dynamic(directory: SweepDirectory, store: TokenStore) -> None:
    """Fit the predictor that chooses a grid per image next to the exported champions, and report what it saves."""
    try:
        dynamic = fit_dynamic(directory.champions, store)
    except StoreError as error:  # Too few held-out images to judge a predictor must not fail a finished sweep.
        print(f"no dynamic compression: {error}")
        return
    write_text(directory.report / "dynamic.txt", dynamic.text() + "\n")


def unproven_notes(verdicts: Sequence[Verdict], exported: Iterable[str]) -> list[str]:
    """Return the last lines of a sweep: which champions are unproven, and whether they were exported all the same."""
    lines, grids, refused = [], set(exported), False
    for verdict in verdicts:
        if verdict.evidence is None or verdict.evidence.status != UNPROVEN:
            continue
        reasons = "; ".join(verdict.evidence.reasons)
        if str(verdict.grid) in grids:
            lines.append(f"UNPROVEN at {verdict.name}, exported because of {ANYWAY}: {reasons}")
        else:
            lines.append(f"NO CHAMPION at {verdict.name}, nothing exported or registered: {reasons}")
            refused = True
    if refused:
        lines.append(f"to export unproven champions, marked as such: the same command with --resume {ANYWAY}")
    return lines
