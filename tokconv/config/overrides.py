"""From `key.path=value` strings, or a plain dictionary, to a checked `Config`.

Hydra's compose API reads the groups in `tokconv/config/groups`. Unknown keys and wrong types are refused with one
sentence before anything else happens. `OLD_NAMES` holds every published spelling that changed. Hydra's grammar applies
to numbers and choices only: what stands behind `data.root=` is the path, whatever characters it has.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, get_args

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from tokconv.config.checks import check_key, validate
from tokconv.config.keys import BOUNDS, GROUPS, KEYS, flatten, to_dict
from tokconv.config.tree import Config
from tokconv.errors import ConfigError, first_line, suggest

ConfigStore.instance().store(name="schema", node=Config)

OLD_NAMES: dict[str, tuple[str, Mapping[Any, Any]]] = {
    "model.autoencoder.use_attention": ("model.autoencoder.kind", {True: "attention", False: "conv"}),
}
"""Published key -> its current name and what its values mean now."""

BEFORE: Mapping[str, Any] = {"loss.wgan.balance": "none", "training.critic_schedule": "linear"}
"""Key -> what a config that was saved before it existed did; other new keys are off by default, as before them."""
LITERAL = {key for key, annotation in KEYS.items() if str in (get_args(annotation) or (annotation,))} - BOUNDS.keys()
"""Keys of paths, names and other free texts."""
PATHS = ("data.root", "data.store")
QUOTES = "'\""

# Hydra's parser does not catch these: numbers of more than 4,300 digits, an unfinished interpolation, deep nesting.
_PARSER_ERRORS = (HydraException, ValueError, IndexError, RecursionError)


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose the defaults and these overrides to a checked config.

    Args:
        overrides: `dotted.key=value`, `data=SOURCE` or `recipe=published`. Numbers and choices are in Hydra's grammar,
            and texts such as `data.root` are taken literally: see `literal_text`.

    Raises:
        ConfigError: a key is unknown (with the nearest one), or a value has the wrong type or is out of its bounds.

    Example:
        >>> compose(["model.compressor.output_grid_size=8", "training.epochs=5"]).training.epochs
        5
    """
    # Hydra takes 50 to 100 ms, and a sweep asks for its base config again and again. An interpolation may read the
    # environment, which may have changed.
    given = tuple(overrides)
    if any("${" in text for text in given):
        return _compose(given)
    return copy.deepcopy(_compose_once(given))


def _compose(overrides: tuple[str, ...]) -> Config:
    pairs = parse(overrides)
    tokens = [f"{key}={quoted(value)}" for key, value in pairs]
    with initialize_config_module("tokconv.config.groups", version_base="1.3"):
        try:
            return validate(_to_config(hydra_compose("config", overrides=tokens)))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, pairs)) from error


_compose_once = lru_cache(maxsize=256)(_compose)


def parse(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Return overrides as (key, value) pairs under current names; every key is known.

    Raises:
        ConfigError: a text is not `key=value`, is a Hydra form that is not supported, or has an unknown key.
    """
    pairs: list[tuple[str, Any]] = []
    for text in overrides:
        key, equals, rest = text.partition("=")
        if equals and key in LITERAL:
            pairs.append((key, literal_text(rest)))
            continue
        try:
            override = OverridesParser.create().parse_override(text)
        except _PARSER_ERRORS as error:
            raise ConfigError(f"{text!r}: not an override; write key=value, as in training.epochs=5") from error
        value = override.value()
        pairs.append((_plain_key(override, text), value.text if isinstance(value, QuotedString) else value))
    current = _translate(pairs)
    for key, value in current:
        _check_plain(key, value)
    return current


def literal_text(value: str) -> str | None:
    """Return the text of a key that holds a path or a name: the value itself.

    `null` is None. Quotes around the whole value are removed, which earlier versions required; `./'photos'` names a
    folder whose name has them.

    Example:
        >>> literal_text("/photos (old), a=b"), literal_text("'/photos (old)'"), literal_text("null")
        ('/photos (old), a=b', '/photos (old)', None)
    """
    if value.lower() == "null":
        return None
    if len(value) > 1 and value[0] in QUOTES and value[-1] == value[0]:
        try:
            parsed = OverridesParser.create().parse_override(f"key={value}").value()
        except _PARSER_ERRORS:
            return value
        # Of what begins and ends with a quote, Hydra reads nothing but one quoted text as a text.
        if isinstance(parsed, str | QuotedString):
            return parsed if isinstance(parsed, str) else parsed.text
    return value


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Return the config of a dictionary from `tokconv.config.keys.to_dict`, checked like overrides.

    Values are taken literally; for keys that it lacks see `saved_values`. Raises ConfigError.
    """
    return with_values(Config(), {**BEFORE, **flatten(tree)})


def keys_of(group: str, choice: str) -> list[str]:
    """Return the dotted keys that a choice of a group sets, as recipe=published."""
    text = (files("tokconv.config.groups") / group / f"{choice}.yaml").read_text(encoding="utf-8")
    return list(flatten(OmegaConf.to_container(OmegaConf.create(text))))  # type: ignore[arg-type]


def saved_values(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return every dotted key of a saved config, also those that did not exist when it was saved, unchecked."""
    return {**flatten(to_dict(Config())), **BEFORE, **flatten(tree)}


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a checked copy of the config with some dotted keys replaced. Raises ConfigError."""
    for key, value in values.items():
        check_key(key)
        _check_literal(key, value)
    # A spec asks for dozens of defaults with one changed value; a copy takes a fifth of the time of a new tree.
    tree = copy.deepcopy(_default_tree()) if config == Config() else OmegaConf.structured(config)
    try:
        for key, value in values.items():
            OmegaConf.update(tree, key, value)
        return validate(_to_config(tree))
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, list(values.items()))) from error


@lru_cache(maxsize=1)
def _default_tree() -> Any:
    return OmegaConf.structured(Config())


def _to_config(tree: Any) -> Config:
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    return config


def _plain_key(override: Override, text: str) -> str:
    if override.is_add() or override.is_delete() or override.is_sweep_override():
        raise ConfigError(f"{text!r}: only key=value is possible here; ranges belong in the `search` of a sweep spec")
    if override.package is not None:
        raise ConfigError(f"{text!r}: `@` has no meaning here; write key=value, as in training.epochs=5")
    return str(override.key_or_group)


def _check_plain(key: str, value: Any) -> None:
    """Refuse lists, mappings, OmegaConf's mark for a missing value, and numbers that no float can hold."""
    too_large = isinstance(value, int) and abs(value) > sys.float_info.max
    if isinstance(value, list | tuple | Mapping) or value == "???" or too_large:
        wanted = _type_name(KEYS[key]) if key in KEYS else "a name"
        raise ConfigError(f"{key}: got {value!r}; must be {wanted}")
    if key in PATHS and value == "":
        raise ConfigError(f"{key}: got no path; is a variable of the shell empty? Leave the key out to go without")


def _check_literal(key: str, value: Any) -> None:
    """Refuse `${...}` as well: a stored config must not read the environment of the process that loads it."""
    _check_plain(key, value)
    if isinstance(value, str) and "${" in value:
        raise ConfigError(f"{key}: got {value!r}; ${{...}} is possible in key=value overrides only")


def _translate(pairs: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Replace published names by current ones, and refuse unknown names."""
    given = dict(pairs)
    current: list[tuple[str, Any]] = []
    for key, value in pairs:
        if key == "data.use_subset":
            if not isinstance(value, bool):
                raise ConfigError(f"{key}: got {value!r}; allowed: true, false (the current name is data.subset)")
            if value and "data.subset_size" not in given:
                raise ConfigError("data.use_subset: data.subset_size is missing; or write data.subset=1000 alone")
        elif key == "data.subset_size":
            if given.get("data.use_subset", True):
                current.append(("data.subset", value))
        elif key in OLD_NAMES:
            name, values = OLD_NAMES[key]
            if not isinstance(value, bool):
                raise ConfigError(f"{key}: got {value!r}; allowed: true, false (the current name is {name})")
            current.append((name, values[value]))
            if values[value] != "conv" and not given.keys() & {"model.compressor.kind", "recipe"}:
                # The published compressor; the default one has a decoder of its own.
                current.append(("model.compressor.kind", "residual"))
        else:
            if key not in GROUPS:
                check_key(key)
            elif value not in GROUPS[key]:
                raise ConfigError(f"{key}: got {value!r}; {suggest(str(value), GROUPS[key])}")
            current.append((key, value))
    return current


def quoted(value: Any) -> str:
    """Write a value in Hydra's grammar; strings are quoted so that no path or name is read as syntax."""
    if isinstance(value, str):
        return str(QuotedString(text=value, quote=Quote.single).with_quotes())
    return "null" if value is None else str(value).lower()


def _explain(error: Exception, pairs: Sequence[tuple[str, Any]]) -> str:
    """Return one sentence with the key, the value and the expected type."""
    cause: BaseException | None = error
    while cause is not None:
        key = getattr(cause, "full_key", None)
        if key in KEYS:
            value = dict(pairs).get(str(key))
            if isinstance(cause, InterpolationResolutionError):
                return f"{key}: got {value!r}; {first_line(cause)}"
            return f"{key}: got {value!r}; must be {_type_name(KEYS[str(key)])}"
        cause = cause.__cause__
    return first_line(error)


def _type_name(annotation: Any) -> str:
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    names = [t.__name__ for t in getattr(annotation, "__args__", (annotation,))]
    return " or ".join("null" if name == "NoneType" else words[name] for name in names)
