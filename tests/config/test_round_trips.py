"""A config survives its dictionary, JSON and overrides."""

from __future__ import annotations

import json

from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import given, settings
from hypothesis import strategies as st

from tokconv.config.keys import to_dict
from tokconv.config.overrides import compose, from_dict, with_values


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
