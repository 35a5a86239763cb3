"""What leaves a sweep: the compressor of every grid whose champion may be called one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import Any

from tokconv.exports.artefact import export
from tokconv.sweep.judge.evidence import PENDING, UNPROVEN
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.system.storage import fetched

ANYWAY = "--allow-unproven"
READ_PATIENCE_SECONDS = 60.0


def export_champions(
    verdicts: Iterable[Verdict], directory: SweepDirectory, *, allow_unproven: bool
) -> dict[str, dict[str, Any]]:
    """Write `champions/grid-NN`; what was exported comes back, by grid, with its place in the sweep's directory.

    An unproven champion is not exported unless allowed, and an export that an earlier judgement left in its place is
    removed: what lies there is what the sweep stands for. While confirmation is pending nothing is touched.
    """
    exported = {}
    for verdict in verdicts:
        champion, evidence, out = verdict.champion, verdict.evidence, directory.champion(verdict.grid)
        if champion is None or evidence is None or evidence.status == PENDING:
            continue
        if evidence.status == UNPROVEN and not allow_unproven:
            if out.is_dir():
                shutil.rmtree(out)
            continue
        if evidence.exported.checkpoint is None:
            continue
        with fetched(evidence.exported.checkpoint, patience=READ_PATIENCE_SECONDS) as checkpoint:
            export(checkpoint, out, evidence=evidence.as_dict(champion.uid))
        exported[str(verdict.grid)] = {
            "trial": champion.uid,
            "run": evidence.exported.uid,
            "export": str(out.relative_to(directory.path)),
            "meets_targets": verdict.meets_targets,
            "evidence": evidence.status,
        }
    return exported


def unproven_notes(verdicts: Iterable[Verdict], exported: Iterable[str]) -> list[str]:
    """The last lines of a sweep: what is unproven, and what became of it."""
    lines, grids = [], set(exported)
    for verdict in verdicts:
        if verdict.evidence is None or verdict.evidence.status != UNPROVEN:
            continue
        name = f"{verdict.grid}x{verdict.grid}"
        if str(verdict.grid) in grids:
            lines.append(f"UNPROVEN at {name}, exported because of {ANYWAY}: {'; '.join(verdict.evidence.reasons)}")
        else:
            lines.append(
                f"NO CHAMPION at {name}, nothing exported or registered: {'; '.join(verdict.evidence.reasons)}"
            )
    if any(line.startswith("NO CHAMPION") for line in lines):
        lines.append(f"to export what is unproven, marked as such: the same command with --resume {ANYWAY}")
    return lines
