"""The best epoch of a run: never worse than the closed-form start, whatever the training does."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.networks import SMALL
from support.stores import write_store

import tokconv
from tokconv.config.overrides import compose
from tokconv.errors import ConfigError, DivergedError
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.epochs import LOWEST_FVU, EpochRule
from tokconv.store.reader import TokenStore
from tokconv.sweep.spec.rules import Target
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime, Metrics

SHORT = [*SMALL, "model.compressor.output_grid_size=2", "training.epochs=3", "loss.weights.wgan=0"]
HARMFUL = [*SHORT, "training.learning_rate=3"]
"""Loses the closed-form start in the first epoch and stays finite."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    # Enough held-out images for the figures that only a last epoch has.
    return write_store(tmp_path_factory.mktemp("stores") / "tiny", num_images=80)


def test_a_run_that_loses_its_start_is_judged_and_exported_as_its_start(store: TokenStore, tmp_path: Path) -> None:
    result = run_trial(compose(HARMFUL), store, LocalRuntime(tmp_path / "run", device="cpu"))
    start, *others = result.history
    assert all(row["val/fvu"] > start["val/fvu"] for row in others)
    assert start["val/fvu"] == pytest.approx(
        baseline_figures(store, 2, ["matched_window_pca"])["matched_window_pca"]["val/fvu"], rel=1e-4
    )
    folder = tokconv.export(tmp_path / "run", tmp_path / "out")
    judged = tokconv.evaluate(folder, store, device="cpu")
    assert {"val/auc_token", "val/fvu"} <= judged.keys()
    assert {name: result.figures[name] for name in judged} == judged
    assert result.figures["epoch"] == 0
    # The newest epoch can still be had, but has to be asked for.
    newest = tokconv.export(result, tmp_path / "newest", epoch="last")
    assert tokconv.evaluate(newest, store, device="cpu")["val/fvu"] == others[-1]["val/fvu"]
    with pytest.raises(ConfigError, match=r"epoch: got 'lats'; did you mean last\?"):
        tokconv.export(result, tmp_path / "misspelt", epoch="lats")


def test_the_best_epoch_outlives_a_pause(store: TokenStore, tmp_path: Path) -> None:
    def stop(metrics: Metrics, checkpoint: Path | None) -> None:
        if metrics["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(compose(HARMFUL), store, LocalRuntime(tmp_path, device="cpu", on_report=stop))
    paused = tokconv.export(tmp_path, tmp_path / "paused")
    result = run_trial(compose(HARMFUL), store, LocalRuntime(tmp_path, device="cpu", resume=True))
    ended = tokconv.export(tmp_path, tmp_path / "ended")
    assert result.figures["epoch"] == 0
    for name in ("model.safetensors", "decoder.safetensors"):
        assert (paused / name).read_bytes() == (ended / name).read_bytes()


def test_a_diverged_run_keeps_its_best_epoch(store: TokenStore, tmp_path: Path) -> None:
    wild = compose([*SHORT, "training.learning_rate=1e30"])
    with pytest.raises(DivergedError):
        run_trial(wild, store, LocalRuntime(tmp_path / "run", device="cpu"))
    figures = tokconv.evaluate(tokconv.export(tmp_path / "run", tmp_path / "out"), store, device="cpu")
    pca = baseline_figures(store, 2, ["matched_window_pca"])["matched_window_pca"]
    assert figures["val/fvu"] == pytest.approx(pca["val/fvu"], rel=1e-4)


def test_an_epoch_within_the_limits_is_better_than_one_with_a_better_figure() -> None:
    kept, broken = {"val/fvu": 0.02, "val/swd": 0.2}, {"val/fvu": 0.04, "val/swd": 0.1}
    rule = EpochRule("val/swd", (Target("val/fvu", "<=", 0.03),))
    assert rule.cost(kept) < rule.cost(broken)
    assert EpochRule("val/swd").cost(broken) < EpochRule("val/swd").cost(kept)
    # Only a last epoch has this figure: it would always win by it, or always lose.
    late = EpochRule("val/fvu", (Target("val/auc_token", "<=", 0.5),))
    assert late.cost({**broken, "val/auc_token": 0.4}) == late.cost(broken) > LOWEST_FVU.cost(kept)
