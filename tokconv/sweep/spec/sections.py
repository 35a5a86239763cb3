"""The sections of a sweep spec: `tokconv.sweep.spec.schema` puts them together."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from tokconv.errors import SpecError, suggest
from tokconv.evaluation.figures import OBJECTIVES
from tokconv.sweep.spec.outline import DEFAULT_SEEDS, MIN_SEEDS
from tokconv.system.files import local_path, text_lines

LARGEST_SAMPLER_SEED = 2**31 - 1
"""numpy's generators take twice as much; a resumed sweep adds its number of trials."""


def _figure(name: str) -> str:
    if name not in OBJECTIVES:
        raise ValueError(suggest(name, OBJECTIVES))
    return name


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
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise SpecError(
                f"resources.gpus_per_worker: got {self.gpus_per_worker:g}; Ray gives a share of one GPU, as in 0.5, or "
                "whole ones"
            )
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


class Vlm(Section):
    """The frozen vision-language model whose `vlm/kl` judges compressors."""

    model: Annotated[str, Field(min_length=1, description="the directory of a model and its processor")]
    """On a cluster, one that every node sees."""
    prompts: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(strict=False, min_length=1, description="a list of prompts, or a text file with one per line"),
    ] = ("Describe the picture in one sentence.",)
    images: Whole = 64
    """Held-out images, at most."""
    tokens: Whole = 8
    """Tokens of the model's own answer at which distributions are compared, at most."""

    @field_validator("prompts", mode="before")
    @classmethod
    def _read_file(cls, raw: Any) -> Any:
        """The record of a sweep holds the prompts themselves, whatever becomes of their file."""
        if not isinstance(raw, str):
            return raw
        try:
            return text_lines(local_path(raw))
        except (OSError, ValueError) as error:
            raise SpecError(
                f"vlm.prompts: {raw} cannot be read ({type(error).__name__}); name a text file, or write a list"
            ) from error
