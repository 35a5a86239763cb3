"""A sweep from its spec to its champions: encode once, search, confirm, judge, export, register.

This process, the driver, holds the study, the record and the tracking writers; trials run in Ray's actors.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tokconv.config.keys import get
from tokconv.config.tree import Config
from tokconv.encoding.console import encode_and_print
from tokconv.encoding.images import describe_tokens
from tokconv.errors import import_extra, printable
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.models.windows import check_output_grid
from tokconv.store.reader import TokenStore
from tokconv.store.remote import place_of
from tokconv.store.sample import check_varied
from tokconv.sweep.judge.confirmations import end_stale_confirmations, end_stale_trials, missing_confirmations
from tokconv.sweep.judge.exports import export_champions, export_dynamic, export_trial, unproven_notes
from tokconv.sweep.judge.snapshot import SweepSnapshot, read_sweep, recorded_spec
from tokconv.sweep.judge.verdicts import Verdict, best_epoch_rules, judge
from tokconv.sweep.record.checks import (
    check_figures,
    check_same_experiment,
    check_same_protocol,
    check_same_store,
    figures_of,
    trained_on,
)
from tokconv.sweep.record.driver import git_commit
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.record.layout import DEFAULT_STORAGE, SweepDirectory, stores_place
from tokconv.sweep.record.log import Record
from tokconv.sweep.record.remote import mirrored, open_root
from tokconv.sweep.report.progress import SweepDisplay
from tokconv.sweep.report.results import write_results
from tokconv.sweep.report.table import print_result, summary_markdown
from tokconv.sweep.search.space import check_space
from tokconv.sweep.spec.file import spec_to_dict, to_yaml
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.schema import Spec
from tokconv.sweep.tracking.mlflow_connection import tracking_uri
from tokconv.sweep.tracking.mlflow_writer import MlflowWriter
from tokconv.sweep.tracking.wandb_writer import WandbWriter
from tokconv.sweep.trials.baselines import Baselines, measure
from tokconv.sweep.trials.listener import Listener
from tokconv.sweep.trials.tuning import tune
from tokconv.sweep.trials.vlm import Models, open_models
from tokconv.system.files import local_path, write_text
from tokconv.system.ray_cluster import check_outlives_job
from tokconv.system.storage import is_url
from tokconv.system.terminal import progress_line
from tokconv.training.loop import check_batch

DRAIN_SECONDS = 60.0
"""How long the end of a sweep waits for a tracking server; `--resume` delivers the rest."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves: its directory, one verdict per grid, and every trial and confirmation by uid."""

    directory: Path
    verdicts: list[Verdict]
    trials: Mapping[str, TrialRecord]
    confirmations: Mapping[str, TrialRecord]


def run_sweep(spec: Spec, *, resume: bool = False, allow_unproven: bool = False) -> SweepResult:
    """Run a sweep, or finish an interrupted one, and print its result.

    Args:
        spec: a checked spec (`tokconv.sweep.spec.file`).
        resume: go on in the newest directory of this spec's name. Finished trials are kept, running ones continue from
            their checkpoint; `trials` may have grown, `confirm` may have changed.
        allow_unproven: export and register champions that do not beat every baseline, marked as unproven.

    Raises:
        ConfigError, DataError, StoreError: before any trial starts.
        StorageError: `storage` or `data.store` is a URL that cannot be used, before any trial starts; or not everything
            had arrived there when the sweep ended.
        SweepError: there is nothing to resume, or another driver is at work.
        ClusterError: there is no Ray cluster.
        KeyboardInterrupt: after the record is safe and the way to go on is printed.
    """
    if spec.tracking.wandb:
        import_extra("wandb", "wandb")
    config = spec.base_config()
    if not resume:
        # A sweep that goes on has the grids that it had, and needs neither images nor tower.
        token_grid = describe_tokens(config).token_grid
        for grid in spec.grids():
            check_output_grid(grid, token_grid)
    if left_out := check_space(spec):
        print(left_out, flush=True)
    storage = spec.storage or DEFAULT_STORAGE
    root = open_root(storage)
    for key, place in (("storage", storage), ("data.store", config.data.store)):
        if place is not None and not is_url(place):
            check_outlives_job(local_path(place), key)
    directory, fingerprint = None, None
    if resume:
        directory = root.newest(spec.name)
        before = recorded_spec(directory)
        spec = spec if spec.objectives else spec.model_copy(update={"objectives": before.objectives})
        check_same_experiment(spec, before)
        check_same_protocol(directory)
        fingerprint = trained_on(directory)
    store = encode_and_print(config, stores=stores_place(storage), resumed=fingerprint)
    check_varied(store)
    if directory is not None:
        check_same_store(directory, store)
    spec = spec.with_objectives(figures_of(spec, store))
    check_figures(spec, store)
    models = open_models(spec, config, store)
    if spec.resources.workers > 1:
        for size in spec.batch_sizes():
            check_batch(size, len(store.train_indices), spec.resources.workers)
    directory = directory or root.new(spec.name)
    with directory.lock():
        write_text(directory.spec, to_yaml(spec))
        # Trials load the models themselves: the driver lets go of its own before they start.
        sweep, models = _Sweep(spec, config, store, directory, root.local, allow_unproven, models), (None, None)
        with mirrored(directory, sweep.record):
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
        models: Models,
    ) -> None:
        self.spec, self.config, self.store, self.directory, self.root = spec, config, store, directory, root
        self.allow_unproven, self.models = allow_unproven, models
        self.record = Record(directory.events)
        self.uri, self.experiment = tracking_uri(spec.tracking.uri, root), spec.tracking.experiment or spec.name

    def run(self) -> SweepResult:
        try:
            return self._run()
        except BaseException:
            kept = printable(self.directory.path)
            print(f"Stopped. Everything finished is kept in {kept}; go on with: --resume", flush=True)
            raise

    def _run(self) -> SweepResult:
        baselines = self._measure_once()
        self._record_start(baselines)
        writers = self._start_writers()
        try:
            self._search_and_confirm(baselines)
        except BaseException:
            try:
                self._conclude("interrupted")
            finally:
                for writer in writers:
                    writer.close(DRAIN_SECONDS)
            raise
        print("exporting champions, writing tables and page", flush=True)
        with progress_line("still writing"):
            result, exported = self._conclude("finished")
            deliveries = [writer.close(DRAIN_SECONDS) for writer in writers]
        print_result(result)
        self._print_places()
        for delivery in deliveries:
            print(printable(delivery))
        # The last lines, and exit code 0: the sweep did its work, and this is its finding.
        for line in unproven_notes(result.verdicts, exported):
            print(line)
        self.record.close()
        return SweepResult(self.directory.path, result.verdicts, self.record.trials, self.record.confirmations)

    def _measure_once(self) -> Baselines:
        """Let the teacher read all tokens, and return the figures of every baseline at every grid: from the store's
        cache or computed now."""
        (judge, teacher), self.models = self.models, (None, None)
        if teacher is not None:
            teacher.prepare_and_print()
            del teacher
        # Trials that ran before the search space was narrowed stay in the table.
        ran = {trial.grid for trial in self.record.trials.values()}
        grids = sorted({*self.spec.grids(), *ran})
        return measure(self.spec, self.store, grids, config=self.config, judge=judge)

    def _record_start(self, baselines: Baselines) -> None:
        self.record.append(
            "sweep_started",
            sweep=self.directory.name,
            experiment=self.experiment,
            spec=spec_to_dict(self.spec),
            git_commit=git_commit(),
            store_fingerprint=self.store.fingerprint,
            protocol=PROTOCOL,
            token_grid=self.store.token_grid,
            baselines=baselines,
            plan={
                "trials": self.spec.trials,
                "confirm_seeds": self.spec.confirm_seeds,
                "images": self.store.num_images,
                "epochs": self.config.training.epochs,
            },
        )

    def _start_writers(self) -> list[MlflowWriter | WandbWriter]:
        events, sweep = self.directory.events, self.directory.name
        mlflow = MlflowWriter(
            events,
            uri=self.uri,
            experiment=self.experiment,
            artifact_root=self.root,
            sweep=sweep,
            cursor=self.directory.cursor,
        )
        if not self.spec.tracking.wandb:
            return [mlflow]
        return [mlflow, WandbWriter(events, project=self.experiment, sweep=sweep, root=self.root)]

    def _search_and_confirm(self, baselines: Baselines) -> None:
        display = SweepDisplay(
            name=self.directory.name,
            total=self.spec.trials,
            epochs=self.config.training.epochs,
            judge=lambda trials: judge(trials, self.spec.rules, self.store.token_grid, baselines),
            confirmations=self.spec.most_confirmations,
            refused=len(self.record.refused),
        )
        listener = Listener(
            self.record,
            token_grid=self.store.token_grid,
            base_grid=get(self.config, GRID_KEY),
            judged_by=self.spec.judged_by,
            finish=lambda trial: export_trial(trial, self.directory, self.store),
            on_event=lambda: display.update(self.record),
            trial_timeout=self.spec.resources.trial_timeout,
        )
        with display, listener:
            display.update(self.record)
            missing = partial(self._missing_confirmations, display)
            best = best_epoch_rules(self.spec.rules, baselines)
            tune(self.spec, self.config, place_of(self.store), self.directory, self.record, listener, missing, best)

    def _missing_confirmations(self, display: SweepDisplay) -> list[dict[str, Any]]:
        end_stale_trials(self.record, self.spec.trials)
        verdicts = read_sweep(self.directory).verdicts
        end_stale_confirmations(self.record, verdicts, seeds=self.spec.confirm_seeds)
        configs = missing_confirmations(
            verdicts,
            self.record.trials,
            self.record.confirmations,
            seeds=self.spec.confirm_seeds,
            base_seed=self.config.training.seed,
        )
        display.expect(len(self.record.confirmations.keys() | {config["uid"] for config in configs}))
        return configs

    def _conclude(self, state: str) -> tuple[SweepSnapshot, dict[str, dict[str, Any]]]:
        """Judge what is complete, export the champions, write tables, plots and page, and record the end."""
        result = replace(read_sweep(self.directory), state=state)
        exported = export_champions(result.verdicts, self.directory, allow_unproven=self.allow_unproven)
        if state == "finished":
            export_dynamic(exported, self.directory, self.store)
        write_results(self.directory.report, result, exported=exported)
        # Imported here: what the page imports takes a second, and no trial has to wait for it.
        from tokconv.sweep.report.page import write_page

        write_page(result, self.directory.page)
        self.record.append(
            "sweep_ended",
            state=state,
            champions=exported,
            evidence={str(v.grid): {a.purpose.name: a.summary for a in v.awards} for v in result.verdicts},
            winners={str(v.grid): v.winners for v in result.verdicts},
            artifacts=str(self.directory.report.relative_to(self.directory.path)),
            summary=summary_markdown(result),
        )
        return result, exported

    def _print_places(self) -> None:
        print(f"\nresults, plots and exported champions: {printable(self.directory.path)}")
        print(f"the same as a page: {printable(self.directory.page)}")
        if self.directory.remote is not None:
            print(f"the same, kept for every machine: {printable(self.directory.remote)}")
        usual = local_path(DEFAULT_STORAGE).resolve() == self.directory.path.parents[1].resolve()
        name = self.directory.name if usual else shlex.quote(str(self.directory.path))
        print(f"its trials in MLflow: tokconv ui {printable(name)}")
