"""A frozen vision-language model teaches a compressor: `loss.weights.vlm`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.llavas import write_bundled_llava
from torch import Tensor

import tokconv
from tokconv.cli.main import main as cli
from tokconv.config.tree import Config
from tokconv.errors import CheckpointError, ConfigError
from tokconv.evaluation.figures import VLM_KL
from tokconv.exports.answers.judge import VlmJudge
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.teacher import VlmTeacher, teacher_settings
from tokconv.exports.artefact import read_config
from tokconv.models.windows import Windows
from tokconv.store.reader import TokenStore
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime

CPU = torch.device("cpu")
DATA = ["data=digits", "data.subset=48", "data.num_workers=0"]
SMALL = [
    "model.compressor.kind=residual",
    "model.compressor.output_grid_size=2",
    "model.compressor.num_layers=1",
    "model.compressor.hidden_dim=8",
    "model.autoencoder.num_layers=1",
    "model.autoencoder.hidden_dim=8",
    "training.batch_size=8",
    "training.learning_rate=1e-2",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Tokens of digits, by the tower of the model below."""
    place = tmp_path_factory.mktemp("teacher") / "store"
    return tokconv.encode(tokconv.compose([*DATA, f"data.store={place}"]), device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundled_llava(tmp_path_factory.mktemp("teacher") / "llava")


def taught(model: Path, *more: str) -> Config:
    named = [f"loss.vlm.model={model}", "loss.vlm.prompts='what is this ?'", "loss.vlm.tokens=3"]
    return tokconv.compose([*SMALL, *named, "loss.weights.vlm=3000", *more])


def pooled(tokens: Tensor, grid: int) -> Tensor:
    return Windows(24, grid).split(tokens).mean(2)


def test_the_loss_is_the_judges_figure_and_all_tokens_have_none(store: TokenStore, model: Path) -> None:
    config = taught(model)
    teacher, draw = VlmTeacher(store, config, CPU), torch.Generator()
    images = store.train_indices[[5, 1, 3]]
    tokens = store.tokens(images).float()
    assert float(teacher(tokens, images, draw)) == pytest.approx(0, abs=1e-6)
    found = float(teacher(pooled(tokens, 2), images, draw))
    assert found > 1e-4

    class OfTheseImages(VlmJudge):
        def __init__(self) -> None:
            held_out = store.val_indices
            try:
                store.val_indices = images
                super().__init__(store, teacher_settings(config.loss.vlm), CPU)
            finally:
                store.val_indices = held_out

    judged = OfTheseImages()(lambda tokens: (pooled(tokens, 2), tokens))
    assert judged[VLM_KL] == pytest.approx(found, rel=1e-4)


def test_a_step_asks_some_of_the_prompts_and_all_of_them_if_it_may(store: TokenStore, model: Path) -> None:
    prompts, images = ["what is this ?", "is this a b ?", "a"], store.train_indices[:4]
    cells = pooled(store.tokens(images).float(), 2)

    def found(prompts: list[str], most: int = 4) -> float:
        named = "\n".join(prompts)
        config = taught(model, f"loss.vlm.prompts='{named}'", f"loss.vlm.prompts_per_step={most}")
        return float(VlmTeacher(store, config, CPU)(cells, images, torch.Generator().manual_seed(1)))

    alone = [found([prompt]) for prompt in prompts]
    assert len(set(alone)) == 3
    assert found(prompts) == pytest.approx(sum(alone) / 3, rel=1e-3)
    assert min(abs(found(prompts, 1) - one) for one in alone) < 1e-3 * min(alone)
    pairs = [(alone[a] + alone[b]) / 2 for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(abs(found(prompts, 2) - pair) for pair in pairs) < 1e-3 * min(pairs)


@pytest.mark.parametrize("prompts", ["what is this ?", "what is this ?\na b"])
def test_the_gradient_is_that_of_finite_differences(store: TokenStore, model: Path, prompts: str) -> None:
    teacher = VlmTeacher(store, taught(model, f"loss.vlm.prompts='{prompts}'"), CPU)
    teacher._said._model.model.double()
    images = store.train_indices[:2]
    cells = pooled(store.tokens(images).double(), 2).requires_grad_(True)
    (gradient,) = torch.autograd.grad(teacher(cells, images, torch.Generator()), cells)
    # Along the gradient: the head's logits are float32, which hide smaller differences.
    step = 0.1 * gradient / gradient.norm()
    with torch.no_grad():
        up, down = (float(teacher(cells + sign * step, images, torch.Generator())) for sign in (1, -1))
    assert float((gradient * step).sum()) == pytest.approx((up - down) / 2, rel=0.02)


def test_training_lowers_the_divergence_and_resumes_exactly(store: TokenStore, model: Path, tmp_path: Path) -> None:
    whole, half = taught(model, "training.epochs=4"), tmp_path / "half"
    result = tokconv.train(whole, store, tmp_path / "whole", device="cpu", teacher=VlmTeacher(store, whole, CPU))
    divergences = [row[VLM_KL] for row in result.history]
    assert len(divergences) == 5
    assert min(divergences) == result.figures[VLM_KL] < 0.9 * divergences[0]
    assert result.history[-1]["train/vlm"] < result.history[1]["train/vlm"]

    def stop(figures: dict[str, float]) -> None:
        if figures["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokconv.train(whole, store, half, device="cpu", teacher=VlmTeacher(store, whole, CPU), on_epoch=stop)
    other = taught(model, "training.epochs=4", "loss.vlm.tokens=2")
    runtime = LocalRuntime(half, device="cpu", resume=True)
    with pytest.raises(CheckpointError, match="another model taught"):
        run_trial(whole, store, runtime, teacher=VlmTeacher(store, other, CPU))
    again = tokconv.train(whole, store, half, device="cpu", resume=True, teacher=VlmTeacher(store, whole, CPU))
    assert [row[VLM_KL] for row in again.history] == divergences

    best = read_config(tokconv.export(result, tmp_path / "best"))["figures"]
    assert best[VLM_KL] == min(divergences)


def test_what_all_tokens_say_is_computed_once(store: TokenStore, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    VlmTeacher(store, taught(model, "loss.vlm.tokens=1"), CPU).prepare(lambda *now: told.append(now))
    count = len(store.train_indices)
    assert (told[0], told[-1]) == ((0, count), (count, count))
    monkeypatch.setattr(AnsweringModel, "answer", lambda *_: pytest.fail("answered again"))
    VlmTeacher(store, taught(model, "loss.vlm.tokens=1"), CPU).prepare()


def test_what_cannot_teach_is_refused(store: TokenStore, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name the directory of one"):
        tokconv.compose(["loss.weights.vlm=1"])
    with pytest.raises(ConfigError, match="nothing teaches"):
        run_trial(taught(model), store, LocalRuntime(tmp_path / "run", device="cpu"))
    (tmp_path / "empty.txt").write_text("\n \n")
    for prompts, why in ((tmp_path / "none.txt", "cannot be read"), (tmp_path / "empty.txt", "holds no prompt")):
        with pytest.raises(ConfigError, match=why):
            VlmTeacher(store, taught(model, f"loss.vlm.prompts={prompts}"), CPU)


def test_the_command_compares_with_closed_forms_and_resumes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("what is this ?\nis this a b ?\n")
    named = [f"loss.vlm.model={model}", "loss.vlm.prompts=prompts.txt", "loss.vlm.tokens=2", "loss.weights.vlm=3000"]
    words = ["train", *DATA, *SMALL, *named, "training.epochs=2", "--no-mlflow", "--device", "cpu"]
    assert cli(words) == 0
    out = capsys.readouterr().out
    assert "what the language model makes of all tokens" in out
    assert "VLM KL" in out
    assert "plug-in: VLM KL" in out
    assert "the best closed form" in out
    assert cli(["train", "--resume", "--no-mlflow"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert cli(["export", "runs/train/train-001", "--out", "mine"]) == 0
    assert "plug-in: VLM KL" in capsys.readouterr().out
