"""The training function: a resumed run equals an uninterrupted one, and divergence stops a run before the update."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import networks
from support.stores import write_store

from tokconv.config.overrides import compose, from_dict, with_values
from tokconv.config.tree import Config
from tokconv.errors import CheckpointError, ConfigError, DivergedError, MissingExtraError, StoreError
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.figure import VLM
from tokconv.evaluation.figures import FIGURES, OBJECTIVES
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.store.reader import TokenStore
from tokconv.training import checkpoint as checkpoints
from tokconv.training.loop import check_store, run_trial
from tokconv.training.runtime import LocalRuntime, Metrics, checkpoints_of
from tokconv.training.step import Trainer, random_stream

SMALL = [*networks.SMALL, "training.epochs=4", "loss.weights.wgan=0.05"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("stores") / "tiny", num_images=48)


@pytest.fixture
def config() -> Config:
    return compose(SMALL)


def _timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "train/images_per_second"} for row in history]


class _InterruptedError(Exception):
    pass


def _stop_after(epoch: int) -> Any:
    def on_report(metrics: Metrics, checkpoint: Path | None) -> None:
        if metrics["epoch"] == epoch:
            raise _InterruptedError

    return on_report


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["loss.wgan.kind=logistic", "model.critic.kind=both", "training.ema=0.9", "loss.wgan.real_draws=2",
         "loss.wgan.start=0.3", "model.critic.whiten=0.7", "model.compressor.whiten=true"],
        ["loss.wgan.kind=hinge", "model.critic.kind=token", "training.ema=0.99", "model.compressor.kind=matryoshka",
         "model.compressor.grids=2-3", "loss.weights.distribution=0.5"],
    ],
    ids=["default", "both", "hinge"],
)  # fmt: skip
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(
    store: TokenStore, tmp_path: Path, overrides: list[str]
) -> None:
    config = compose([*SMALL, *overrides])
    whole = run_trial(config, store, LocalRuntime(tmp_path / "whole", device="cpu"))
    with pytest.raises(_InterruptedError):
        run_trial(config, store, LocalRuntime(tmp_path / "parts", device="cpu", on_report=_stop_after(2)))
    parts = run_trial(config, store, LocalRuntime(tmp_path / "parts", device="cpu", resume=True))
    assert _timeless(parts.history) == _timeless(whole.history)
    assert whole.checkpoint is not None
    assert parts.checkpoint is not None
    ours, theirs = checkpoints.load(whole.checkpoint), checkpoints.load(parts.checkpoint)
    assert ours.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


def test_training_improves_on_the_closed_form_start(store: TokenStore, config: Config, tmp_path: Path) -> None:
    plain = with_values(config, {"loss.weights.wgan": 0.0, "training.epochs": 30})
    result = run_trial(plain, store, LocalRuntime(tmp_path, device="cpu"))
    assert result.figures["val/fvu"] < baseline_figures(store, 3)["window_pca"]["val/fvu"]
    assert "critic/wasserstein" not in result.figures
    # Where the last epoch is the best one, nothing is kept twice.
    assert result.figures == result.history[-1]
    assert result.checkpoint is not None
    assert not list(result.checkpoint.glob("best-*"))


def test_figures_that_train_networks_come_after_the_last_epoch(config: Config, tmp_path: Path) -> None:
    larger = write_store(tmp_path / "store", num_images=80)
    twice = with_values(config, {"training.epochs": 2})
    _, first, last = run_trial(twice, larger, LocalRuntime(tmp_path / "run", device="cpu")).history
    late = {name for name in last.keys() - first.keys() if name in OBJECTIVES}
    assert late == {name for name in OBJECTIVES if not FIGURES[name].every_epoch and FIGURES[name].needs != VLM}
    assert {"val/auc_token", "val/adapted_kept"} <= late
    assert "val/auc_token_quick" in first


@pytest.mark.parametrize("init", ["pca", "pooling"])
def test_epoch_0_is_the_closed_form(store: TokenStore, config: Config, tmp_path: Path, init: str) -> None:
    short = with_values(config, {"model.compressor.init": init, "training.epochs": 1})
    figures = run_trial(short, store, LocalRuntime(tmp_path, device="cpu")).history[0]
    name = "matched_window_pca" if init == "pca" else "pooling"
    expected = baseline_figures(store, 3, [name])[name]
    assert figures["val/fvu"] == pytest.approx(expected["val/fvu"], rel=1e-4)
    assert figures["val/swd"] == pytest.approx(expected["val/swd"], rel=1e-3)


def test_divergence_is_raised_and_nothing_is_updated(store: TokenStore, config: Config) -> None:
    trainer = Trainer(config, store, device=torch.device("cpu"), wrap=lambda module: module, total_steps=10)
    before = {name: p.detach().clone() for name, p in trainer.compressor.named_parameters()}
    tokens = store.tokens(store.train_indices[:8])
    tokens[0, 0, 0] = float("nan")
    with pytest.raises(DivergedError, match=r"critic.* not finite at step 3"):
        trainer.step(tokens, 3)
    assert all(torch.equal(before[name], p) for name, p in trainer.compressor.named_parameters())


def test_an_absurd_learning_rate_diverges(store: TokenStore, config: Config, tmp_path: Path) -> None:
    wild = with_values(config, {"training.learning_rate": 1e30, "training.epochs": 20})
    with pytest.raises(DivergedError):
        run_trial(wild, store, LocalRuntime(tmp_path, device="cpu"))


def test_bfloat16_autocast_trains(store: TokenStore, config: Config, tmp_path: Path) -> None:
    half = with_values(config, {"training.precision": "bfloat16"})
    exact = run_trial(config, store, LocalRuntime(tmp_path / "exact", device="cpu")).figures
    assert run_trial(half, store, LocalRuntime(tmp_path / "half", device="cpu")).figures["val/fvu"] == pytest.approx(
        exact["val/fvu"], rel=0.1
    )


def test_a_checkpoint_of_another_config_or_store_is_refused(store: TokenStore, config: Config, tmp_path: Path) -> None:
    run_trial(with_values(config, {"training.epochs": 1}), store, LocalRuntime(tmp_path / "run", device="cpu"))
    other = with_values(config, {"training.epochs": 1, "model.compressor.hidden_dim": 16})
    with pytest.raises(CheckpointError, match=r"model.compressor.hidden_dim=8, not 16"):
        run_trial(other, store, LocalRuntime(tmp_path / "run", device="cpu", resume=True))
    elsewhere = write_store(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="another token store"):
        run_trial(with_values(config, {"training.epochs": 1}), elsewhere,
                  LocalRuntime(tmp_path / "run", device="cpu", resume=True))  # fmt: skip


def test_a_history_of_another_protocol_is_not_continued(store: TokenStore, config: Config, tmp_path: Path) -> None:
    with pytest.raises(_InterruptedError):
        run_trial(config, store, LocalRuntime(tmp_path, device="cpu", on_report=_stop_after(2)))
    path = tmp_path / "checkpoints" / "epoch-0002" / "state.json"
    state = json.loads(path.read_text())
    assert state["protocol"] == PROTOCOL
    path.write_text(json.dumps({**state, "protocol": 1}))
    with pytest.raises(CheckpointError, match=f"evaluation protocol 1, this tokconv has {PROTOCOL}.*start a new one"):
        run_trial(config, store, LocalRuntime(tmp_path, device="cpu", resume=True))


def test_damaged_checkpoints_are_refused(store: TokenStore, config: Config, tmp_path: Path) -> None:
    path = run_trial(
        with_values(config, {"training.epochs": 1}), store, LocalRuntime(tmp_path, device="cpu")
    ).checkpoint
    assert path is not None
    for name in ("weights.safetensors", "optimizers.pt", "state.json"):
        copy = tmp_path / f"damaged-{name}"
        shutil.copytree(path, copy)
        (copy / name).write_bytes((copy / name).read_bytes()[:-40])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoints.load(copy)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoints.load(tmp_path / "nowhere")


def test_a_grid_larger_than_the_token_grid_is_refused_at_once(
    store: TokenStore, config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="between 1 and the token grid, 6"):
        run_trial(with_values(config, {"model.compressor.output_grid_size": 7}), store, LocalRuntime(tmp_path))


def test_the_newest_checkpoint_is_the_only_one_kept(store: TokenStore, config: Config, tmp_path: Path) -> None:
    run_trial(config, store, LocalRuntime(tmp_path, device="cpu"))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["epoch-0004"]


def test_checkpoints_are_ordered_by_epoch_not_by_name(tmp_path: Path) -> None:
    runtime = LocalRuntime(tmp_path, device="cpu", resume=True)
    for epoch in (9999, 10000):
        runtime.checkpoint_dir(epoch).mkdir(parents=True)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["epoch-9999", "epoch-10000"]
    assert runtime.latest_checkpoint() == runtime.checkpoint_dir(10000)
    runtime.report({"epoch": 10000}, runtime.checkpoint_dir(10000))
    assert checkpoints_of(tmp_path) == [runtime.checkpoint_dir(10000)]


def test_state_is_plain_json(store: TokenStore, config: Config, tmp_path: Path) -> None:
    path = run_trial(replace(config), store, LocalRuntime(tmp_path, device="cpu")).checkpoint
    assert path is not None
    state = json.loads((path / "state.json").read_text())
    assert from_dict(state["config"]) == config
    assert state["store_fingerprint"] == store.fingerprint


def test_seeds_differ_in_the_order_of_images_and_in_every_draw(store: TokenStore, tmp_path: Path) -> None:
    """Also where no weight starts at random: torch takes only 32 bits of a seed."""
    linear = ["model.compressor.use_residual=false", "model.autoencoder.kind=linear", "loss.weights.wgan=0"]
    found = []
    for seed in (0, 1):
        config = compose([*SMALL, *linear, "training.epochs=1", f"training.seed={seed}"])
        found.append(run_trial(config, store, LocalRuntime(tmp_path / str(seed), device="cpu")).figures["val/fvu"])
    assert found[0] != found[1]
    draws = {tuple(torch.randperm(64, generator=random_stream(seed, 5)).tolist()) for seed in range(50)}
    assert len(draws) == 50


def test_a_loss_whose_package_is_missing_is_refused_before_anything_is_written(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "geomloss", None)
    with pytest.raises(MissingExtraError, match="sinkhorn"):
        run_trial(
            compose([*SMALL, "loss.distribution=sinkhorn", "loss.weights.distribution=1"]),
            store,
            LocalRuntime(tmp_path / "run", device="cpu"),
        )
    assert not (tmp_path / "run").exists()


def test_a_single_window_is_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", num_images=2)
    assert len(store.train_indices) == 1
    with pytest.raises(StoreError, match="a single window"):
        check_store(compose([*SMALL, "model.compressor.output_grid_size=1"]), store)
    with pytest.raises(StoreError, match="a single window"):
        baseline_figures(store, 1)
