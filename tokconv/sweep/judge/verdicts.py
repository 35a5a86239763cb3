"""The judgement of a sweep: the front and the baselines of every output grid, and its champion for every purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tokconv.evaluation.baselines.registry import title_of
from tokconv.evaluation.epochs import LOWEST_FVU, EpochRule
from tokconv.evaluation.figure import VLM
from tokconv.evaluation.figures import FIGURES
from tokconv.evaluation.purposes import PURPOSES, Bound, Purpose
from tokconv.sweep.judge.epochs import best_by, kept
from tokconv.sweep.judge.evidence import (
    PENDING,
    UNPROVEN,
    Criterion,
    Evidence,
    Figures,
    confirmations_of,
    gather_evidence,
)
from tokconv.sweep.judge.pareto import on_front
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.spec.rules import PUBLISHED, Rules, Target

FVU, SWD, AUC = "val/fvu", "val/swd", "val/auc_token"


@dataclass(frozen=True)
class Award:
    """The judgement of one output grid for one purpose."""

    purpose: Purpose
    criterion: Criterion
    evidence: Evidence | None
    """What is known about the champion; None without one."""
    refused: str = ""
    """Why complete trials have no champion among them, and what to do."""

    @property
    def champion(self) -> TrialRecord | None:
        return None if self.evidence is None else self.evidence.champion

    @property
    def missed(self) -> tuple[str, ...]:
        """The published targets that the champion misses, with the figure."""
        if self.evidence is None:
            return ()
        return tuple(
            target.miss(self.evidence.figures) for target in PUBLISHED if not target.met(self.evidence.figures)
        )

    @property
    def meets_targets(self) -> bool:
        return self.evidence is not None and not self.missed

    @property
    def summary(self) -> str:
        """What is known about the champion, in one line."""
        return self.evidence.summary if self.evidence is not None else self.refused or "no complete trial"

    @property
    def finding(self) -> str:
        """What holds if nothing wins for this purpose: why, and what to do; "" otherwise."""
        if self.evidence is None:
            return self.refused
        if self.evidence.status != UNPROVEN:
            return ""
        best = next(iter(self.evidence.beaten_by), None)
        return f"{'; '.join(self.evidence.reasons)}; {self.purpose.instead(best)}"


@dataclass(frozen=True)
class Verdict:
    """The judgement of one output grid."""

    grid: int
    """k: the compressed image has k * k tokens."""
    ratio: float
    trials: tuple[TrialRecord, ...]
    """The complete ones: a trial that was stopped early or failed is compared with nothing."""
    front: tuple[TrialRecord, ...]
    """Those within all constraints that no other one dominates on fvu and `likeness`, by falling val/fvu. A trial
    counts as it ended and with every best epoch that it kept, so it may be here twice."""
    baselines: Mapping[str, Figures]
    awards: tuple[Award, ...]
    """One per purpose that the store can have, in the order of the registry; at least one."""
    left_out: tuple[str, ...] = field(default=())
    """Why the other purposes that the spec wants cannot be judged."""
    likeness: str = SWD
    """The figure that says how much the tokens are like real ones: the AUC of tokens, or swd if trials lack it."""

    def award(self, purpose: str) -> Award | None:
        """Return the award for a purpose, by name; None if the purpose is not judged."""
        return next((award for award in self.awards if award.purpose.name == purpose), None)

    @property
    def champions(self) -> dict[str, tuple[Award, ...]]:
        """Trial -> the awards that it won."""
        won: dict[str, tuple[Award, ...]] = {}
        for award in self.awards:
            if award.champion is not None:
                won[award.champion.uid] = (*won.get(award.champion.uid, ()), award)
        return won

    @property
    def pending(self) -> dict[str, Evidence]:
        """Champion -> the evidence that waits for its confirmations."""
        found = (award.evidence for award in self.awards if award.evidence is not None)
        return {evidence.champion.uid: evidence for evidence in found if evidence.status == PENDING}

    @property
    def winners(self) -> dict[str, str]:
        """Trial -> what it won, with the evidence: `fidelity: proven (3), plug-in: unproven (3)`."""
        return {
            uid: ", ".join(f"{award.purpose.name}: {award.evidence.label}" for award in awards if award.evidence)
            for uid, awards in self.champions.items()
        }

    @property
    def first(self) -> Award:
        """The award that stands for the grid where there is room for one: fidelity, if it is judged."""
        return self.awards[0]

    @property
    def evidence(self) -> Evidence | None:
        """The evidence of the first award."""
        return self.first.evidence

    @property
    def champion(self) -> TrialRecord | None:
        """The champion of the first award."""
        return self.first.champion

    @property
    def name(self) -> str:
        """The grid in words: `6x6`."""
        return f"{self.grid}x{self.grid}"


def judge(
    trials: Iterable[TrialRecord],
    rules: Rules,
    token_grid: int,
    baselines: Mapping[int, Mapping[str, Figures]],
    *,
    confirmations: Iterable[TrialRecord] = (),
    seeds: int = 0,
) -> list[Verdict]:
    """Return one verdict for every grid in `baselines`, coarsest grid first.

    Args:
        trials: all trials of the search.
        rules: the spec's.
        token_grid: G.
        baselines: grid -> baseline -> figures. Those that compete on a figure have it.
        confirmations: winners that were trained again; each counts for the trial that it confirms.
        seeds: confirmations wanted per winner; 0 for none.
    """
    repeats, complete = tuple(confirmations), [trial for trial in trials if trial.state == "complete"]
    wanted, left_out = judged_purposes(rules, known_figures(baselines, complete))
    likeness = AUC if complete and all(AUC in trial.figures for trial in complete) else SWD
    verdicts = []
    for grid in sorted(baselines):
        own = [trial for trial in complete if trial.grid == grid]
        feasible = [one for trial in own for one in kept(trial) if rules.feasible(one.figures)]
        fronts = on_front([(trial.figures[FVU], trial.figures[likeness]) for trial in feasible])
        front = [trial for trial, is_on_front in zip(feasible, fronts, strict=True) if is_on_front]
        verdicts.append(
            Verdict(
                grid=grid,
                ratio=token_grid**2 / grid**2,
                trials=tuple(own),
                front=tuple(sorted(front, key=lambda trial: -trial.figures["val/fvu"])),
                baselines=baselines[grid],
                awards=tuple(
                    _award(PURPOSES[name], figure, own, rules, baselines[grid], repeats, seeds)
                    for name, figure in wanted.items()
                ),
                left_out=left_out,
                likeness=likeness,
            )
        )
    return verdicts


def known_figures(baselines: Mapping[int, Mapping[str, Figures]], trials: Iterable[TrialRecord]) -> set[str]:
    """Return the figures that the store can have, by its baselines; by the trials if the record holds no baselines."""
    rows = [figures for named in baselines.values() for figures in named.values()]
    return {name for figures in rows or [trial.figures for trial in trials] for name in figures}


def judged_purposes(rules: Rules, known: set[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return purpose -> figure for the wanted purposes that can be judged, and why the others cannot.

    Without any figure, as before the first trial of an old record, every sweep has fidelity.
    """
    found, left_out = {}, []
    for name in rules.purposes:
        figure = rules.rule(name).figure or PURPOSES[name].figure(known)
        if figure is None:
            left_out.append(PURPOSES[name].missing)
        else:
            found[name] = figure
    if not found:
        first = rules.purposes[0]
        found[first] = PURPOSES[first].figures[0]
        left_out = left_out[1:]
    return found, tuple(left_out)


def best_epoch_rules(rules: Rules, baselines: Mapping[int, Mapping[str, Figures]]) -> dict[int, tuple[EpochRule, ...]]:
    """Return the rules by which the trials of each grid keep their best epochs: those of the champions.

    A champion that is found by a figure of the last epoch alone has none: it is judged and exported as it ended. Every
    trial keeps its epoch of the lowest fvu.
    """
    wanted, _ = judged_purposes(rules, known_figures(baselines, ()))
    found = {}
    for grid, named in baselines.items():
        criteria = (_criterion(PURPOSES[name], figure, rules, named) for name, figure in wanted.items())
        by_figure = {one.figure: EpochRule(one.figure, one.targets) for one in criteria}
        every_epoch = {name: rule for name, rule in by_figure.items() if FIGURES[name].every_epoch}
        found[grid] = tuple({LOWEST_FVU.figure: LOWEST_FVU, **every_epoch}.values())
    return found


def competitors(rules: Rules, baselines: Mapping[str, Figures], known: set[str]) -> set[str]:
    """Return the baselines of a grid that compete with a champion on a figure that only a last epoch has.

    Args:
        rules: the spec's.
        baselines: name -> the figures that every epoch has.
        known: the figures that the store can have.
    """
    wanted, _ = judged_purposes(rules, known)
    criteria = [_criterion(PURPOSES[name], figure, rules, baselines) for name, figure in wanted.items()]
    # What a vision-language model says of a baseline is cheap beside networks that are trained, and all have it.
    late = [one for one in criteria if not FIGURES[one.figure].every_epoch and FIGURES[one.figure].needs != VLM]
    return {
        name
        for name, figures in baselines.items()
        if any(all(target.met(figures) for target in criterion.entry) for criterion in late)
    }


def _criterion(purpose: Purpose, figure: str, rules: Rules, baselines: Mapping[str, Figures]) -> Criterion:
    bound = _bound(purpose, figure, baselines)
    targets = (*rules.constraints, *rules.rule(purpose.name).subject_to, *bound)
    return Criterion(figure, targets, bound if figure in purpose.proxies else ())


def _award(
    purpose: Purpose,
    figure: str,
    trials: Sequence[TrialRecord],
    rules: Rules,
    baselines: Mapping[str, Figures],
    repeats: Sequence[TrialRecord],
    seeds: int,
) -> Award:
    criterion = _criterion(purpose, figure, rules, baselines)
    targets = criterion.targets
    able = [judged for trial in trials if figure in (judged := best_by(trial, figure)).figures]
    candidates = [trial for trial in able if all(target.met(trial.figures) for target in targets)]
    if not candidates:
        return Award(purpose, criterion, None, _refusal(able, targets, figure, purpose.bound) if trials else "")
    best = min(candidates, key=criterion.best_first)
    runs = [best_by(run, figure) for run in confirmations_of(best.uid, repeats)]
    return Award(purpose, criterion, gather_evidence(best, runs, seeds, baselines, criterion))


def _bound(purpose: Purpose, figure: str, baselines: Mapping[str, Figures]) -> tuple[Target, ...]:
    """Return the purpose's bound at this grid; nothing if `figure`, which decides, needs none, or if it is unknown."""
    limit = purpose.limit(figure, baselines)
    if purpose.bound is None or limit is None:
        return ()
    return (Target(purpose.bound.figure, "<=", limit, f"that of {title_of(purpose.bound.baseline)}"),)


def _refusal(trials: Sequence[TrialRecord], targets: Sequence[Target], figure: str, bound: Bound | None) -> str:
    """Return why none of the complete trials is a candidate, with the nearest one, and what to do.

    Distances count in units of the limit, so that targets of different scales add up; in plain units if it is 0.
    """
    if not trials:
        return f"no complete trial has {figure}"

    def distance(trial: TrialRecord) -> tuple[float, str]:
        return sum(max(0.0, t.excess(trial.figures)) / (abs(t.limit) or 1.0) for t in targets), trial.uid

    nearest = min(trials, key=distance)
    missed = [target for target in targets if not target.met(nearest.figures)]
    misses = ", ".join(target.miss(nearest.figures) for target in missed)
    # Only the limit of a bound has an origin.
    breaks_bound = any(target.origin for target in missed)
    advice = bound.advice if bound is not None and breaks_bound else "search other ranges, or relax it"
    return f"no complete trial is a candidate; the nearest, {nearest.uid}, misses {misses}; {advice}"
