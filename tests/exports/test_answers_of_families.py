"""`tokconv answers` for every family of models: what is read from stored tokens is what the model itself reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.artefacts import write_export
from support.stores import write_store
from support.vlms import DIM, MAKERS, TOKEN_GRID, make_vlm

from tokconv.cli.main import main
from tokconv.errors import ConfigError, DataError
from tokconv.exports.answers.judge import VlmJudge
from tokconv.exports.answers.last_epoch import JudgeSettings
from tokconv.exports.answers.model import AnsweringModel, Prefill
from tokconv.exports.artefact import load_compressor, read_config
from tokconv.integrations import attach
from tokconv.system.devices import fast_dtype
from tokconv.system.files import write_json

# PaliGemma's processor turns tensors into arrays in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CPU = torch.device("cpu")
QUESTION = "what is this ?"
LIMIT = 4
SIZES = ((40, 30), (20, 90))
GRID = 2
"""A multiple of the two tokens that Idefics3's connector packs."""


@pytest.fixture(scope="module", params=list(MAKERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each family as transformers saves it."""
    folder = tmp_path_factory.mktemp("families") / request.param
    vlm = make_vlm(request.param)
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> AnsweringModel:
    return AnsweringModel(folder, CPU)


@pytest.fixture(scope="module")
def compressor(folder: Path, model: AnsweringModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export for the layer that the family reads, with random weights."""
    export = write_export(tmp_path_factory.mktemp("exports") / "mine", token_grid=TOKEN_GRID, dim=DIM, grid=GRID)
    write_json(export / "config.json", {**read_config(export), "encoder": {"name": "tiny", "layer": model.layer}})
    return export


def picture(size: tuple[int, int]) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(sum(size)).integers(1, 255, (height, width, 3), dtype=np.uint8))


def read(model: AnsweringModel, image: Image.Image, compressor: torch.nn.Module | None = None) -> Prefill:
    tokens = model.tower_tokens([image])
    if compressor is not None:
        with torch.inference_mode():
            tokens = compressor(tokens)
    return model.prefill(tokens, model.prompt(QUESTION, model.size_of(image)))


def own_inputs(model: AnsweringModel, image: Image.Image) -> dict[str, torch.Tensor]:
    """Return what the model's processor makes of the image itself."""
    text = model.prompt(QUESTION, model.size_of(image)).text
    inputs = dict(model.processor(images=[[image]], text=[text], return_tensors="pt"))
    inputs.pop("labels", None)
    return inputs


@pytest.mark.parametrize("size", SIZES)
def test_the_answers_are_those_of_generate(model: AnsweringModel, size: tuple[int, int]) -> None:
    image = picture(size)
    prefill = read(model, image)
    inputs = own_inputs(model, image)
    generated = model.model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False)
    wanted = generated[0, inputs["input_ids"].shape[1] :].tolist()
    assert model.answer(prefill, LIMIT) == [wanted]
    # The states of the whole answer at once lead to the same tokens.
    states = model.follow(prefill, torch.tensor([wanted]))
    assert model.logits(states).argmax(-1).tolist() == [wanted]
    with torch.inference_mode():
        logits = model.model(**inputs).logits[:, -1].float()
    torch.testing.assert_close(model.logits(prefill.hidden), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_several_prompts_about_an_image_are_read_as_each_alone(model: AnsweringModel, size: tuple[int, int]) -> None:
    images = [picture(size), picture(size).rotate(180)]
    tokens = model.tower_tokens(images)
    prompts = [model.prompt(text, model.size_of(images[0])) for text in (QUESTION, "what is a b ?", "a")]
    with torch.inference_mode():
        for prompt, found in zip(prompts, model.prefill_each(tokens, prompts), strict=True):
            alone = model.prefill(tokens, prompt)
            torch.testing.assert_close(found.hidden, alone.hidden, atol=1e-4, rtol=1e-4)
            assert found.num_visual == alone.num_visual
            assert found.cache_bytes == alone.cache_bytes
            assert model.answer(found, LIMIT) == model.answer(alone, LIMIT)


@pytest.mark.parametrize("size", SIZES)
def test_a_compressor_is_read_as_an_attached_one(
    model: AnsweringModel, compressor: Path, size: tuple[int, int]
) -> None:
    image = picture(size)
    loaded = load_compressor(compressor)
    found = read(model, image, loaded)
    is_smolvlm = model.model.config.model_type == "smolvlm"  # Idefics3's processor stands for its own
    written = model.processor.image_seq_len if is_smolvlm else None
    with attach(model.model, loaded, None if is_smolvlm else model.processor) as attachment:
        if is_smolvlm:
            model.processor.image_seq_len = attachment.num_image_tokens
        inputs = own_inputs(model, image)
        with torch.inference_mode():
            wanted = model.model(**inputs).logits[:, -1].float()
    if is_smolvlm:
        model.processor.image_seq_len = written
    assert found.num_visual == int((inputs["input_ids"] == model.model.config.image_token_id).sum())
    torch.testing.assert_close(model.logits(found.hidden), wanted, atol=1e-4, rtol=1e-4)
    # Nothing is left of it: all tokens are read as before.
    assert read(model, image).num_visual > found.num_visual


def test_a_model_in_half_precision_is_read_in_the_one_that_is_fast(model: AnsweringModel, tmp_path: Path) -> None:
    model.model.to(torch.bfloat16).save_pretrained(tmp_path)
    model.model.to(torch.float32)
    model.processor.save_pretrained(tmp_path)
    half = AnsweringModel(tmp_path, CPU)
    assert half.model.dtype == fast_dtype(torch.bfloat16, CPU)
    rounded, exact = read(half, picture(SIZES[0])).hidden.float(), read(model, picture(SIZES[0])).hidden
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.1)


def test_a_batch_is_read_as_its_images_alone(model: AnsweringModel) -> None:
    images = [picture(SIZES[0]), picture(SIZES[0]).rotate(180)]
    prompt = model.prompt(QUESTION, model.size_of(images[0]))
    both = model.prefill(model.tower_tokens(images), prompt)
    alone = torch.cat([read(model, image).hidden for image in images])
    torch.testing.assert_close(both.hidden, alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_the_command_measures_it(
    folder: Path, model: AnsweringModel, compressor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, size in enumerate((*SIZES, SIZES[0], SIZES[0])):
        path = tmp_path / "photos" / ("test" if number < 3 else "train") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(size).save(path)
    (tmp_path / "prompts.txt").write_text("what is this ?\nuser : what ?\n")
    words = [str(folder), str(compressor), "--tasks", f"captions:{tmp_path / 'photos'}", "--baselines", "downsampled"]
    more = ["--prompts", str(tmp_path / "prompts.txt"), "--max-tokens", "2", "--device", "cpu"]
    assert main(["answers", *words, *more, "--out", str(tmp_path / "out")]) == 0
    of_all, *others = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert of_all["tasks"]["captions"]["kl"] == pytest.approx(0, abs=1e-5)
    assert {method["series"] for method in others} == {"mine", "downsampled"}
    for method in others:
        assert method["tokens"] < of_all["tokens"]
        assert method["ratio"] == pytest.approx(of_all["tokens"] / method["tokens"])
        assert method["tasks"]["captions"]["kl"] > 0
        assert method["tasks"]["captions"]["questions"] == 6
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "methods").iterdir()}
    capsys.readouterr()
    assert main(["answers", *words, *more, "--out", str(tmp_path / "out")]) == 0
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_a_grid_that_a_family_cannot_read_is_refused(model: AnsweringModel) -> None:
    if "idefics3" in model.model.config.model_type or model.model.config.model_type == "smolvlm":
        with pytest.raises(ConfigError, match="which is no multiple of 2"):
            model.check_grid(3)
    else:
        model.check_grid(3)


@pytest.mark.parametrize(("packs", "read"), [(2, {4, 6}), (4, {4}), (8, set())])
def test_the_usual_grids_are_those_that_the_model_can_read(
    packs: int, read: set[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vlm = make_vlm("smolvlm", scale_factor=packs)
    vlm.model.save_pretrained(tmp_path / "model")
    vlm.processor.save_pretrained(tmp_path / "model")
    for split in ("train", "test"):
        (tmp_path / "photos" / split).mkdir(parents=True)
        picture(SIZES[0]).save(tmp_path / "photos" / split / "0.png")
    words = ["answers", str(tmp_path / "model"), "--tasks", f"captions:{tmp_path / 'photos'}", "--max-tokens", "1"]
    command = [*words, "--baselines", "downsampled", "--device", "cpu", "--out", str(tmp_path / "out")]
    if read:
        assert main(command) == 0
        found = json.loads((tmp_path / "out" / "answers.json").read_text())
        assert {method["grid"] for method in found if method["series"] == "downsampled"} == read
    else:
        assert main(command) == 2
        assert "--grids: this model reads none of 4, 6; name others" in capsys.readouterr().err
        assert main([*words, "--baselines", "none", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0


def test_a_judge_reads_one_grid_per_image(folder: Path, model: AnsweringModel, tmp_path: Path) -> None:
    kind = model.model.config.model_type
    expected = (
        "its width is 8" if kind in ("paligemma", "gemma3") else r"reads \d grids of tokens of an image, and a store"
    )
    with pytest.raises(ConfigError, match=expected):
        VlmJudge(write_store(tmp_path), JudgeSettings(folder, (QUESTION,), 4, 2), CPU)


def test_models_that_cannot_have_a_compressor_are_refused_with_the_reason(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "qwen2_vl"})
    with pytest.raises(DataError, match=r"'qwen2_vl' \(the number and shape of its tokens follow each image"):
        AnsweringModel(tmp_path, CPU)


def test_a_model_in_bfloat16_reads_small_images_too(folder: Path) -> None:
    image, grid = picture((60, 44)), GRID
    exact, rounded = AnsweringModel(folder, torch.device("cpu")), AnsweringModel(folder, torch.device("cpu"))
    rounded.model.to(torch.bfloat16)
    wanted, found = exact.tower_tokens([image], grid), rounded.tower_tokens([image], grid)
    assert found.dtype == torch.float32
    assert found.shape == wanted.shape
    assert float((found - wanted).square().mean()) < 1e-3 * float(wanted.var())
    assert rounded.prefill(found, rounded.prompt(QUESTION, rounded.size_of(image))).hidden.isfinite().all()
