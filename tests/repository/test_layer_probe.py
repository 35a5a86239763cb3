"""tools/layer_probe.py: tokens are taken from where a digit is, and every layer has a line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tokconv.encoding.towers.hub import locate
from tokconv.encoding.towers.tower import BUNDLED
from tokconv.exports.answers.reading import SIDE, Placed
from tokconv.system.files import read_json_object, write_json


@pytest.fixture
def tool(tools: Any) -> Any:
    return tools("layer_probe")


def test_the_tokens_of_a_digit_are_those_of_its_square(tool: Any) -> None:
    """Tokens that hold their own row and column: the corner cells have those of the corner patches."""
    patch = SIDE // 24
    tokens = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij"))
    rows, columns = tool.features_of(tokens, Placed(7, 0, left=5 * patch, top=2 * patch, size=3 * patch)).view(2, 3, 3)
    assert rows[:, 0].tolist() == [2, 3, 4]
    assert columns[0].tolist() == [5, 6, 7]


def test_every_layer_has_a_line(tool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([BUNDLED, "--images", "24", "--test-images", "8"]) == 0
    text = capsys.readouterr().out
    assert "60 digits to learn from, 20 to test on" in text
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("hidden")] == [
        f"hidden layer {layer:2d}" for layer in range(5)
    ]


def test_a_tower_that_crops_is_refused(tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(locate(BUNDLED, None).folder, tmp_path / "tower")
    path = tmp_path / "tower" / "preprocessor_config.json"
    write_json(path, {**read_json_object(path), "size": {"shortest_edge": 128}})
    assert tool.main([str(tmp_path / "tower")]) == 1
    assert "crops square images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([BUNDLED, "--test-images", "301"])
