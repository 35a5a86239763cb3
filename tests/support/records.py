"""Directories of sweeps, written by the real record without any training, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from support.sweeping import spec as plain_spec
from support.trials import TOKEN_GRID
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.models.windows import compression_ratio
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import Record
from tokconv.sweep.record.remote import Root
from tokconv.sweep.spec.file import parse_spec, spec_to_dict, to_yaml
from tokconv.sweep.spec.outline import GRID_KEY, Outline
from tokconv.sweep.spec.schema import Spec
from tokconv.system.files import write_text

GRIDS, EPOCHS = (4, 8), 4


def baseline(fvu: float, swd: float) -> dict[str, float]:
    """Return the figures of a baseline."""
    return {"val/fvu": fvu, "val/swd": swd, "val/swd_floor": 0.02, "val/cosine": 0.9}


def write_sweep(
    root: Path,
    *,
    trials: int = 24,
    ended: bool = True,
    name: str = "tiny",
    reason: str = "dominated",
    protocol: int | None = PROTOCOL,
    **changes: Any,
) -> SweepDirectory:
    """Write a sweep over two grids: every fifth trial is stopped early, one fails, each winner is confirmed.

    Args:
        ended: false leaves the last trial running and the record without an end.
        reason: why the failed trial failed.
        protocol: the evaluation protocol in the record; None for none, as the first version wrote it.
    """
    random = Random(0)
    checked = parse_spec(
        plain_spec(
            root,
            name=name,
            trials=trials,
            confirm={"seeds": 3},
            early_stopping={"min_epochs": 1, "reduction": 2},
            **changes,
        )
    )
    directory = Root(root / "runs").new(name)
    write_text(directory.spec, to_yaml(checked))
    record = Record(directory.events)
    stated = {} if protocol is None else {"protocol": protocol}
    _start(record, checked, sweep=directory.name, experiment=name, **stated)
    run = partial(_run, record, random, reason)
    for number in range(trials):
        values = {
            GRID_KEY: GRIDS[number % 2],
            "loss.weights.wgan": random.choice([0, 0.01]),
            "training.n_critic": random.choice([1, 2]),
        }
        state = "pruned" if number % 5 == 4 else "failed" if number == 3 else "complete"
        if not ended and number == trials - 1:
            state = "running"
        run(f"{number:05d}", values, GRIDS[number % 2], EPOCHS if state == "complete" else 2, state)
    if ended:
        for grid in GRIDS:
            own = [t for t in record.trials.values() if t.values[GRID_KEY] == grid and t.state == "complete"]
            winner = min(own, key=lambda trial: trial.figures["val/fvu"])
            for seed in (1, 2, 3):
                values = {**winner.values, "training.seed": seed}
                run(f"c{grid:02d}-{seed}", values, grid, EPOCHS, "complete", kind="confirm", confirms=winner.uid)
        record.append("sweep_ended", state="finished", champions={}, evidence={}, artifacts="report", summary="")
    record.close()
    return directory


def _start(record: Record, spec: Spec, **facts: Any) -> None:
    record.append(
        "sweep_started",
        spec=spec_to_dict(spec),
        git_commit=None,
        store_fingerprint="0" * 16,
        **facts,
        token_grid=TOKEN_GRID,
        baselines={
            grid: {"pooling": baseline(0.6 / grid, 0.2), "window_pca": baseline(0.2 / grid, 2.0)} for grid in GRIDS
        },
        plan={"trials": spec.trials, "confirm_seeds": 3, "images": 64},
    )


def _run(
    record: Record,
    random: Random,
    reason: str,
    uid: str,
    values: dict[str, Any],
    grid: int,
    epochs: int,
    state: str,
    **more: Any,
) -> None:
    """Record a trial from its start to its end; `reason` is why a failed one failed."""
    ratio = compression_ratio(TOKEN_GRID, grid)
    record.append("trial_started", trial=uid, values=values, ratio=ratio, **more)
    level = random.uniform(0.05, 0.15) / grid
    for epoch in range(1, epochs + 1):
        figures = {
            **baseline(level * (1 + 1 / epoch), random.uniform(0.03, 0.09)),
            "val/gain": 0.8,
            "epochs": EPOCHS,
            "compression_ratio": ratio,
        }
        record.append("trial_reported", trial=uid, epoch=epoch, figures=figures, checkpoint=f"trials/{uid}")
    if state != "running":
        record.append("trial_ended", trial=uid, state=state, reason=reason if state == "failed" else "")


def snapshot(
    trials: Iterable[TrialRecord], verdicts: list[Verdict], spec: Spec, *, protocol: int | None = PROTOCOL
) -> SweepSnapshot:
    """Return what `read_sweep` would, for trials that no directory holds; None is a record without a protocol."""
    return SweepSnapshot(
        directory=SweepDirectory(Path("nowhere")),
        outline=Outline(spec.trials, spec.confirm_seeds, spec.rules),
        state="finished",
        driver=None,
        epochs=EPOCHS,
        started=0,
        last=0,
        trials={trial.uid: trial for trial in trials},
        confirmations={},
        refused={},
        verdicts=verdicts,
        facts={"store_fingerprint": "0" * 16} if protocol is None else {"protocol": protocol},
        read_spec=lambda: spec,
    )
