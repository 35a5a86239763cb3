"""The config tree and everything that builds one: bounds, names, types, published spellings, hostile input."""

from __future__ import annotations

import json
import math
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import given, settings
from hypothesis import strategies as st

import tokconv.config.groups
from tokconv.config.bounds import Bound
from tokconv.config.checks import check_value, validate
from tokconv.config.keys import BOUNDS, GROUPS, KEYS, flatten, get, to_dict
from tokconv.config.overrides import compose, from_dict, keys_of, parse, with_values
from tokconv.config.tree import LARGEST_SEED, Config, LossConfig, LossWeightsConfig
from tokconv.errors import ConfigError
from tokconv.models.registry import COMPRESSORS, CRITICS, DECODERS
from tokconv.models.windows import Windows
from tokconv.system.registry import Registry
from tokconv.training.losses.adversarial import ADVERSARIES
from tokconv.training.losses.distribution import DISTANCES
from tokconv.training.losses.reconstruction import RECONSTRUCTIONS
from tokconv.training.losses.terms import loss_terms
from tokconv.training.networks import STARTS
from tokconv.training.step import random_stream
from tokconv.training.workers import SINGLE_PROCESS

Result = TypeVar("Result")
EXTRA = {"data.root": "/photos"}
"""What a config needs next to the value under test, for sources that read images from a folder."""

FEATURES = {"data.source": "features", "data.root": "/tokens.npy", "model.clip.model_name": "mine"}

PUBLISHED = [
    (["model.compressor.output_grid_size=8"], {"model.compressor.output_grid_size": 8}),
    (
        ["data.use_subset=true", "data.subset_size=1000", "training.epochs=5"],
        {"data.subset": 1000, "training.epochs": 5},
    ),
    (["training.batch_size=16"], {"training.batch_size": 16}),
    (["training.n_critic=10"], {"training.n_critic": 10}),
    (["loss.wgan.lambda_gp=20.0"], {"loss.wgan.lambda_gp": 20.0}),
    (["loss.weights.ae=2.0"], {"loss.weights.ae": 2.0}),
]
INTEGERS = [key for key, annotation in KEYS.items() if "int" in str(annotation)]
FLOATS = [key for key, annotation in KEYS.items() if "float" in str(annotation)]
BOOLEANS = [key for key, annotation in KEYS.items() if annotation is bool]
RANGES = [(key, bound) for key, bound in BOUNDS.items() if not bound.choices]
CHOICES = [(key, bound) for key, bound in BOUNDS.items() if bound.choices]


def just_outside_and_edge(key: str, bound: Bound) -> tuple[list[float], list[float]]:
    """Return the values nearest to a bound that it must refuse, and those that it must accept."""
    whole = key in INTEGERS
    outside: list[float] = []
    inside: list[float] = []
    if bound.low is not None:
        below = int(bound.low) - 1 if whole else math.nextafter(bound.low, -math.inf)
        above = int(bound.low) + 1 if whole else math.nextafter(bound.low, math.inf)
        edge = int(bound.low) if whole else float(bound.low)
        outside += [below, edge] if bound.open_low else [below]
        inside += [above] if bound.open_low else [edge, above]
    if bound.high is not None:
        outside.append(int(bound.high) + 1 if whole else math.nextafter(bound.high, math.inf))
        inside += (
            [int(bound.high), int(bound.high) - 1]
            if whole
            else [float(bound.high), math.nextafter(bound.high, -math.inf)]
        )
    return outside, inside


# Defaults and files


def test_default_is_valid_and_runs_on_the_bundled_digits() -> None:
    config = compose()
    assert config.data.source == "digits"
    assert config.model.clip.model_name == "bundled:digits-tower"
    assert validate(Config()).model.clip.model_name == "openai/clip-vit-large-patch14-336"


RECIPE: dict[str, object] = {
    "model.compressor.output_grid_size": 6,
    "model.compressor.num_layers": 3,
    "model.compressor.use_residual": True,
    "model.critic.kind": "grid",
    "loss.wgan.kind": "wgan_gp",
    "loss.wgan.lambda_gp": 10.0,
    "loss.wgan.balance": "none",
    "loss.weights.wgan": 1.0,
    "loss.weights.ae": 1.0,
    "training.epochs": 100,
    "training.batch_size": 32,
    "training.learning_rate": 1e-4,
    "training.n_critic": 5,
}


def test_the_published_recipe_states_the_published_values_and_other_keys_win() -> None:
    assert Config().model.clip.model_name == "openai/clip-vit-large-patch14-336"
    config = compose(["recipe=published"])
    assert {key: get(config, key) for key in RECIPE} == RECIPE
    # Every value stands in the preset itself: a new default of the tree changes none of them.
    assert RECIPE.keys() <= set(keys_of("recipe", "published")) <= KEYS.keys()
    changed = compose(["training.epochs=5", "recipe=published", "data=folder", "data.root=/photos"])
    assert (changed.training.epochs, changed.training.n_critic, changed.data.source) == (5, 5, "folder")
    with pytest.raises(ConfigError, match=r"^recipe: got 'publishd'; did you mean published\?$"):
        compose(["recipe=publishd"])


@pytest.mark.parametrize("source", GROUPS["data"])
def test_every_shipped_group_composes(source: str) -> None:
    assert compose([f"data={source}", "data.root=/photos", "model.clip.model_name=a/b"]).data.source == source


def test_every_shipped_file_is_a_group() -> None:
    folder = Path(tokconv.config.groups.__file__).parent
    names = {file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")}
    assert names == {"config"} | {f"{group}/{name}" for group, choices in GROUPS.items() for name in choices}


# Bounds


def test_every_number_has_a_bound() -> None:
    unbounded = {"model.clip.layer"}  # negative from the end, checked against the tower itself
    assert set(INTEGERS + FLOATS) - set(BOUNDS) == unbounded
    assert set(BOUNDS) <= set(KEYS)


@pytest.mark.parametrize(("key", "bound"), RANGES, ids=[key for key, _ in RANGES])
def test_range_refuses_the_value_just_outside_and_accepts_the_edge(key: str, bound: Bound) -> None:
    outside, inside = just_outside_and_edge(key, bound)
    assert outside
    assert inside
    for value in outside:
        with pytest.raises(ConfigError) as from_text:
            compose([f"{key}={value!r}"])
        with pytest.raises(ConfigError) as from_value:
            with_values(Config(), {key: value})
        assert str(from_text.value) == str(from_value.value) == f"{key}: got {value!r}; {bound.rule}"
    context = {"data.extra_tokens": FEATURES, "loss.weights.vlm": {"loss.vlm.model": "llava"}}.get(key, {})
    for value in inside:
        lines = [f"{name}={given}" for name, given in context.items()]
        assert get(compose([f"{key}={value!r}", *lines]), key) == value
        assert get(with_values(Config(), {key: value} | context), key) == value


@pytest.mark.parametrize(("key", "bound"), CHOICES, ids=[key for key, _ in CHOICES])
def test_choice_accepts_each_and_refuses_others(key: str, bound: Bound) -> None:
    for value in bound.choices:
        context = EXTRA if key == "model.compressor.kind" else EXTRA | {"model.compressor.kind": "residual"}
        assert get(with_values(Config(), {key: value} | context), key) == value
        lines = [f"{name}={given}" for name, given in context.items()]
        assert get(compose([f"{key}={str(value).lower()}", *lines]), key) == value
    wrong = False if key in BOOLEANS else "nonesuch"
    with pytest.raises(ConfigError, match=f"{key}: got .*; allowed: "):
        with_values(Config(), {key: wrong})


@pytest.mark.parametrize("key", FLOATS)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_non_finite_numbers_are_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}: got -?(nan|inf); must be a finite number$"):
        compose([f"{key}={text}"])
    with pytest.raises(ConfigError, match="must be a finite number"):
        with_values(Config(), {key: float(text)})
    with pytest.raises(ConfigError, match="must be a finite number"):
        check_value(key, float(text))


@pytest.mark.parametrize(
    ("key", "registry", "others"),
    [
        ("model.compressor.kind", COMPRESSORS, set()),
        # A matryoshka compressor has a decoder of its own.
        ("model.autoencoder.kind", DECODERS, {cls.decoder_kind for cls in COMPRESSORS.values()} - {None}),
        ("model.critic.kind", CRITICS, set()),
        ("model.compressor.init", STARTS, set()),
        ("loss.wgan.kind", ADVERSARIES, set()),
        ("loss.reconstruction", RECONSTRUCTIONS, set()),
        ("loss.distribution", DISTANCES, set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_key_allows_exactly_the_kinds_that_are_registered(
    key: str, registry: Mapping[str, object], others: set[str]
) -> None:
    assert {*BOUNDS[key].choices} | others == set(registry)
    assert not {*BOUNDS[key].choices} & others
    if isinstance(registry, Registry):
        assert registry.key == key


def test_every_weight_has_its_loss() -> None:
    weights = dict.fromkeys((key.removeprefix("loss.weights.") for key in KEYS if key.startswith("loss.weights.")), 1.0)
    tokens = torch.zeros(1, 4, 2)
    terms = loss_terms(
        LossConfig(weights=LossWeightsConfig(**weights)),
        tokens,
        tokens,
        tokens,
        windows=Windows(2, 2),
        generator=torch.Generator(),
        workers=SINGLE_PROCESS,
    )
    # The adversarial loss is weighed against the others, and a teacher's comes from outside: test_adversary.py and
    # test_teacher.py.
    found = {term.name for term in terms} | {"wgan", "vlm"}
    assert found == {{"ae": "reconstruction"}.get(name, name) for name in weights}


def test_the_largest_seed_draws_and_the_next_is_refused_before_any_work() -> None:
    assert random_stream(LARGEST_SEED, 2**32 - 1).initial_seed() < 2**32
    assert compose([f"training.seed={LARGEST_SEED}"]).training.seed == LARGEST_SEED
    with pytest.raises(ConfigError, match=r"^training\.seed: got 4294967296; must be from 0 to 4294967295$"):
        compose(["training.seed=4294967296"])


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"all are 0, nothing would be trained"):
        compose(["loss.weights.ae=0", "loss.weights.distribution=0"])
    assert compose(["loss.weights.wgan=0"]).loss.weights.wgan == 0.0


@pytest.mark.parametrize("source", ["folder", "imagenet", "coco", "huggingface", "features"])
@pytest.mark.parametrize("key", ["data", "data.source"])
def test_sources_with_a_folder_need_root(key: str, source: str) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.root: missing; data\.source={source}"):
        compose([f"{key}={source}", "model.clip.model_name=a/b"])
    assert compose([f"{key}={source}", "data.root=/photos", "model.clip.model_name=a/b"]).data.root == "/photos"


@pytest.mark.parametrize("key", ["data.name", "data.image_column", "data.label_column"])
def test_keys_that_the_source_does_not_read_are_refused(key: str) -> None:
    override = f"{key}=2017"
    with pytest.raises(ConfigError, match=rf"^{key}: data\.source=folder does not read it"):
        compose(["data=folder", "data.root=/photos", override])
    assert get(compose(["data=huggingface", "data.root=a/b", override]), key) == "2017"


# Names


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("training.epoch", "training.epochs"),
        ("model.compressor.output_grid", "model.compressor.output_grid_size"),
        ("loss.wgan.lambda_pg", "loss.wgan.lambda_gp"),
    ],
)
def test_unknown_key_names_the_nearest(wrong: str, meant: str) -> None:
    for build in (lambda: compose([f"{wrong}=1"]), lambda: with_values(Config(), {wrong: 1})):
        with pytest.raises(ConfigError) as raised:
            build()
        assert str(raised.value) == f"{wrong}: unknown; did you mean {meant}?"


def test_unknown_key_in_a_dictionary() -> None:
    with pytest.raises(ConfigError, match=r"^training\.epoch: unknown; did you mean training\.epochs\?$"):
        from_dict({"training": {"epoch": 1}})


def test_unknown_group_value() -> None:
    with pytest.raises(ConfigError, match=r"^data: got 'image_net'; did you mean imagenet\?$"):
        compose(["data=image_net"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("training.epochs", "not an override"),
        ("", "not an override"),
        (" training.epochs=3", "not an override"),
        ("+training.epochs=3", "only key=value"),
        ("~training.epochs", "only key=value"),
        ("training.epochs=1,2", "only key=value"),
        ("training.epochs=range(1,5)", "only key=value"),
        ("data@training=digits", "`@` has no meaning"),
        ("hydra.run.dir=x", "unknown"),
        ("training={epochs:5}", "unknown"),
    ],
)
def test_override_forms_that_are_not_supported_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        compose([text])


def test_last_override_wins() -> None:
    assert compose(["training.epochs=1", "training.epochs=2"]).training.epochs == 2


# Types


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("training.epochs=5.5", "must be a whole number"),
        ("training.epochs=true", "must be a whole number"),
        ("training.epochs=many", "must be a whole number"),
        ("training.epochs=null", "must be a whole number"),
        ("training.epochs=[1]", "must be a whole number"),
        ("data.subset=some", "must be a whole number or null"),
        ("training.learning_rate=true", "must be a number"),
        ("training.learning_rate=fast", "must be a number"),
        ("training.critic_learning_rate=fast", "must be a number or null"),
        ("model.compressor.use_residual=maybe", "must be true or false"),
        ("model.clip.model_name=null", "must be a text"),
        ("data.root=???", "must be a text or null"),
    ],
)
def test_wrong_type_names_key_and_wanted_type(text: str, rule: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose([text])
    assert str(raised.value).startswith(f"{text.split('=')[0]}: got ")
    assert str(raised.value).endswith(rule)


@pytest.mark.parametrize("value", ["many", 5.5, True, None, [1], object()])
def test_wrong_type_in_a_dictionary(value: object) -> None:
    for build in (
        lambda: from_dict({"training": {"epochs": value}}),
        lambda: with_values(Config(), {"training.epochs": value}),
    ):
        with pytest.raises(ConfigError, match=r"^training\.epochs: got .*; must be a whole number$"):
            build()


@pytest.mark.parametrize("key", [key for key, annotation in KEYS.items() if "None" in str(annotation)])
def test_optional_keys_take_null(key: str) -> None:
    assert get(compose([f"{key}=null"]), key) is None


# Published lines


@pytest.mark.parametrize(("line", "expected"), PUBLISHED, ids=[" ".join(line) for line, _ in PUBLISHED])
def test_published_lines_work_verbatim(line: list[str], expected: dict[str, object]) -> None:
    config, default = compose(line), compose()
    for key in KEYS:
        assert get(config, key) == expected.get(key, get(default, key))


def test_published_attention_switch() -> None:
    published = compose(["model.autoencoder.use_attention=true"]).model
    assert (published.autoencoder.kind, published.compressor.kind) == ("attention", "residual")
    with pytest.raises(ConfigError, match=r"leave it at conv, or take model\.compressor\.kind"):
        compose(["model.autoencoder.use_attention=true", "model.compressor.kind=adaptive"])
    assert compose(["model.autoencoder.use_attention=false"]) == compose()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.compressor.grids=4,6"], "write side lengths with dashes between, as in 4-6-8-12"),
        (["model.compressor.grids=0-4"], "write side lengths with dashes between"),
        (["model.compressor.output_grid_size=5"], "serves 4, 6, 8, 12"),
        (["model.autoencoder.kind=attention"], "has a decoder of its own, leave it at conv"),
    ],
)
def test_an_impossible_matryoshka_is_refused(overrides: list[str], expected: str) -> None:
    quoted = [text.replace("4,6", "'4,6'") for text in overrides]
    with pytest.raises(ConfigError, match=re.escape(expected)):
        compose(["model.compressor.kind=matryoshka", *quoted])


def test_attention_heads_share_the_width() -> None:
    with pytest.raises(ConfigError, match=r"num_heads: got 3; .*hidden_dim=128 must be a multiple"):
        compose(["model.compressor.kind=residual", "model.autoencoder.kind=attention", "model.autoencoder.num_heads=3"])


def test_published_subset_switch() -> None:
    assert compose(["data.subset_size=10", "data.use_subset=true"]).data.subset == 10
    assert compose(["data.subset_size=10", "data.use_subset=false"]).data.subset is None
    with pytest.raises(ConfigError, match=r"data\.subset_size is missing"):
        compose(["data.use_subset=true"])
    for value in ("5", "null", "[1]", "yes please"):
        with pytest.raises(ConfigError, match=r"^data\.use_subset: got .*; allowed: true, false"):
            compose([f"data.use_subset={value}"])
    with pytest.raises(ConfigError, match=r"^data\.subset: got 1; must be at least 2$"):
        compose(["data.subset_size=1"])


# Round trips


def test_round_trip_through_json() -> None:
    line = ["data=folder", "data.root='/photos (old)/a=b'", "training.learning_rate=3e-5", "data.subset=17"]
    config = compose(line)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_with_values_leaves_the_original_alone() -> None:
    config = compose()
    changed = with_values(config, {"training.epochs": 7, "data.root": "/photos"})
    assert (changed.training.epochs, changed.data.root) == (7, "/photos")
    assert config == compose()


PLAIN_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="$"), max_size=12)


@given(text=PLAIN_TEXT.filter(lambda text: text != "???") | st.text(st.sampled_from("\\'\" a"), max_size=6))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_any_quoted_text_arrives_unchanged(text: str) -> None:
    quoted = QuotedString(text=text, quote=Quote.single).with_quotes()
    config = compose(["data=coco", "data.root=/photos", f"data.name={quoted}"])
    assert config.data.name == text
    assert from_dict(to_dict(config)) == config
    assert with_values(config, {"data.name": text}).data.name == text


# Hostile input

LONG_NUMBER = "1" * 5000
DEEP = "[" * 2000 + "]" * 2000


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
