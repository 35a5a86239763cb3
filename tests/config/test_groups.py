"""The default config, and the groups that tokconv ships."""

from __future__ import annotations

from pathlib import Path

import pytest

import tokconv.config.groups
from tokconv.config.checks import validate
from tokconv.config.keys import GROUPS, KEYS, get
from tokconv.config.overrides import compose, keys_of
from tokconv.config.tree import Config
from tokconv.errors import ConfigError


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
