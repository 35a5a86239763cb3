"""A sweep spec: the whole experiment as one frozen value. `tokconv.sweep.spec.file` reads it from YAML.

A field's description completes the sentence "must be ..." if a file holds a value of another type.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_validator,
)

from tokconv.config.overrides import compose
from tokconv.config.tree import Config, get
from tokconv.errors import ConfigError, SpecError, suggest
from tokconv.evaluation.figures import FIGURES, OBJECTIVES
from tokconv.evaluation.purposes import PURPOSES
from tokconv.sweep.spec.outline import DEFAULT_SEEDS, GRID_KEY, MIN_SEEDS
from tokconv.sweep.spec.ranges import Range, parse_range
from tokconv.sweep.spec.rules import Rule, Rules, Target, from_champion, parse_champions, parse_targets
from tokconv.system.files import NAME, NAME_RULE
from tokconv.system.storage import check_url, is_url

BATCH_KEY = "training.batch_size"
LARGEST_SAMPLER_SEED = 2**31 - 1
"""numpy's generators take twice as much; a resumed sweep adds its number of trials."""


def _figure(name: str) -> str:
    if name not in OBJECTIVES:
        raise ValueError(suggest(name, OBJECTIVES))
    return name


def _name(raw: Any) -> str:
    if not isinstance(raw, str) or NAME.fullmatch(raw) is None:
        raise ValueError(NAME_RULE)
    return raw


def _base(overrides: tuple[str, ...]) -> tuple[str, ...]:
    try:
        compose(overrides)
    except ConfigError as error:
        raise SpecError(f"base: {error}") from error
    return overrides


def _storage(place: str) -> str:
    if not place:
        raise SpecError("storage: got no path; is a variable of the shell empty? Leave the key out for runs")
    if is_url(place):
        check_url("storage", place)
    return place


def _ranges(raw: Any) -> dict[str, Range]:
    if not isinstance(raw, Mapping):
        raise ValueError("must be a mapping from keys to ranges")
    return {key: found if isinstance(found, Range) else parse_range(str(key), found) for key, found in raw.items()}


def _plain_champions(champions: Mapping[str, Rule] | None) -> dict[str, Any] | None:
    return None if champions is None else {name: rule.plain() for name, rule in champions.items()}


def _plain_ranges(search: Mapping[str, Range]) -> dict[str, Any]:
    return {key: {found.kind: list(found.values)} for key, found in search.items()}


Whole = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
FigureName = Annotated[str, AfterValidator(_figure)]


class Section(BaseModel):
    """A part of a spec: nothing is converted, no key is ignored, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Objective(Section):
    """A figure that the search optimises."""

    metric: FigureName
    mode: Literal["min", "max"]


class Sampler(Section):
    """What chooses the values of the next trial."""

    kind: Literal["tpe", "nsga2", "gp", "random", "grid"] = "tpe"
    seed: Annotated[int, Field(ge=0, le=LARGEST_SAMPLER_SEED, description=f"from 0 to {LARGEST_SAMPLER_SEED}")] = 0


class EarlyStopping(Section):
    """When trials are compared, and the share that goes on: 1/reduction."""

    min_epochs: Whole = 2
    reduction: Annotated[int, Field(ge=2, description="a whole number of at least 2")] = 3


class Confirm(Section):
    """On how many fresh seeds the winner of each grid is trained again."""

    seeds: Annotated[
        int,
        Field(ge=MIN_SEEDS, description=f"at least {MIN_SEEDS} for an interval; write confirm: none to go without"),
    ] = DEFAULT_SEEDS


class Resources(Section):
    """What each trial runs on."""

    runner: Literal["torch_trainer", "inline"] = "torch_trainer"
    workers: Whole = 1
    """Processes per trial; each takes an equal part of every batch, and the result is that of one process."""
    gpus_per_worker: Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number of at least 0")] = 0.0
    cpus_per_worker: Whole = 1
    trial_timeout: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="a number of seconds, or 0 for no limit")
    ] = 0.0
    """Seconds that an epoch may take, start and evaluation included; a trial that takes longer hangs. 0: no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.runner == "inline" and self.workers != 1:
            raise SpecError(f"resources.workers: got {self.workers}; runner inline runs trials of one worker only")
        if self.workers > 1 and 0 < self.gpus_per_worker < 1:
            raise SpecError(
                f"resources.gpus_per_worker: got {self.gpus_per_worker:g} with {self.workers} workers; NCCL refuses "
                "two workers of one trial on one GPU; give each a whole one, or use workers: 1"
            )
        return self


class Tracking(Section):
    """Where the sweep is tracked besides its own record."""

    uri: str | None = None
    experiment: str | None = None
    wandb: bool = False
    """Weights & Biases in addition to MLflow."""


class Spec(Section):
    """A checked spec; docs/sweeps.md shows the YAML with every key."""

    name: Annotated[str, BeforeValidator(_name)]
    base: Annotated[
        tuple[str, ...],
        Field(strict=False, description="a list of overrides, as in [training.epochs=5]"),
        AfterValidator(_base),
    ] = ()
    search: Annotated[Mapping[str, Range], PlainValidator(_ranges), PlainSerializer(_plain_ranges)] = {}
    objectives: Annotated[
        tuple[Objective, ...], Field(strict=False, description="a list of {metric: val/fvu, mode: min}")
    ] = ()
    """Empty for the default, which depends on the store (`with_objectives`)."""
    champions: Annotated[
        Mapping[str, Rule] | None, PlainValidator(parse_champions), PlainSerializer(_plain_champions)
    ] = None
    """Purpose -> rule; None for every purpose that the store can have."""
    constraints: Annotated[
        tuple[Target, ...],
        PlainValidator(partial(parse_targets, "constraints")),
        PlainSerializer(lambda targets: [str(target) for target in targets]),
    ] = ()
    """What a trial must meet to be a candidate, told to the sampler."""
    baselines: Literal["all", "competing"] = "all"
    """Which baselines get the figures that train networks: all, or those that compete with a champion on one."""
    sampler: Sampler = Sampler()
    early_stopping: EarlyStopping | None = EarlyStopping()
    trials: Whole
    concurrency: Whole = 1
    confirm: Confirm | None = Confirm()
    """None: champions are unconfirmed, whatever their one run shows."""
    resources: Resources = Resources()
    tracking: Tracking = Tracking()
    storage: Annotated[str, AfterValidator(_storage)] | None = None
    """A directory that every node sees, or a URL (s3://bucket/prefix); None is `runs`."""

    @field_validator("early_stopping", "confirm", mode="before")
    @classmethod
    def _read_none(cls, raw: Any) -> Any:
        return None if isinstance(raw, str) and raw == "none" else raw

    @field_serializer("early_stopping", "confirm", mode="wrap")
    def _write_none(self, section: Section | None, write: SerializerFunctionWrapHandler) -> Any:
        return "none" if section is None else write(section)

    @field_validator("search", mode="before")
    @classmethod
    def _read_nothing(cls, raw: Any) -> Any:
        """A key without a value, as the text of a file may have it, is an empty section."""
        return {} if raw is None else raw

    @field_validator("objectives", mode="before")
    @classmethod
    def _read_objectives(cls, raw: Any) -> Any:
        if isinstance(raw, list | tuple) and not raw:
            raise ValueError("name at least one figure, or leave the key out")
        return () if raw is None else raw

    @field_serializer("objectives", mode="wrap")
    def _write_objectives(self, objectives: tuple[Objective, ...], write: SerializerFunctionWrapHandler) -> Any:
        return write(objectives) if objectives else None

    @model_validator(mode="before")
    @classmethod
    def _read_champion(cls, raw: Any) -> Any:
        """The older key `champion` knew one purpose."""
        if not isinstance(raw, dict) or "champion" not in raw:
            return raw
        if "champions" in raw:
            raise SpecError("champion: is the older form of champions; give one of the two")
        return {
            **{key: value for key, value in raw.items() if key != "champion"},
            "champions": from_champion(raw["champion"]),
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        for size in self.batch_sizes() if self.resources.workers > 1 else ():
            if size % (workers := self.resources.workers):
                raise SpecError(
                    f"training.batch_size: {size} is not a multiple of resources.workers, {workers}; it is the batch "
                    "of all workers together, of which each takes an equal part; choose multiples, as in "
                    f"{{choice: [{16 * workers}, {32 * workers}]}}"
                )
        for key in self.search:
            if key.startswith(("data.", "model.clip.")) or key == "training.epochs":
                raise SpecError(f"search.{key}: cannot be searched; all trials share one token store and one length")
        if self.sampler.kind == "grid" and any(found.kind in ("float", "log") for found in self.search.values()):
            raise SpecError(
                "sampler.kind: grid needs choice or int ranges only; use tpe, or list the values as a choice"
            )
        return self

    def base_config(self) -> Config:
        """Return the config that every trial starts from."""
        return compose(self.base)

    def with_objectives(self, known: Container[str]) -> Spec:
        """Return the spec with the default objectives if it names none.

        They are the ratio, fvu and what a frozen reader makes of the tokens: the share that it keeps, or without labels
        how well a fresh classifier tells them from real ones.

        Args:
            known: the figures that the store can have.
        """
        if self.objectives:
            return self
        likeness = PURPOSES["plug-in"].figure(known) or "val/swd"
        names = ("compression_ratio", "val/fvu", likeness)
        found = [Objective(metric=name, mode="min" if FIGURES[name].lower_is_better else "max") for name in names]
        return self.model_copy(update={"objectives": tuple(found)})

    @property
    def rules(self) -> Rules:
        """What decides which trials are champions."""
        return Rules(self.champions, self.constraints)

    @property
    def judged_by(self) -> tuple[str, ...]:
        """The figures that are objectives."""
        return tuple(objective.metric for objective in self.objectives)

    @property
    def confirm_seeds(self) -> int:
        """Seeds on which a winner is trained again; 0 for none."""
        return 0 if self.confirm is None else self.confirm.seeds

    @property
    def most_confirmations(self) -> int:
        """The most confirmations there can be: a trial that wins for several purposes is confirmed once."""
        return self.confirm_seeds * len(self.grids()) * len(self.rules.purposes)

    def grids(self) -> tuple[int, ...]:
        """Return every output grid size that a trial may have, ascending."""
        return tuple(sorted(self._values(GRID_KEY)))

    def batch_sizes(self) -> Sequence[int]:
        """Return every `training.batch_size` that a trial may have."""
        return self._values(BATCH_KEY)

    def _values(self, key: str) -> Sequence[int]:
        """Return every value that trials may have for a key of whole numbers."""
        return self.search[key].members() if key in self.search else (get(self.base_config(), key),)
