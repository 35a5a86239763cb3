"""A sweep spec: the whole experiment as one frozen value. `tokconv.sweep.spec.file` reads it from YAML.

A field's description completes the sentence "must be ..." if a file holds a value of another type.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_validator,
)

from tokconv.config.keys import get
from tokconv.config.overrides import compose, quoted
from tokconv.config.tree import Config
from tokconv.errors import ConfigError, SpecError
from tokconv.evaluation.figures import FIGURES
from tokconv.evaluation.purposes import PURPOSES
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.ranges import Range, parse_range
from tokconv.sweep.spec.rules import Rule, Rules, Target, from_champion, parse_champions, parse_targets
from tokconv.sweep.spec.sections import (
    Confirm,
    EarlyStopping,
    Objective,
    Resources,
    Sampler,
    Section,
    Tracking,
    Vlm,
    Whole,
)
from tokconv.system.files import NAME, NAME_RULE
from tokconv.system.storage import check_url, is_url

BATCH_KEY = "training.batch_size"
TEACHER_KEY = "loss.weights.vlm"


def _name(raw: Any) -> str:
    if not isinstance(raw, str) or NAME.fullmatch(raw) is None:
        raise ValueError(NAME_RULE)
    return raw


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


class Spec(Section):
    """A checked spec; docs/sweeps.md lists every key with its default."""

    name: Annotated[str, BeforeValidator(_name)]
    base: Annotated[
        tuple[str, ...],
        Field(strict=False, description="a list of overrides, as in [training.epochs=5]"),
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
    vlm: Vlm | None = None
    """The judge of `vlm/kl`, and the teacher of trials that have one, unless `base` names another."""
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
        try:
            self.base_config()
        except ConfigError as error:
            raise SpecError(f"base: {error}") from error
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
        teaches = TEACHER_KEY in self.search or any(text.startswith(f"{TEACHER_KEY}=") for text in self.base)
        if self.vlm is None or not teaches:
            return compose(self.base)
        prompts = "\n".join(self.vlm.prompts)
        teacher = {"model": self.vlm.model, "prompts": prompts, "tokens": self.vlm.tokens}
        return compose((*(f"loss.vlm.{key}={quoted(value)}" for key, value in teacher.items()), *self.base))

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

    @property
    def may_be_taught(self) -> bool:
        """Whether a trial may have a vision-language model as its teacher."""
        return TEACHER_KEY in self.search or get(self.base_config(), TEACHER_KEY) > 0

    def _values(self, key: str) -> Sequence[int]:
        """Return every value that trials may have for a key of whole numbers."""
        return self.search[key].members() if key in self.search else (get(self.base_config(), key),)
