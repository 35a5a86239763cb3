"""Names and types: a mistake is answered with the nearest key or the wanted type."""

from __future__ import annotations

import pytest

from tokconv.config.keys import KEYS, get
from tokconv.config.overrides import compose, from_dict, with_values
from tokconv.config.tree import Config
from tokconv.errors import ConfigError

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
