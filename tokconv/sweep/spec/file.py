"""From a YAML file to a checked `Spec`: unknown keys, wrong types and impossible values are refused by name."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tokconv.config.overrides import compose
from tokconv.errors import ConfigError, SpecError, suggest
from tokconv.sweep.spec.ranges import parse_range
from tokconv.sweep.spec.schema import (
    FIGURES,
    MIN_SEEDS,
    RUNNERS,
    SAMPLERS,
    Champion,
    Confirm,
    EarlyStopping,
    Objective,
    Resources,
    Sampler,
    Spec,
    Target,
    Tracking,
)
from tokconv.system.files import NAME, NAME_RULE
from tokconv.system.storage import check_url, is_url

Section = TypeVar("Section", Sampler, EarlyStopping, Confirm, Resources, Tracking)
# PyYAML and OmegaConf let the last seven through: a value that its tag cannot be made of, a number of more than 4,300
# digits, an alias inside what it stands for.
_YAML_ERRORS = (
    yaml.YAMLError,
    OmegaConfBaseException,
    OSError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
TARGET = re.compile(r"\s*(\S+)\s*(<=|>=)\s*(\S+)\s*")


def load_spec(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """Read and check a spec file.

    Args:
        overrides: `key=value` pairs laid over the file, as in `trials=4` or `resources.runner=inline`.

    Raises:
        SpecError: what is wrong, what is allowed.

    Example:
        >>> load_spec(Path("sweeps/demo.yaml"), ["trials=4"]).trials    # doctest: +SKIP
        4
    """
    path = Path(path)
    if not path.is_file():
        raise SpecError(f"{path}: no such spec file; sweeps/demo.yaml is one to start from")
    for override in overrides:
        if "=" not in override:
            raise SpecError(f"{override!r}: not an override; write key=value, as in trials=4")
    try:
        tree = OmegaConf.load(path)
        for override in overrides if OmegaConf.is_dict(tree) else ():
            tree = _merge(tree, override)
        plain = OmegaConf.to_container(tree, resolve=True)
    except yaml.constructor.ConstructorError as error:
        raise SpecError(f"{path}: not plain YAML data ({error.problem}); remove it") from error
    except _YAML_ERRORS as error:
        raise SpecError(f"{path}: not a valid YAML file ({_reason(error)})") from error
    return parse_spec(plain)


def _merge(tree: Any, override: str) -> Any:
    try:
        return OmegaConf.merge(tree, OmegaConf.from_dotlist([override]))
    except _YAML_ERRORS as error:
        raise SpecError(f"{override!r}: not an override ({_reason(error)}); write key=value, as in trials=4") from error


def _reason(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())


def parse_spec(tree: Any) -> Spec:
    """Check a spec given as plain dictionaries and lists; see `load_spec`."""
    if not isinstance(tree, dict):
        raise SpecError("a spec is a mapping with at least name and trials; sweeps/demo.yaml is one to start from")
    _known(tree, Spec, "")
    for key in ("name", "trials"):
        if key not in tree:
            raise SpecError(f"{key}: missing; every spec needs it")
    stopping, confirm = tree.get("early_stopping", {}), tree.get("confirm", {})
    spec = Spec(
        name=_name(tree["name"]),
        base=_base(tree.get("base", [])),
        search={key: parse_range(str(key), raw) for key, raw in _mapping(tree, "search").items()},
        objectives=_objectives(tree["objectives"]) if "objectives" in tree else Spec.objectives,
        champion=_champion(_mapping(tree, "champion")),
        sampler=_section(Sampler, "sampler", tree.get("sampler", {})),
        early_stopping=None if stopping in (None, "none") else _section(EarlyStopping, "early_stopping", stopping),
        trials=_whole("trials", tree["trials"], 1),
        concurrency=_whole("concurrency", tree.get("concurrency", 1), 1),
        confirm=None if confirm in (None, "none") else _section(Confirm, "confirm", confirm),
        resources=_section(Resources, "resources", tree.get("resources", {})),
        tracking=_section(Tracking, "tracking", tree.get("tracking", {})),
        storage=_text("storage", tree.get("storage")),
    )
    return _check_whole(spec)


def spec_to_dict(spec: Spec) -> dict[str, Any]:
    """The spec as it would stand in a file; `parse_spec` is the inverse."""
    plain = dataclasses.asdict(spec)
    plain["base"] = list(spec.base)
    plain["search"] = {key: {r.kind: list(r.values)} for key, r in spec.search.items()}
    plain["objectives"] = [dataclasses.asdict(objective) for objective in spec.objectives]
    plain["champion"] = {
        "minimise": spec.champion.minimise,
        "subject_to": [str(target) for target in spec.champion.subject_to],
    }
    for key in ("early_stopping", "confirm"):
        plain[key] = "none" if plain[key] is None else plain[key]
    return plain


def to_yaml(spec: Spec) -> str:
    """The text of a spec file that `load_spec` reads back as this spec."""
    # OmegaConf quotes what only its own reader takes for a number, such as the name 1e3.
    return OmegaConf.to_yaml(OmegaConf.create(spec_to_dict(spec)))


def _check_whole(spec: Spec) -> Spec:
    """What no key shows alone."""
    resources = spec.resources
    for key, allowed in (("runner", RUNNERS),):
        _one_of(f"resources.{key}", getattr(resources, key), allowed)
    _one_of("sampler.kind", spec.sampler.kind, SAMPLERS)
    if spec.storage is not None and is_url(spec.storage):
        try:
            check_url("storage", spec.storage)
        except ConfigError as error:
            raise SpecError(str(error)) from error
    _whole("resources.workers", resources.workers, 1)
    _whole("resources.cpus_per_worker", resources.cpus_per_worker, 1)
    _whole("sampler.seed", spec.sampler.seed, 0)
    if not 0 <= resources.gpus_per_worker < math.inf:
        raise SpecError(f"resources.gpus_per_worker: got {resources.gpus_per_worker}; must be at least 0")
    if not 0 <= resources.trial_timeout < math.inf:
        raise SpecError(f"resources.trial_timeout: got {resources.trial_timeout}; must be seconds, or 0 for any time")
    if resources.runner == "inline" and resources.workers != 1:
        raise SpecError(f"resources.workers: got {resources.workers}; runner inline runs trials of one worker only")
    if resources.workers > 1:
        _check_group(spec)
    if spec.early_stopping is not None:
        _whole("early_stopping.min_epochs", spec.early_stopping.min_epochs, 1)
        _whole("early_stopping.reduction", spec.early_stopping.reduction, 2)
    if spec.confirm is not None and spec.confirm.seeds < MIN_SEEDS:
        raise SpecError(
            f"confirm.seeds: got {spec.confirm.seeds}; an interval needs at least {MIN_SEEDS} seeds; write "
            "confirm: none to go without"
        )
    for key in spec.search:
        if key.startswith(("data.", "model.clip.")) or key == "training.epochs":
            raise SpecError(f"search.{key}: cannot be searched; all trials share one token store and one length")
    if spec.sampler.kind == "grid" and any(r.kind in ("float", "log") for r in spec.search.values()):
        raise SpecError("sampler.kind: grid needs choice or int ranges only; use tpe, or list the values as a choice")
    return spec


def _check_group(spec: Spec) -> None:
    """What several workers a trial need: equal parts of every batch, and of a GPU each the whole."""
    workers, gpus = spec.resources.workers, spec.resources.gpus_per_worker
    if 0 < gpus < 1:
        raise SpecError(
            f"resources.gpus_per_worker: got {gpus:g} with {workers} workers; NCCL refuses two workers of one trial on "
            "one GPU; give each a whole one, or use workers: 1"
        )
    for size in spec.batch_sizes():
        if size % workers:
            raise SpecError(
                f"training.batch_size: {size} is not a multiple of resources.workers, {workers}; it is the batch of "
                "all workers together, of which each takes an equal part; choose multiples, as in "
                f"{{choice: [{16 * workers}, {32 * workers}]}}"
            )


def _known(tree: Mapping[str, Any], cls: type, prefix: str) -> None:
    names = [f.name for f in dataclasses.fields(cls)]
    for key in tree:
        if key not in names:
            raise SpecError(f"{prefix}{key}: unknown; {suggest(str(key), names)}")


def _section(cls: type[Section], name: str, raw: Any) -> Section:
    """A flat section, its types checked against the dataclass's defaults."""
    if not isinstance(raw, dict):
        raise SpecError(
            f"{name}: got {raw!r}; must be a mapping with {', '.join(f.name for f in dataclasses.fields(cls))}"
        )
    _known(raw, cls, f"{name}.")
    defaults, values = cls(), dict(raw)
    for key, value in raw.items():
        default = getattr(defaults, key)
        if default is None:
            _text(f"{name}.{key}", value)
        elif isinstance(default, float):
            if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
                raise SpecError(f"{name}.{key}: got {value!r}; must be a number")
            values[key] = float(value)
        elif type(value) is not type(default):
            raise SpecError(f"{name}.{key}: got {value!r}; must be like {default!r}")
    return cls(**values)


def _base(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise SpecError(f"base: got {raw!r}; must be a list of overrides, as in [training.epochs=5]")
    try:
        compose(raw)
    except ConfigError as error:
        raise SpecError(f"base: {error}") from error
    return tuple(raw)


def _objectives(raw: Any) -> tuple[Objective, ...]:
    if not isinstance(raw, list) or not raw:
        raise SpecError(f"objectives: got {raw!r}; must be a list of {{metric: val/fvu, mode: min}}")
    for item in raw:
        if not isinstance(item, dict) or set(item) != {"metric", "mode"}:
            raise SpecError(f"objectives: got {item!r}; must be {{metric: val/fvu, mode: min}}")
        _one_of("objectives.metric", item["metric"], FIGURES)
        _one_of("objectives.mode", item["mode"], ("min", "max"))
    return tuple(Objective(**item) for item in raw)


def _champion(raw: Mapping[str, Any]) -> Champion:
    _known(raw, Champion, "champion.")
    minimise = raw.get("minimise", Champion.minimise)
    _one_of("champion.minimise", minimise, FIGURES)
    if "subject_to" not in raw:
        return Champion(minimise=minimise)
    if not isinstance(raw["subject_to"], list):
        raise SpecError(f"champion.subject_to: got {raw['subject_to']!r}; must be a list of 'val/swd <= 0.1'")
    return Champion(minimise=minimise, subject_to=tuple(_target(text) for text in raw["subject_to"]))


def _target(text: Any) -> Target:
    match = TARGET.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise SpecError(f"champion.subject_to: got {text!r}; write 'METRIC <= NUMBER' or 'METRIC >= NUMBER'")
    metric, sign, limit = match.groups()
    _one_of("champion.subject_to", metric, FIGURES)
    try:
        number = float(limit)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SpecError(f"champion.subject_to: got {text!r}; {limit!r} is not a number")
    return Target(metric=metric, sign=sign, limit=number)


def _name(raw: Any) -> str:
    if not isinstance(raw, str) or NAME.fullmatch(raw) is None:
        raise SpecError(f"name: got {raw!r}; {NAME_RULE}")
    return raw


def _mapping(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key, {})
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise SpecError(f"{key}: got {value!r}; must be a mapping")
    return value


def _whole(key: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise SpecError(f"{key}: got {value!r}; must be a whole number of at least {low}")
    return value


def _text(key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise SpecError(f"{key}: got {value!r}; must be a text or null")
    return value


def _one_of(key: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise SpecError(f"{key}: got {value!r}; {suggest(str(value), allowed)}")
