"""The registry of named kinds."""

import pytest

from tokconv.errors import ConfigError
from tokconv.system.registry import Registry


def test_an_unknown_name_is_refused_with_its_key_and_the_nearest_name():
    registry = Registry("model.critic.kind", {"grid": 1, "token": 2})
    with pytest.raises(ConfigError, match=r"model\.critic\.kind: got 'gird'; did you mean grid\?"):
        registry["gird"]
    with pytest.raises(ConfigError, match="got 'x'; allowed: grid, token"):
        registry["x"]


def test_a_registry_is_a_mapping_in_the_order_of_its_entries():
    registry = Registry("data.source", {"b": 1, "a": 2})
    assert list(registry) == ["b", "a"]
    assert "a" in registry
    assert "c" not in registry
