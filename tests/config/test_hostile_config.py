"""Hostile input: whatever is given becomes a valid config or a ConfigError."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokconv.config.checks import validate
from tokconv.config.keys import GROUPS, KEYS, flatten, to_dict
from tokconv.config.overrides import compose, from_dict, parse, with_values
from tokconv.config.tree import Config
from tokconv.errors import ConfigError

Result = TypeVar("Result")
LONG_NUMBER = "1" * 5000
DEEP = "[" * 2000 + "]" * 2000
SYNTAX = st.text(st.sampled_from("ab01.-+=~@:,'\"\\[]{}()$?#/ \n\t\x00é"), max_size=20)
OLD = ["data.use_subset", "data.subset_size", "model.autoencoder.use_attention"]
NAMES = st.sampled_from([*KEYS, *GROUPS, *OLD, "hydra"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.sampled_from(["${data.root}", "${oc.env:HOME}", "???", "null", "1e5", "true"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize(
    "value",
    [
        "${data.root}",
        "${nothing}",
        "${oc.env:TOKCONV_NO_SUCH_VARIABLE}",
        "${hydra:runtime.cwd}",
        "${training}",
        "${oc.decode:'[1'}",
        "'${'",
        "${",
    ],
)
def test_hostile_values_are_config_errors(value: str) -> None:
    with pytest.raises(ConfigError):
        compose([f"data.root={value}"])


@pytest.mark.parametrize("value", [LONG_NUMBER, DEEP], ids=["long number", "deep nesting"])
def test_hostile_numbers_are_config_errors(value: str) -> None:
    with pytest.raises(ConfigError):
        compose([f"training.epochs={value}"])


@pytest.mark.parametrize("value", ["???", ["/photos"], ("/photos",)])
def test_values_that_no_key_can_hold_are_refused_everywhere(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^data\.root: got .*; must be a text or null$"):
        from_dict({"data": {"root": value}})
    with pytest.raises(ConfigError, match=r"^data\.root: got .*; must be a text or null$"):
        with_values(Config(), {"data.root": value})


def test_only_overrides_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKCONV_PHOTOS", "/photos")
    assert compose(["data.root=${oc.env:TOKCONV_PHOTOS}"]).data.root == "/photos"
    for build in (
        lambda: from_dict({"data": {"root": "${oc.env:TOKCONV_PHOTOS}"}}),
        lambda: with_values(Config(), {"data.root": "${oc.env:TOKCONV_PHOTOS}"}),
    ):
        with pytest.raises(ConfigError, match="overrides only"):
            build()


def build_or_refuse(build: Callable[[], Result]) -> Result | None:
    """Return what was built, or None if it was refused with a message; any other exception fails the test."""
    try:
        return build()
    except ConfigError as error:
        message = str(error)
    assert message
    return None


def assert_valid(config: Config) -> None:
    assert validate(config) is config
    for key, value in flatten(to_dict(config)).items():
        wanted = typing.get_args(KEYS[key]) or (KEYS[key],)
        assert type(value) in wanted, key


@given(text=SYNTAX | st.text(max_size=20) | st.builds("{}={}".format, NAMES, SYNTAX | SCALARS.map(str)))
@settings(derandomize=True, deadline=None, max_examples=150)
def test_any_override_composes_or_is_a_config_error(text: str) -> None:
    build_or_refuse(lambda: parse([text]))
    config = build_or_refuse(lambda: compose([text]))
    if config is not None:
        assert_valid(config)


@st.composite
def trees(draw: st.DrawFn) -> dict[object, object]:
    """Draw nested dictionaries, most of them on or near real keys."""
    tree = draw(st.dictionaries(st.text(max_size=5) | st.integers() | st.none(), VALUES, max_size=1))
    for key in draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=3)):
        *parents, leaf = key.split(".")[: draw(st.integers(1, 4))]
        node = tree
        for parent in parents:
            inner = node.setdefault(parent, {})
            node = inner if isinstance(inner, dict) else {}
        node[leaf] = draw(VALUES)
    return tree


@given(tree=trees())
@settings(derandomize=True, deadline=None, max_examples=400)
def test_any_dictionary_becomes_a_config_or_a_config_error(tree: dict[str, object]) -> None:
    config = build_or_refuse(lambda: from_dict(tree))
    if config is not None:
        assert_valid(config)
        assert from_dict(to_dict(config)) == config


@given(values=st.dictionaries(st.sampled_from(sorted(KEYS)), VALUES, max_size=3))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_any_values_on_known_keys_become_a_config_or_a_config_error(values: dict[str, object]) -> None:
    config = build_or_refuse(lambda: with_values(Config(), values))
    if config is not None:
        assert_valid(config)
