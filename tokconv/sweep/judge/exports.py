"""What leaves a sweep: the compressor of every complete trial, and of every champion that deserves the name."""

from __future__ import annotations

import shutil
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokconv.errors import StoreError, SweepError
from tokconv.evaluation.pictures import draw_compression
from tokconv.evaluation.purposes import FIDELITY, PURPOSES
from tokconv.exports.artefact import export, load_compressor, load_decoder
from tokconv.exports.champions import is_export
from tokconv.exports.dynamic.compressor import FOLDER
from tokconv.exports.dynamic.fit import fit_dynamic
from tokconv.store.reader import TokenStore
from tokconv.sweep.judge.evidence import PENDING, UNPROVEN
from tokconv.sweep.judge.verdicts import Award, Verdict
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
    """Export a complete trial's compressor as it ended, and draw what it does to a few held-out images.

    It is the one that the figures of the trial's row are of; champions are exported as their best epochs.

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
        exported = export(checkpoint, out / "compressor", epoch="last")
    tokens = store.tokens(store.val_indices[:PICTURED_IMAGES])
    codec = load_compressor(exported), load_decoder(exported)
    draw_compression([codec] * len(tokens), tokens, out / "reconstruction.png")
    return out.relative_to(directory.path)


def export_champions(
    verdicts: Iterable[Verdict], directory: SweepDirectory, *, allow_unproven: bool
) -> dict[str, dict[str, dict[str, Any]]]:
    """Write `champions/grid-NN/PURPOSE` and return what was exported, by grid and purpose, with its place in the sweep.

    An unproven champion is exported only if that is allowed; otherwise an export that an earlier judgement left in its
    place is removed, since the sweep no longer stands by it; so is one for a purpose that is no longer judged. While
    confirmation is pending nothing is touched.
    """
    exported: dict[str, dict[str, dict[str, Any]]] = {}
    for verdict in verdicts:
        for award in verdict.awards:
            if (found := _export_champion(verdict.grid, award, directory, allow_unproven)) is not None:
                exported.setdefault(str(verdict.grid), {})[award.purpose.name] = found
        for purpose in PURPOSES.keys() - {award.purpose.name for award in verdict.awards}:
            # Of a spec that asked for it before this sweep was resumed.
            shutil.rmtree(directory.champion(verdict.grid, purpose), ignore_errors=True)
    return exported


def _export_champion(grid: int, award: Award, directory: SweepDirectory, allow_unproven: bool) -> dict[str, Any] | None:
    """Export the champion of a grid and purpose, if there is one to export."""
    evidence, out = award.evidence, directory.champion(grid, award.purpose.name)
    if evidence is not None and evidence.status == PENDING:
        return None
    if evidence is None or (evidence.status == UNPROVEN and not allow_unproven):
        if out.is_dir():
            shutil.rmtree(out)
        return None
    if evidence.exported.checkpoint is None:
        return None
    if is_export(out.parent):
        # Of a version that knew one purpose; what it holds is exported again.
        shutil.rmtree(out.parent)
    place = directory.place(evidence.exported.checkpoint)
    with local_copy(place, retry_seconds=READ_PATIENCE_SECONDS) as checkpoint:
        described = {"purpose": award.purpose.name, **evidence.as_dict()}
        export(checkpoint, out, evidence=described, epoch=award.criterion.figure)
    return {
        "trial": evidence.champion.uid,
        "run": evidence.exported.uid,
        "epoch": evidence.exported.epochs_done,
        "export": str(out.relative_to(directory.path)),
        "meets_targets": award.meets_targets,
        "evidence": evidence.status,
        "figure": award.criterion.figure,
    }


def export_dynamic(exported: Mapping[str, Container[str]], directory: SweepDirectory, store: TokenStore) -> None:
    """Fit the predictor that chooses a grid per image among the champions of fidelity, and report what it saves.

    Args:
        exported: the purposes that were exported, by grid. With fidelity at fewer than two there is nothing to choose
            from, and what an earlier judgement left, which speaks of champions that are gone, is removed.
    """
    report = directory.report / "dynamic.txt"
    if sum(FIDELITY in purposes for purposes in exported.values()) > 1:
        try:
            write_text(report, fit_dynamic(directory.champions, store).text() + "\n")
            return
        except StoreError as error:  # Too few held-out images to judge a predictor must not fail a finished sweep.
            print(f"no dynamic compression: {error}")
    shutil.rmtree(directory.champions / FOLDER, ignore_errors=True)
    report.unlink(missing_ok=True)


def unproven_notes(verdicts: Sequence[Verdict], exported: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the last lines of a sweep: for which purposes nothing wins, why, what to do, and what was exported."""
    lines, refused = [], False
    for verdict in verdicts:
        for award in verdict.awards:
            if not award.finding:
                continue
            where = f"{award.purpose.name} at {verdict.name}"
            if award.purpose.name in exported.get(str(verdict.grid), {}):
                lines.append(f"UNPROVEN: {where}, exported because of {ANYWAY}: {award.finding}")
            else:
                lines.append(f"NO CHAMPION: {where}, nothing exported or registered: {award.finding}")
                refused = refused or award.evidence is not None
    if refused:
        lines.append(f"to export unproven champions, marked as such: the same command with --resume {ANYWAY}")
    return lines
