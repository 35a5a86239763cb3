"""Several workers per trial: they equal one worker with the same global batch; each reads its part, rank 0 writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support import networks
from support.groups import ReadingStore, run_dir, train_group, weights
from support.stores import write_store

from tokconv.config.overrides import compose, with_values
from tokconv.errors import ConfigError, DivergedError
from tokconv.store.reader import TokenStore
from tokconv.training.loop import check_batch, run_trial
from tokconv.training.runtime import LocalRuntime, Metrics, checkpoints_of
from tokconv.training.workers import SINGLE_PROCESS

SMALL = [*networks.SMALL, "training.epochs=3"]
CASES = {
    "autoencoder": ["loss.weights.wgan=0"],
    "wgan_gp": ["loss.weights.wgan=0.05"],
    "wgan_sn": ["loss.weights.wgan=0.05", "loss.wgan.kind=wgan_sn"],
    "logistic": ["loss.wgan.kind=logistic", "loss.wgan.lambda_gp=0.1", "model.critic.kind=token",
                 "loss.wgan.real_draws=2", "training.ema=0.9", "training.batch_size=32"],
    "both": ["loss.wgan.kind=hinge", "model.critic.kind=both", "model.critic.whiten=0.5", "loss.weights.anchor=0.3",
             "model.compressor.whiten=true", "model.autoencoder.whiten=true", "loss.wgan.start=0.3"],
    "published": ["loss.wgan.balance=none", "loss.weights.wgan=0.05", "training.critic_schedule=linear"],
    "r3gan": ["loss.weights.wgan=0.05", "loss.wgan.kind=r3gan", "loss.wgan.lambda_gp=1"],
    "swd": ["loss.weights.wgan=0", "loss.weights.distribution=1"],
    "sinkhorn": ["loss.weights.wgan=0", "loss.weights.distribution=1", "loss.distribution=sinkhorn",
                 "training.batch_size=32"],
    "matryoshka": ["model.compressor.kind=matryoshka", "model.compressor.grids=2-3", "loss.weights.wgan=0.05"],
    "everything": ["loss.weights.wgan=0.05", "loss.weights.distribution=0.5", "loss.reconstruction=hybrid",
                   *(f"loss.weights.{name}=0.3" for name in ("spatial", "perceptual", "window_cosine", "anchor"))],
}  # fmt: skip
ENDS = {
    "poisoned": ["loss.weights.wgan=0.05"],
    # One step per epoch: its weights are finite but so large that the figures of rank 0 are not.
    "exploded": ["loss.weights.wgan=0", "training.batch_size=36", "training.learning_rate=1e30"],
    "interrupted": ["loss.weights.wgan=0.05"],
    "resumed": ["loss.weights.wgan=0.05"],
}


@dataclass(frozen=True)
class Group:
    """The results of two workers, `of(case, rank)`, and their output directory."""

    of: Callable[[str, int], dict[str, Any]]
    out: Path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("stores") / "tiny", num_images=48)


class _StopError(Exception):
    pass


def _stop_after_one(metrics: Metrics, checkpoint: Path | None) -> None:
    if metrics["epoch"] == 1:
        raise _StopError


@pytest.fixture(scope="module")
def group(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Train all cases by one pair of processes, which take seconds to start."""
    out = tmp_path_factory.mktemp("group")
    cases = {name: compose([*SMALL, *overrides]) for name, overrides in (CASES | ENDS).items()}
    with pytest.raises(_StopError):
        run_trial(cases["resumed"], store, LocalRuntime(out / "begun", device="cpu", on_report=_stop_after_one))
    options = {
        "poisoned": {"poison_rank": 1},
        "interrupted": {"interrupt_after": 2},
        "resumed": {"resume": str(out / "begun")},
    }
    return Group(train_group(cases, store, out, options=options), out)


def _single(name: str, store: TokenStore, directory: Path, *, resume: bool = False) -> list[dict[str, float]]:
    config = compose([*SMALL, *(CASES | ENDS)[name]])
    return run_trial(config, store, LocalRuntime(directory, device="cpu", resume=resume)).history


UNDETERMINED = ("train/images_per_second", "train/adversarial", "train/adversarial_token", "train/adversarial_grid")
"""A critic is determined up to a constant: a bias that shifts all scores alike has a gradient of zero, and Adam turns
its rounding errors into steps. Only differences of scores matter to training, and those are compared."""


def _close(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        mine, other = ({k: v for k, v in row.items() if k not in UNDETERMINED} for row in (mine, other))
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_workers_train_as_one_does(group: Group, store: TokenStore, tmp_path: Path, name: str) -> None:
    history = _single(name, store, tmp_path)
    _close(group.of(name, 0)["history"], history)
    ours, theirs = weights(run_dir(group.out, name, 0)), weights(tmp_path)
    assert ours.keys() == theirs.keys()
    for key, weight in ours.items():
        if not (key.startswith("critic.") and key.endswith("bias")):
            assert torch.allclose(weight, theirs[key], rtol=1e-5, atol=1e-5), key


@pytest.mark.slow
def test_every_image_of_a_batch_is_read_by_one_worker(group: Group, store: TokenStore, tmp_path: Path) -> None:
    reading = ReadingStore.open(store.path)
    whole: list[list[int]] = []
    runtime = LocalRuntime(tmp_path, device="cpu", on_progress=lambda *_: whole.append(reading.last))
    run_trial(compose([*SMALL, *CASES["autoencoder"]]), reading, runtime)
    parts = [group.of("autoencoder", rank)["read"] for rank in (0, 1)]
    assert len(whole) == 3 * (36 // 8)
    for batch, first, second in zip(whole, *parts, strict=True):
        assert len(first) == len(second) == 4
        assert first + second == batch


@pytest.mark.slow
def test_only_rank_0_writes(group: Group) -> None:
    for name in CASES:
        assert [path.name for path in (run_dir(group.out, name, 0) / "checkpoints").iterdir()] == ["epoch-0003"]
        assert not run_dir(group.out, name, 1).exists()


@pytest.mark.slow
def test_every_worker_has_the_figures_of_rank_0(group: Group) -> None:
    for name in CASES:
        assert group.of(name, 0)["history"] == group.of(name, 1)["history"]


@pytest.mark.slow
def test_a_divergence_on_one_worker_ends_all_of_them(group: Group) -> None:
    errors = [group.of("poisoned", rank)["error"] for rank in (0, 1)]
    assert errors == [repr(DivergedError("the critic's loss", 0))] * 2
    # The start is kept.
    assert [path.name for path in checkpoints_of(run_dir(group.out, "poisoned", 0))] == ["epoch-0000"]


@pytest.mark.slow
def test_a_figure_that_is_not_finite_ends_all_workers(group: Group) -> None:
    errors = [group.of("exploded", rank)["error"] for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert "DivergedError('val/" in errors[0]
    assert [path.name for path in checkpoints_of(run_dir(group.out, "exploded", 0))] == ["epoch-0000"]


@pytest.mark.slow
def test_a_run_of_two_workers_is_resumed_by_one(group: Group, store: TokenStore, tmp_path: Path) -> None:
    assert "StoppedError" in group.of("interrupted", 1)["error"]
    resumed = _single("interrupted", store, run_dir(group.out, "interrupted", 0), resume=True)
    _close(resumed, _single("interrupted", store, tmp_path))


@pytest.mark.slow
def test_a_run_of_one_worker_is_resumed_by_two(group: Group, store: TokenStore, tmp_path: Path) -> None:
    assert len(group.of("resumed", 1)["read"]) == 2 * (36 // 8)
    _close(group.of("resumed", 0)["history"], _single("resumed", store, tmp_path))


def test_a_batch_that_cannot_be_shared_is_refused(store: TokenStore) -> None:
    assert check_batch(8, 36, 2) == 8
    assert check_batch(64, 36, 4) == 36
    with pytest.raises(ConfigError, match=r"got 9; it is the batch of all workers together, and 9 .* of 2 workers"):
        check_batch(9, 36, 2)
    with pytest.raises(ConfigError, match=r"got 40 \(there are 36 training images\).* 36 images .* of 5 workers"):
        check_batch(40, 36, 5)


def test_a_single_process_sends_nothing() -> None:
    """No process group exists here, so sending would raise."""
    rows = torch.randn(4, 2, requires_grad=True)
    assert SINGLE_PROCESS.gather(rows) is rows
    assert SINGLE_PROCESS.mean(rows) is rows
    assert torch.equal(SINGLE_PROCESS.rows(rows, torch.tensor([3, 0, 3])), rows[[3, 0, 3]])
    assert SINGLE_PROCESS.broadcast({"a": 1}) == {"a": 1}
    assert SINGLE_PROCESS.first_then_others(lambda: 7) == 7


def test_figures_do_not_depend_on_who_trained(store: TokenStore, tmp_path: Path) -> None:
    """The comparisons above are sensitive: another batch size gives other figures."""
    config = with_values(compose([*SMALL, *CASES["autoencoder"]]), {"training.batch_size": 4})
    other = run_trial(config, store, LocalRuntime(tmp_path / "other", device="cpu")).figures
    same = _single("autoencoder", store, tmp_path / "same")[-1]
    assert other["val/fvu"] != pytest.approx(same["val/fvu"], rel=1e-4)
