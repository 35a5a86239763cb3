"""A sweep on a virtual clock: our own search, scheduler, record, listener and display, called as Ray Tune calls them.

Nothing is trained and Ray is not started; `surrogate.py` decides what every trial reports and when. Tune's `Trial` and
`ConcurrencyLimiter` are real, its controller and actors are not. `Ledger` measures the same parts in a real sweep.
"""

from __future__ import annotations

import heapq
import io
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from rich.console import Console
from surrogate import Surrogate, baselines

from tokconv.sweep.judge.verdicts import judge
from tokconv.sweep.record.events import FINISHED, TrialRecord
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import Record
from tokconv.sweep.report.progress import SweepDisplay
from tokconv.sweep.search.early_stopping import ParetoHalving, Rungs
from tokconv.sweep.search.study import StudySearcher, open_study
from tokconv.sweep.spec.file import spec_to_dict, to_yaml
from tokconv.sweep.spec.rules import compared
from tokconv.sweep.spec.schema import Spec
from tokconv.sweep.tracking.mlflow_writer import MlflowWriter
from tokconv.sweep.trials.listener import Listener
from tokconv.system.files import write_text

TOKEN_GRID = 24
PARTS = {
    "suggest": (StudySearcher, "suggest"),
    "tell": (StudySearcher, "on_trial_complete"),
    "early stopping": (ParetoHalving, "on_trial_result"),
    "record": (Record, "append"),
    "display": (SweepDisplay, "update"),
    "next trial": (FIFOScheduler, "choose_trial_to_run"),
    "MLflow": (MlflowWriter, "deliver"),
}
"""Part of the controller's work -> the method that does it. MLflow's runs in a thread of its own."""


class Ledger:
    """The calls of every part, and their seconds of processor and wall time, while `measuring` lasts."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.wall: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        originals = {part: getattr(owner, name) for part, (owner, name) in PARTS.items()}
        try:
            for part, (owner, name) in PARTS.items():
                setattr(owner, name, self._timed(part, originals[part]))
            yield
        finally:
            for part, (owner, name) in PARTS.items():
                setattr(owner, name, originals[part])

    def copy(self) -> Ledger:
        return self.since(Ledger())

    def since(self, before: Ledger) -> Ledger:
        """Return the difference from an earlier copy."""
        found = Ledger()
        for name in ("seconds", "wall", "calls"):
            now, then = getattr(self, name), getattr(before, name)
            setattr(found, name, Counter({part: now[part] - then[part] for part in now}))
        return found

    def _timed(self, part: str, method: Any) -> Any:
        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start, wall = time.thread_time(), time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[part] += time.thread_time() - start
                self.wall[part] += time.perf_counter() - wall
                self.calls[part] += 1

        return timed


@dataclass(frozen=True)
class Mark:
    """The controller's state at a number of ended trials."""

    trials: int
    ledger: Ledger
    memory_mb: float
    hours: float
    """Hours of the virtual clock."""


@dataclass
class Controller:
    """The part of Tune's controller that searchers and schedulers see."""

    trials: list[Trial] = field(default_factory=list)

    def get_trials(self) -> list[Trial]:
        return self.trials


class Simulation:
    """One search of `spec.trials` trials, `spec.concurrency` at a time, in `directory`; resumed if it holds some.

    Args:
        log: the stream that the display writes to.
    """

    def __init__(
        self,
        spec: Spec,
        directory: SweepDirectory,
        surrogate: Surrogate,
        *,
        ledger: Ledger | None = None,
        log: io.TextIOBase | None = None,
    ) -> None:
        self.spec, self.directory, self.surrogate = spec, directory, surrogate
        self.ledger = ledger or Ledger()
        self.wanted: Sequence[int] = ()
        """Numbers of ended trials at which costs are noted."""
        self.marks: list[Mark] = []
        self.record = Record(directory.events)
        self.baselines = baselines(spec.grids())
        self.now, self.most_at_once = 0.0, 0
        self.ended = self.before = sum(trial.state in FINISHED for trial in self.record.trials.values())
        self._log = log or io.StringIO()

    def run(self) -> None:
        """Run every trial to its end and record what happens."""
        write_text(self.directory.spec, to_yaml(self.spec))
        self.record.append(
            "sweep_started",
            sweep=self.directory.name,
            experiment=self.spec.name,
            spec=spec_to_dict(self.spec),
            baselines=self.baselines,
            git_commit=None,
            store_fingerprint="simulated",
            protocol=0,
            token_grid=TOKEN_GRID,
            plan={"trials": self.spec.trials},
        )
        display = SweepDisplay(
            name=self.directory.name,
            total=self.spec.trials,
            epochs=self.surrogate.epochs,
            judge=lambda trials: judge(trials, self.spec.rules, TOKEN_GRID, self.baselines),
            console=Console(file=self._log, force_terminal=False),
            clock=lambda: self.now,
        )
        self._listener = Listener(
            self.record,
            token_grid=TOKEN_GRID,
            base_grid=self.spec.grids()[0],
            judged_by=self.spec.judged_by,
            finish=self._finish,
            on_event=lambda: display.update(self.record),
        )
        searcher, self._scheduler = open_search(self.spec, self.directory, self.record, self.surrogate.epochs)
        self._searcher: Searcher = ConcurrencyLimiter(searcher, max_concurrent=self.spec.concurrency)
        self._controller = Controller()
        # (time of the next result, order of the start, trial, its results); the order breaks ties.
        self._running: list[tuple[float, int, Trial, Iterator[dict[str, Any]]]] = []
        with self.ledger.measuring(), display:
            self._mark()
            self._fill()
            while self._running:
                self._step()
            self._listener.close()

    def _fill(self) -> None:
        """Ask for trials until the searcher's limit is reached, and start them."""
        trials = self._controller.trials
        while self.before + len(trials) < self.spec.trials:
            trial_id = f"{len(trials):08x}"
            config = self._searcher.suggest(trial_id)
            if config is None or config == Searcher.FINISHED:
                return
            trial = Trial("simulated", trial_id=trial_id, config=config, stub=True, _setup_default_resource=False)
            trials.append(trial)
            self._scheduler.on_trial_add(self._controller, trial)
            started = self._scheduler.choose_trial_to_run(self._controller)
            assert started is trial
            trial.status = Trial.RUNNING
            self._listener.on_trial_start(0, trials, trial)
            uid = config["uid"]
            due = self.now + self.surrogate.seconds_an_epoch(uid)
            results = self.surrogate.results(uid, config["values"])
            heapq.heappush(self._running, (due, len(trials), trial, results))
            self.most_at_once = max(self.most_at_once, len(self._running))

    def _step(self) -> None:
        """Process one result of the trial whose turn it is, with the calls in the order of `TuneController`."""
        self.now, order, trial, results = heapq.heappop(self._running)
        result = next(results, None)
        decision = TrialScheduler.CONTINUE
        if result is not None:
            decision = self._scheduler.on_trial_result(self._controller, trial, result)
            self._searcher.on_trial_result(trial.trial_id, result)
            self._listener.on_trial_result(0, self._controller.trials, trial, result)
            trial.update_last_result(result)
        last = result is None or result.get("epoch") in (None, result.get("epochs"))
        if not last and decision == TrialScheduler.CONTINUE:
            due = self.now + self.surrogate.seconds_an_epoch(trial.config["uid"])
            heapq.heappush(self._running, (due, order, trial, results))
            return
        self._scheduler.on_trial_complete(self._controller, trial, trial.last_result)
        self._searcher.on_trial_complete(trial.trial_id, result=trial.last_result)
        self._listener.on_trial_complete(0, self._controller.trials, trial)
        trial.status = Trial.TERMINATED
        self.ended += 1
        self._mark()
        self._fill()

    def _mark(self) -> None:
        if self.ended in self.wanted:
            self.marks.append(Mark(self.ended, self.ledger.copy(), memory_mb(), self.now / 3600))

    def _finish(self, trial: TrialRecord) -> Path:
        return self.directory.artifacts(trial.uid)


def open_search(
    spec: Spec, directory: SweepDirectory, record: Record, epochs: int
) -> tuple[StudySearcher, TrialScheduler]:
    """Return what a driver builds from a record and a journal; see `tokconv.sweep.trials.tuning.tune`."""
    scheduler: TrialScheduler = FIFOScheduler()
    if spec.early_stopping is not None:
        rungs = Rungs(spec.early_stopping, epochs, compared(spec.judged_by))
        rungs.replay(record.trials.values())
        scheduler = ParetoHalving(rungs)
    return StudySearcher(spec, open_study(spec, directory.journal), record.trials.values()), scheduler


def memory_mb() -> float:
    """Return the peak memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
