"""FLOPs against counts by hand and torch's counter on a real tower, and the budget of the default compressors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.towers import write_tower
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionModel

from tokconv.cli.main import main
from tokconv.config.overrides import compose
from tokconv.models.compressor import ResidualCompressor
from tokconv.training.flops import costs, count, tower_flops

L14_336 = {"image_size": 336, "patch_size": 14, "dim": 1024, "num_layers": 24, "mlp_dim": 4096}


def test_a_linear_compressor_costs_what_its_matrix_costs() -> None:
    parameters, flops = count(ResidualCompressor(24, 64, 6, use_residual=False), 1, 576, 64)
    assert parameters == 16 * 64 * 64 + 64
    assert flops == 2 * 36 * 16 * 64 * 64


def test_a_tower_agrees_with_the_counter(tmp_path: Path) -> None:
    path = write_tower(tmp_path / "tower", image_size=32, patch_size=4, layers=2)
    tower = CLIPVisionModel.from_pretrained(path, attn_implementation="eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower(torch.zeros(1, 3, 32, 32))
    config = tower.config
    expected = tower_flops(
        image_size=32,
        patch_size=4,
        dim=config.hidden_size,
        num_layers=config.num_hidden_layers,
        mlp_dim=config.intermediate_size,
    )
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_l14_336_is_the_published_382_gflop() -> None:
    assert tower_flops(**L14_336) / 1e9 == pytest.approx(382, rel=0.01)


def test_the_default_compressors_stay_within_a_hundredth_of_the_encoder() -> None:
    limit = 0.01 * tower_flops(**L14_336)
    found = [cost for cost in costs(compose(), 24, 1024, (4, 6, 8, 12)) if cost.role == "compressor"]
    assert {cost.kind for cost in found} == {"residual", "conv", "matryoshka", "adaptive", "salient"}
    assert {cost.grid for cost in found} == {4, 6, 8, 12}
    for cost in found:
        # The image's own directions cost more, the more of them the cells have room for.
        assert 0 < cost.flops <= (1.5 * limit if cost.kind == "adaptive" else limit), cost


def test_every_role_is_listed_at_every_grid() -> None:
    found = list(costs(compose(), 7, 8, (2, 3)))
    assert {(cost.role, cost.grid) for cost in found} == {
        (role, grid) for role in ("compressor", "decoder", "critic") for grid in (2, 3)
    }
    assert all(cost.parameters > 0 and cost.flops > 0 for cost in found)


@pytest.mark.parametrize(("name", "flops"), [("ViT-L/14-336", "382 GFLOP"), ("ViT-B/32", "8.8"), ("ViT-H/14", "33")])
def test_the_table_describes_published_towers_without_loading_them(
    name: str, flops: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", f"model.clip.model_name={name}", "--grids", "4"]) == 0
    shown = capsys.readouterr().out
    assert flops in shown
    for kind in ("adaptive *", "matryoshka", "attention", "linear", "token *", "multiscale"):
        assert kind in shown
    assert "more than 1 %" not in shown or name != "ViT-L/14-336"


def test_the_table_reads_a_local_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tower(tmp_path / "tower", image_size=32, patch_size=4, layers=2)
    assert main(["models", f"model.clip.model_name={path}", "--grids", "3", "model.compressor.kind=conv"]) == 0
    assert "conv *" in capsys.readouterr().out


@pytest.mark.parametrize("grids", ["4;6", "25", "0", "", "-4"])
def test_the_table_refuses_impossible_grids(grids: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", f"--grids={grids}"]) == 2
    assert "grid" in capsys.readouterr().err
