"""From a YAML file to a checked `Spec`: unknown keys, wrong types and impossible values are refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from omegaconf import OmegaConf
from pydantic import ValidationError

from tokconv.config.keys import GROUPS, KEYS
from tokconv.config.overrides import literal_text
from tokconv.errors import ConfigError, SpecError, suggest
from tokconv.sweep.spec.schema import Spec
from tokconv.sweep.spec.sections import Section

UNKNOWN = ("extra_forbidden", "invalid_key")
"""Pydantic's names for a key that a section does not have."""
CONFIG = {key.partition(".")[0] for key in (*KEYS, *GROUPS)}
"""First parts of the keys of the config."""
LITERAL = ("storage", "tracking.uri", "tracking.experiment", "vlm.model", "vlm.prompts")
"""Keys of paths and names, whose overrides are taken literally and not as YAML."""
START = "sweeps/demo.yaml is one to start from"


def load_spec(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """Return the checked spec of a file.

    Args:
        overrides: `key=value` pairs laid over the file, as in `trials=4` or `resources.runner=inline`; the values are
            YAML, those of `LITERAL` plain texts.

    Raises:
        SpecError: the file or an override is wrong; what is wrong, and what is allowed.

    Example:
        >>> load_spec(Path("sweeps/demo.yaml"), ["trials=4"]).trials    # doctest: +SKIP
        4
    """
    path = Path(path)
    if not path.is_file():
        raise SpecError(f"{path}: no such spec file; {START}")
    for override in overrides:
        if "=" not in override:
            raise SpecError(f"{override!r}: not an override; write key=value, as in trials=4")
    try:
        tree = OmegaConf.load(path)
        for override in overrides if OmegaConf.is_dict(tree) else ():
            tree = _merge(tree, override)
        plain = OmegaConf.to_container(tree, resolve=True)
    except SpecError:  # of an override
        raise
    except yaml.constructor.ConstructorError as error:
        raise SpecError(f"{path}: not plain YAML data ({error.problem}); remove it") from error
    # Both parsers let errors of Python through: a value that does not fit its tag, a number of more than 4,300 digits,
    # an alias inside its own anchor.
    except Exception as error:
        raise SpecError(f"{path}: not a valid YAML file ({_reason(error)})") from error
    return parse_spec(plain)


def _merge(tree: Any, override: str) -> Any:
    try:
        key, _, value = override.partition("=")
        if key not in LITERAL:
            return OmegaConf.merge(tree, OmegaConf.from_dotlist([override]))
        *section, name = key.split(".")
        given: dict[str, Any] = {name: literal_text(value)}
        return OmegaConf.merge(tree, {section[0]: given} if section else given)
    except Exception as error:
        raise SpecError(f"{override!r}: not an override ({_reason(error)}); write key=value, as in trials=4") from error


def _reason(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())


def parse_spec(tree: Any) -> Spec:
    """Return the checked spec of plain dictionaries and lists; raises as `load_spec`."""
    if not isinstance(tree, dict):
        raise SpecError(f"a spec is a mapping with at least name and trials; {START}")
    try:
        return Spec.model_validate(tree)
    except ValidationError as error:
        raise SpecError(_sentence(error)) from error


def spec_to_dict(spec: Spec) -> dict[str, Any]:
    """Return the spec as plain data, as a file holds it; `parse_spec` is the inverse."""
    return spec.model_dump(mode="json")


def to_yaml(spec: Spec) -> str:
    """Return the text of a spec file that `load_spec` reads back as this spec."""
    # OmegaConf quotes what only its own reader takes for a number, such as the name 1e3.
    return OmegaConf.to_yaml(OmegaConf.create(spec_to_dict(spec)))


def _sentence(errors: ValidationError) -> str:
    """Return one sentence about what is wrong: an unknown key first, because it often explains a missing one."""
    error = min(errors.errors(), key=lambda error: error["type"] not in UNKNOWN)
    kind, place, got = error["type"], error["loc"], error["input"]
    reason = error.get("ctx", {}).get("error")
    if isinstance(reason, ConfigError):
        return str(reason)
    names = [part for part in place if isinstance(part, str)]
    if kind == "invalid_key" and isinstance(place[-1], int):
        names.append(str(place[-1]))
    key, *parents, last = ".".join(names), *names
    section = _section(Spec, parents)
    if kind in UNKNOWN:
        if not parents and last.partition(".")[0] in CONFIG:
            return f"{key}: unknown in a spec; keys of the config belong in base, as in base: [training.epochs=5]"
        return f"{key}: unknown; {suggest(last, section.model_fields)}"
    if kind == "missing":
        rule = (
            f"{parents[-1]} must be {Spec.model_fields[parents[-1]].description}" if parents else "every spec needs it"
        )
        return f"{key}: missing; {rule}"
    field = section.model_fields[last]
    if kind == "literal_error":
        return f"{key}: got {got!r}; {suggest(str(got), get_args(field.annotation))}"
    if reason is not None:
        return f"{key}: got {got!r}; {reason}"
    if kind == "model_type" and field.description is None:
        return f"{key}: got {got!r}; must be a mapping with {', '.join(_section(section, [last]).model_fields)}"
    rule = field.description or error["msg"].removeprefix("Input should be ").replace("valid ", "")
    return f"{key}: got {got!r}; must be {rule}"


def _section(model: type[Section], names: Sequence[str]) -> type[Section]:
    """Return the model of the section that these keys lead to."""
    for name in names:
        annotation = model.model_fields[name].annotation
        parts = (annotation, *get_args(annotation))
        model = next(part for part in parts if isinstance(part, type) and issubclass(part, Section))
    return model
