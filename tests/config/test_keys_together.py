"""Keys that make sense only together are checked together."""

from __future__ import annotations

import re

import pytest

from tokconv.config.keys import get
from tokconv.config.overrides import compose
from tokconv.errors import ConfigError


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
