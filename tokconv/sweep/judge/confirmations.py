"""Confirmations that a sweep still has to run: the winners of each grid, trained again on fresh seeds.

A confirmation is a trial with the winner's values, another `training.seed`, the full number of epochs and no early
stopping. A trial that wins for several purposes is confirmed once. Confirmations run like every trial and are kept in
the record as `c06-1`, separate from the search: no study, rung, front or budget ever sees them. Which ones are missing
follows from the record alone, so a driver that was killed goes on where it was. A winner that loses to a baseline in
the search's own run, which was selected for being good, is not confirmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count, islice
from typing import Any

from tokconv.sweep.judge.evidence import SEED_KEY, confirmations_of
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.record.log import Record


def missing_confirmations(
    verdicts: Iterable[Verdict],
    trials: Mapping[str, TrialRecord],
    confirmations: Mapping[str, TrialRecord],
    *,
    seeds: int,
    base_seed: int,
) -> list[dict[str, Any]]:
    """Return the configs of the confirmations to run: `{"uid": "c06-1", "values": {...}, "confirms": "00003"}`.

    Interrupted ones come first, under their own uid. A winner that was confirmed before keeps its runs.

    Args:
        verdicts: the judgement of the finished search.
        trials: all trials of the search; a seed that any of them had is not fresh.
        confirmations: those in the record.
        seeds: confirmations wanted per winner; 0 for none.
        base_seed: the seed of trials that did not search for one.
    """
    winners = {uid: verdict for verdict in verdicts for uid in verdict.pending}
    of_winner = {uid: confirmations_of(uid, confirmations.values()) for uid in winners}
    configs = [
        {"uid": run.uid, "values": run.values, "confirms": uid}
        for uid, runs in of_winner.items()
        for run in runs
        if seeds and run.state == "running"
    ]
    used = {base_seed, *(trial.values.get(SEED_KEY, base_seed) for trial in trials.values())}
    taken = set(confirmations)
    for uid, verdict in winners.items():
        tried = used.union(run.values[SEED_KEY] for run in of_winner[uid])
        # The same seeds at every grid, and after every interruption.
        fresh = (seed for seed in count() if seed not in tried)
        for seed in islice(fresh, max(0, seeds - len(of_winner[uid]))):
            new = next(name for number in count(1) if (name := f"c{verdict.grid:02d}-{number}") not in taken)
            taken.add(new)
            configs.append({"uid": new, "values": {**trials[uid].values, SEED_KEY: seed}, "confirms": uid})
    return configs


def end_stale_trials(record: Record, trials: int) -> None:
    """End interrupted trials of a search that has its number of trials without them, as after `trials` was lowered."""
    for trial in list(record.trials.values()):
        if trial.state == "running":
            record.append("trial_ended", trial=trial.uid, state="pruned", reason=f"not needed: trials is {trials} now")


def end_stale_confirmations(record: Record, verdicts: Iterable[Verdict], *, seeds: int) -> None:
    """End interrupted confirmations of trials that a longer search has replaced as winners; all if none are wanted."""
    winners = {uid for verdict in verdicts for uid in verdict.champions} if seeds else set()
    for run in list(record.confirmations.values()):
        if run.state == "running" and run.confirms not in winners:
            why = f"trial {run.confirms} is no longer a winner of its grid" if seeds else "confirm is none now"
            record.append("trial_ended", trial=run.uid, state="pruned", reason=f"not needed: {why}")
