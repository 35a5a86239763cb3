"""A sweep from its spec to its champions: encode once, search, judge, export, register.

This process, the driver, holds the study, the record and the MLflow writer; trials run in Ray's actors.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokconv.config.tree import Config, get
from tokconv.encoding.images import describe_tokens
from tokconv.encoding.console import encode_and_print
from tokconv.errors import StoreError, SweepError, import_extra
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.evaluator import Figures
from tokconv.evaluation.pictures import draw_compression
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.exports.artefact import export, load_compressor, load_decoder
from tokconv.exports.dynamic.fit import fit_dynamic
from tokconv.models.windows import check_output_grid, compression_ratio
from tokconv.store.reader import TokenStore
from tokconv.store.remote import place_of
from tokconv.sweep.judge.confirmations import end_stale_confirmations, missing_confirmations
from tokconv.sweep.judge.exports import export_champions, unproven_notes
from tokconv.sweep.judge.snapshot import read_sweep
from tokconv.sweep.judge.verdicts import Verdict, judge
from tokconv.sweep.record.checks import check_figures, check_same_experiment, check_same_protocol
from tokconv.sweep.record.events import Record, TrialRecord
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.remote import kept, open_root
from tokconv.sweep.record.remote_checkpoints import PATIENCE_SECONDS
from tokconv.sweep.report import results as report
from tokconv.sweep.report.progress import SweepDisplay
from tokconv.sweep.spec.file import load_spec, spec_to_dict, to_yaml
from tokconv.sweep.spec.schema import GRID_KEY, Spec
from tokconv.sweep.tracking.mlflow_place import tracking_uri, ui_command
from tokconv.sweep.tracking.mlflow_writer import MlflowWriter
from tokconv.sweep.tracking.wandb_writer import WandbWriter
from tokconv.sweep.trials.listener import Listener
from tokconv.sweep.trials.tuning import tune
from tokconv.system.files import write_text
from tokconv.system.ray_cluster import check_lasting
from tokconv.system.storage import fetched, is_url
from tokconv.system.terminal import progress_line
from tokconv.training.loop import check_batch

DRAIN_SECONDS = 60.0
"""How long the end of a sweep waits for the tracking server; what is left is delivered by `--resume`."""
PICTURED_IMAGES = 4


@dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves: its directory, a verdict a grid, and every trial and confirmation by uid."""

    directory: Path
    verdicts: list[Verdict]
    trials: Mapping[str, TrialRecord]
    confirmations: Mapping[str, TrialRecord]


def run_sweep(spec: Spec, *, resume: bool = False, allow_unproven: bool = False) -> SweepResult:
    """Run a sweep, or finish an interrupted one, and print its result.

    Args:
        spec: checked (`tokconv.sweep.spec.file`).
        resume: go on in the newest directory of this spec's name: finished trials are kept, running ones continue
            from their checkpoint; `trials` may have grown, `confirm` may have changed.
        allow_unproven: export and register champions that do not beat every baseline, marked as unproven.

    Raises:
        ConfigError, DataError, StoreError: before any trial starts.
        StorageError: `storage` or `data.store` is a URL that cannot be used, before any trial starts; or not everything
            had arrived there when the sweep ended.
        SweepError: nothing to resume, another driver at work, no Ray cluster.
        KeyboardInterrupt: after the record is safe and the way to go on is printed.
    """
    if spec.tracking.wandb:
        import_extra("wandb", "wandb")
    config = spec.base_config()
    token_grid = describe_tokens(config).token_grid
    for grid in spec.grids():
        check_output_grid(grid, token_grid)
    storage = spec.storage or "runs"
    root = open_root(storage)
    for key, place in (("storage", storage), ("data.store", config.data.store)):
        if place is not None and not is_url(place):
            check_lasting(Path(place).expanduser(), key)
    directory = root.newest(spec.name) if resume else None
    if directory is not None:
        check_same_experiment(spec, load_spec(directory.spec))
        check_same_protocol(directory)
    store = encode_and_print(config, stores=_stores(storage))
    check_figures(spec, store)
    if spec.resources.workers > 1:
        for size in spec.batch_sizes():
            check_batch(size, len(store.train_indices), spec.resources.workers)
    directory = directory or root.new(spec.name)
    with directory.lock():
        write_text(directory.spec, to_yaml(spec))
        sweep = _Sweep(spec, config, store, directory, root.local, allow_unproven)
        with kept(directory, sweep.record):
            return sweep.run()


class _Sweep:
    """One driver's work on one directory."""

    def __init__(
        self,
        spec: Spec,
        config: Config,
        store: TokenStore,
        directory: SweepDirectory,
        root: Path,
        allow_unproven: bool,
    ) -> None:
        self.spec, self.config, self.store, self.directory, self.root = spec, config, store, directory, root
        self.allow_unproven = allow_unproven
        self.record = Record(directory.events)
        self.uri = tracking_uri(spec.tracking.uri, root)
        self.experiment = spec.tracking.experiment or spec.name

    def run(self) -> SweepResult:
        baselines = self._baselines()
        self.record.append(
            "sweep_started",
            sweep=self.directory.name,
            experiment=self.experiment,
            spec=spec_to_dict(self.spec),
            git_commit=_git_commit(),
            store_fingerprint=self.store.fingerprint,
            protocol=PROTOCOL,
            token_grid=self.store.token_grid,
            baselines=baselines,
            plan={
                "trials": self.spec.trials,
                "confirm_seeds": self.spec.confirm_seeds,
                "images": self.store.num_images,
            },
        )
        writer = MlflowWriter(
            self.directory.events,
            uri=self.uri,
            experiment=self.experiment,
            artifact_root=self.root,
            sweep=self.directory.name,
            cursor=self.directory.cursor,
            on_message=print,
        )
        writers: list[MlflowWriter | WandbWriter] = [writer, *self._wandb()]
        try:
            self._search(baselines)
        except BaseException:
            self._conclude("interrupted", baselines)
            for each in writers:
                each.close(DRAIN_SECONDS)
            print(f"Stopped. Everything finished is kept in {self.directory.path}; go on with: --resume", flush=True)
            raise
        verdicts, exported = self._conclude("finished", baselines)
        deliveries = [each.close(DRAIN_SECONDS) for each in writers]
        report.print_result(verdicts)
        print(f"\nresults, plots and exported champions: {self.directory.path}")
        print(f"the same as a page: {self.directory.page}")
        if self.directory.remote is not None:
            print(f"the same, kept for every machine: {self.directory.remote}")
        print(f"trials in MLflow: {ui_command(self.uri, self.root)}")
        for delivery in deliveries:
            print(delivery)
        # Last, and with exit code 0: the sweep did its work, it is its finding that is negative.
        for line in unproven_notes(verdicts, exported):
            print(line)
        self.record.close()
        return SweepResult(self.directory.path, verdicts, self.record.trials, self.record.confirmations)

    def _wandb(self) -> list[WandbWriter]:
        if not self.spec.tracking.wandb:
            return []
        return [WandbWriter(self.directory.events, project=self.experiment, sweep=self.directory.name, root=self.root)]

    def _baselines(self) -> dict[int, dict[str, Figures]]:
        """Every baseline at every grid, from the store's cache or computed now."""
        # Trials that ran before the space was narrowed stay in the table.
        ran = {round(self.store.token_grid / trial.ratio**0.5) for trial in self.record.trials.values()}
        grids = sorted({*self.spec.grids(), *ran})
        found = {}
        with progress_line("baselines") as line:
            for done, grid in enumerate(grids, start=1):
                found[grid] = baseline_figures(self.store, grid)
                line(done, len(grids))
        return found

    def _search(self, baselines: Mapping[int, Mapping[str, Figures]]) -> None:
        display = SweepDisplay(
            name=self.directory.name,
            total=self.spec.trials,
            token_grid=self.store.token_grid,
            baselines=baselines,
            epochs=self.config.training.epochs,
            rule=self.spec.champion,
            confirmations=self.spec.confirm_seeds * len(baselines),
        )

        def next_confirmations() -> list[dict[str, Any]]:
            verdicts = self._judge(baselines)
            end_stale_confirmations(self.record, verdicts)
            configs = missing_confirmations(
                verdicts,
                self.record.trials,
                self.record.confirmations,
                seeds=self.spec.confirm_seeds,
                base_seed=self.config.training.seed,
            )
            display.expect(len(self.record.confirmations.keys() | {config["uid"] for config in configs}))
            return configs

        listener = Listener(
            self.record,
            ratio=self._ratio,
            judged_by=self.spec.judged_by,
            finish=self._finish,
            on_event=lambda: display.update(self.record),
            timeout=self.spec.resources.patience,
        )
        with display:
            tune(
                self.spec, self.config, place_of(self.store), self.directory, self.record, listener, next_confirmations
            )
            listener.close()

    def _ratio(self, values: Mapping[str, Any]) -> float:
        grid = values.get(GRID_KEY, get(self.config, GRID_KEY))
        return compression_ratio(self.store.token_grid, int(grid))

    def _finish(self, trial: TrialRecord) -> Path:
        """Export a complete trial's compressor and draw what it does to some held-out images."""
        out = self.directory.artifacts(trial.uid)
        if trial.checkpoint is None:
            raise SweepError(f"trial {trial.uid} ended without a checkpoint")
        with fetched(trial.checkpoint, patience=PATIENCE_SECONDS) as checkpoint:
            exported = export(checkpoint, out / "compressor")
        tokens = self.store.tokens(self.store.val_indices[:PICTURED_IMAGES])
        draw_compression(load_compressor(exported), load_decoder(exported), tokens, out / "reconstruction.png")
        return out.relative_to(self.directory.path)

    def _judge(self, baselines: Mapping[int, Mapping[str, Figures]]) -> list[Verdict]:
        return judge(
            self.record.trials.values(),
            self.spec.champion,
            self.store.token_grid,
            baselines,
            confirmations=self.record.confirmations.values(),
            seeds=self.spec.confirm_seeds,
        )

    def _fit_dynamic(self) -> None:
        """What a grid per image would save, and the predictor that chooses it, beside the exported champions."""
        try:
            dynamic = fit_dynamic(self.directory.champions, self.store)
        except StoreError as error:  # too few held-out images to judge a predictor: no reason to fail a finished sweep
            print(f"no dynamic compression: {error}")
            return
        write_text(self.directory.report / "dynamic.txt", dynamic.text() + "\n")

    def _conclude(
        self, state: str, baselines: Mapping[int, Mapping[str, Figures]]
    ) -> tuple[list[Verdict], dict[str, dict[str, Any]]]:
        """Judge what is complete, export the champions, write tables and plots, close the record."""
        verdicts = self._judge(baselines)
        exported = export_champions(verdicts, self.directory, allow_unproven=self.allow_unproven)
        if state == "finished" and len(exported) > 1:
            self._fit_dynamic()
        report.write_results(
            self.directory.report,
            verdicts,
            list(self.record.trials.values()),
            self.spec,
            confirmations=list(self.record.confirmations.values()),
            exported=exported,
        )
        # Here: what it imports takes a second, and no trial waits for it.
        from tokconv.sweep.report.page import write_page

        write_page(replace(read_sweep(self.directory), state=state), self.directory.page)
        self.record.append(
            "sweep_ended",
            state=state,
            champions=exported,
            evidence={str(v.grid): v.evidence.summary for v in verdicts if v.evidence is not None},
            artifacts=str(self.directory.report.relative_to(self.directory.path)),
            summary=report.summary_markdown(verdicts),
        )
        return verdicts, exported


def _stores(storage: str) -> str:
    """Where the token store is unless `data.store` names it: below the sweep's storage."""
    return f"{storage.rstrip('/')}/stores" if is_url(storage) else str(Path(storage).expanduser() / "stores")


def _git_commit() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
