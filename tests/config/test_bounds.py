"""Bounds: a key takes its edges and nothing beyond, and exactly the kinds that are registered."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from tokconv.config.bounds import Bound
from tokconv.config.checks import check_value
from tokconv.config.keys import BOUNDS, KEYS, get
from tokconv.config.overrides import compose, with_values
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

EXTRA = {"data.root": "/photos"}
"""What a config needs next to the value under test, for sources that read images from a folder."""
FEATURES = {"data.source": "features", "data.root": "/tokens.npy", "model.clip.model_name": "mine"}
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
