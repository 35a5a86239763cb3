"""`tokconv.training.api.train`: training from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.networks import SMALL
from support.stores import write_store

from tokconv.config.overrides import compose, with_values
from tokconv.errors import CheckpointError, ConfigError
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.training.api import train


def test_it_reports_every_epoch_and_resumes(tmp_path: Path) -> None:
    store, config = write_store(tmp_path / "store"), compose([*SMALL, "training.epochs=2"])
    epochs: list[float] = []
    result = train(
        config, store, tmp_path / "run", device="cpu", on_epoch=lambda figures: epochs.append(figures["epoch"])
    )
    assert epochs == [0, 1, 2]
    assert result.checkpoint == tmp_path / "run" / "checkpoints" / "epoch-0002"
    with pytest.raises(CheckpointError, match="already holds checkpoints"):
        train(config, store, tmp_path / "run", device="cpu")
    assert train(config, store, tmp_path / "run", device="cpu", resume=True).figures == result.figures


def test_a_config_that_does_not_fit_the_store_leaves_no_directory(tmp_path: Path) -> None:
    store, config = write_store(tmp_path / "store"), compose(SMALL)
    with pytest.raises(ConfigError, match="between 1 and the token grid, 6"):
        train(with_values(config, {"model.compressor.output_grid_size": 7}), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_first_step_waits_only_for_the_baselines_that_are_shown(tmp_path: Path) -> None:
    store, found = write_store(tmp_path / "store", num_images=100), []

    def on_epoch(figures: dict[str, float]) -> None:
        found.append({path.name.split(f"-p{PROTOCOL}")[0] for path in store.derived_dir.glob("*baselines-*.json")})
        assert len(list(store.derived_dir.glob("codec*.safetensors"))) == 1

    train(compose([*SMALL, "training.epochs=1"]), store, tmp_path / "run", device="cpu", on_epoch=on_epoch)
    start = {"quick-baselines-pooling", "quick-baselines-matched_window_pca"}
    last = {"baselines-pooling", "baselines-window_pca", "baselines-matched_window_pca"}
    assert found == [start, start | last]
    quick, full = (baseline_figures(store, 3, ["pooling"], full=full)["pooling"] for full in (False, True))
    assert quick == full
    assert "val/auc_token" in full
