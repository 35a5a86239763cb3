"""The judge of `vlm/kl` and `vlm/agreement`: a vision-language model reads compressed tokens of held-out images."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from support.llavas import write_bundled_llava
from support.stores import write_store
from torch import Tensor

import tokconv
from tokconv.encoding.stored_images import RECORD
from tokconv.errors import ConfigError, DataError
from tokconv.evaluation.baselines.codecs import baseline_codec
from tokconv.evaluation.codecs import compress_only
from tokconv.evaluation.figures import VLM_AGREEMENT, VLM_KL
from tokconv.exports.answers.judge import VlmJudge
from tokconv.exports.answers.last_epoch import JudgeSettings, LastEpochJudge
from tokconv.exports.answers.model import AnsweringModel
from tokconv.store.reader import TokenStore
from tokconv.sweep.record.figures import recorded_figures
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime

CPU = torch.device("cpu")
PROMPTS = ("what is this ?", "is this a b ?")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Tokens of digits, by the tower of the models below."""
    place = tmp_path_factory.mktemp("judge") / "store"
    config = tokconv.compose(["data=digits", "data.subset=48", "data.num_workers=0", f"data.store={place}"])
    return tokconv.encode(config, device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundled_llava(tmp_path_factory.mktemp("judge") / "llava")


def settings(model: Path, prompts: tuple[str, ...] = PROMPTS, images: int = 5, tokens: int = 3) -> JudgeSettings:
    return JudgeSettings(model, prompts, images, tokens)


def keep(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Compress nothing."""
    return tokens, tokens


def test_all_tokens_have_no_divergence_and_few_have_some(store: TokenStore, model: Path) -> None:
    judge = VlmJudge(store, settings(model), CPU)
    assert judge(keep) == {VLM_KL: pytest.approx(0, abs=1e-6), VLM_AGREEMENT: 1}
    assert judge.baseline(2, "pooling")[VLM_KL] > 1e-4
    assert judge.baseline(2, "pooling") != judge.baseline(12, "pooling")


def test_it_is_the_mean_over_images_and_prompts_of_the_models_own_distributions(store: TokenStore, model: Path) -> None:
    judge = VlmJudge(store, settings(model, images=3, tokens=1), CPU)
    codec, reader, found = baseline_codec(store, 3, "pooling"), AnsweringModel(model, CPU), []
    for image in judge.images:
        tokens = store.tokens(image[None]).float()
        for prompt in map(reader.prompt, PROMPTS):
            of_all, of_few = (
                torch.log_softmax(reader.logits(reader.prefill(read, prompt).hidden)[0].double(), -1).tolist()
                for read in (tokens, compress_only(codec, tokens, image[None]))
            )
            found.append(sum(math.exp(p) * (p - q) for p, q in zip(of_all, of_few, strict=True)))
    assert judge(codec)[VLM_KL] == pytest.approx(sum(found) / 6, rel=1e-3)


def test_answers_agree_if_the_models_own_begin_with_the_same_tokens(store: TokenStore, model: Path) -> None:
    judge, reader, found = VlmJudge(store, settings(model, images=6), CPU), AnsweringModel(model, CPU), []
    codec = baseline_codec(store, 4, "random")
    for image in judge.images:
        tokens = store.tokens(image[None]).float()
        for prompt in map(reader.prompt, PROMPTS):
            of_all, of_few = (
                reader.answer(reader.prefill(read, prompt), 3)
                for read in (tokens, compress_only(codec, tokens, image[None]))
            )
            found.append(of_all == of_few)
    assert 0 < sum(found) < len(found)
    assert judge(codec)[VLM_AGREEMENT] == pytest.approx(sum(found) / len(found))


def test_it_judges_held_out_images_and_more_tokens_change_the_figure(store: TokenStore, model: Path) -> None:
    judge = VlmJudge(store, settings(model, images=1000), CPU)
    assert torch.equal(judge.images, store.val_indices)
    longer = VlmJudge(store, settings(model, tokens=4), CPU)
    assert longer.baseline(3, "pooling") != VlmJudge(store, settings(model, tokens=1), CPU).baseline(3, "pooling")


def test_what_depends_on_store_and_model_alone_is_computed_once(
    store: TokenStore, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {3: {"pooling": {"val/fvu": 0.5}, "random": {"val/fvu": 0.9}}}
    told: list[tuple[int, int, str]] = []
    first = VlmJudge(store, settings(model), CPU).add_to(rows, lambda *now: told.append(now))
    assert first[3]["pooling"].keys() == {"val/fvu", VLM_KL, VLM_AGREEMENT}
    assert told[0] == (0, 2, "what all tokens say")
    assert told[-1] == (2, 2, "")
    with monkeypatch.context() as patch:
        patch.setattr(AnsweringModel, "prefill", lambda *_: pytest.fail("read again"))
        assert VlmJudge(store, settings(model), CPU).add_to(rows, lambda *_: None) == first
    # Another process judges a trial by the same answers.
    with monkeypatch.context() as patch:
        patch.setattr(AnsweringModel, "answer", lambda *_: pytest.fail("answered again"))
        later = LastEpochJudge(store, settings(model), CPU)
        found = later(baseline_codec(store, 3, "pooling"))
        assert found == {name: pytest.approx(first[3]["pooling"][name]) for name in (VLM_KL, VLM_AGREEMENT)}


def test_a_trial_has_the_figure_after_its_last_epoch(store: TokenStore, model: Path, tmp_path: Path) -> None:
    sizes = [
        "compressor.num_layers=1",
        "compressor.hidden_dim=8",
        "autoencoder.num_layers=1",
        "autoencoder.hidden_dim=8",
    ]
    small = [
        "model.compressor.kind=residual",
        "model.compressor.output_grid_size=2",
        *(f"model.{size}" for size in sizes),
    ]
    config = tokconv.compose(["training.epochs=1", *small])
    judge = LastEpochJudge(store, settings(model), CPU)
    result = run_trial(config, store, LocalRuntime(tmp_path, device="cpu"), judge=judge)
    assert [VLM_KL in row for row in result.history] == [False, True]
    assert recorded_figures(result.history[-1])[VLM_KL] == result.history[-1][VLM_KL] > 0
    # Also of the best epoch, if that is the start.
    assert VLM_KL in result.figures


def test_a_tower_that_makes_other_tokens_is_refused(store: TokenStore, model: Path, tmp_path: Path) -> None:
    VlmJudge(store, settings(model), CPU).check_tower()
    other = VlmJudge(store, settings(write_bundled_llava(tmp_path / "other", noise=0.3)), CPU)
    with pytest.raises(ConfigError, match=r"are not those that the model's tower makes of it \(they are \d+% of"):
        other.check_tower()


def test_without_images_the_name_of_the_tower_decides(
    store: TokenStore, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store.path, copy)
    moved = TokenStore.open(copy)
    (moved.derived_dir / RECORD).unlink()
    judge = VlmJudge(moved, settings(model), CPU)
    vision = judge.model.model.config.vision_config
    for name, fits in (("", True), ("somewhere/digits-tower", True), ("openai/clip-vit-large-patch14-336", False)):
        monkeypatch.setattr(vision, "_name_or_path", name)
        if fits:
            judge.check_tower()
        else:
            with pytest.raises(ConfigError, match="tower is openai/clip-vit-large-patch14-336, and no image"):
                judge.check_tower()


def test_a_store_that_the_projector_does_not_read_is_refused(store: TokenStore, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its width is 8, that of the model's tower is 64; encode with the tower of"):
        VlmJudge(write_store(tmp_path / "small"), settings(model), CPU)
    with pytest.raises(ConfigError, match="its hidden layer is 1, that of the model's tower is 3"):
        VlmJudge(write_store(tmp_path / "layer", token_grid=24, dim=64, num_images=8), settings(model), CPU)
    with pytest.raises(ConfigError, match="its hidden layer is 3, that of the model's tower is 4"):
        VlmJudge(store, settings(write_bundled_llava(tmp_path / "last", layer=-1)), CPU)
    with pytest.raises(ConfigError, match="vision_feature_select_strategy='full' passes on 1 of them"):
        VlmJudge(store, settings(write_bundled_llava(tmp_path / "full", strategy="full")), CPU)
    with pytest.raises(DataError, match="no model directory"):
        VlmJudge(store, settings(tmp_path), CPU)
