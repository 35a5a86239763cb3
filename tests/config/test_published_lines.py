"""The override lines of the published documentation mean what they meant."""

from __future__ import annotations

import pytest

from tokconv.config.keys import KEYS, get
from tokconv.config.overrides import compose
from tokconv.errors import ConfigError

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
