"""A LLaVA with a compressor inside computes the same as by hand, and detaching restores it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.llavas import make_llava, make_processor
from support.networks import SMALL
from transformers import LlavaForConditionalGeneration, LlavaProcessor

import tokconv
from tokconv.cli.main import main
from tokconv.errors import CheckpointError, ConfigError
from tokconv.exports.artefact import load_compressor
from tokconv.integrations.llava import attach
from tokconv.models.compressor import ResidualCompressor

GRID = 5
"""Does not divide 24, so that no patch size could give it."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressor for the bundled tower's tokens, trained for one epoch."""
    root = tmp_path_factory.mktemp("llava")
    overrides = [*SMALL, f"model.compressor.output_grid_size={GRID}", "data.subset=48", "data.num_workers=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["train", "--no-mlflow", *overrides, "training.epochs=1", "--device", "cpu"]) == 0
        assert main(["export", "runs/train/train-001", "--out", "compressor"]) == 0
    return root / "compressor"


@pytest.fixture
def llava() -> LlavaForConditionalGeneration:
    return make_llava()


@pytest.fixture
def processor() -> LlavaProcessor:
    return make_processor()


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (70, 90 + 10 * i, 3), dtype=np.uint8)) for i in range(count)]


def prompt(processor: LlavaProcessor, images: list[list[Image.Image]]) -> dict[str, torch.Tensor]:
    """Return a batch of prompts, each with one or more images."""
    text = ["user : " + "<image> " * len(own) + "what is this ?" for own in images]
    return dict(processor(images=images, text=text, return_tensors="pt", padding=True))


def test_it_computes_what_is_computed_by_hand(
    exported: Path, llava: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> None:
    by_hand = tokconv.load_compressor(exported)
    attachment = attach(llava, exported, processor)
    assert attachment.num_image_tokens == GRID**2
    images = pictures(3)
    inputs = prompt(processor, [[images[0]], [images[1], images[2]]])
    assert (inputs["input_ids"] == llava.config.image_token_id).sum(1).tolist() == [GRID**2, 2 * GRID**2]
    with torch.inference_mode():
        states = llava.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
        projector = llava.model.multi_modal_projector
        compressed = by_hand(states[-2][:, 1:])
        expected = projector.linear_2(projector.act(projector.linear_1(compressed)))
        found = llava.get_image_features(inputs["pixel_values"]).pooler_output
        assert torch.equal(torch.stack(list(found)), expected)
        generated = llava.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert generated.shape == (2, inputs["input_ids"].shape[1] + 4)
    # A batch gives the logits of its members.
    alone = prompt(processor, [[images[0]]])
    with torch.inference_mode():
        together, one = llava(**inputs).logits[0, -1], llava(**alone).logits[0, -1]
    torch.testing.assert_close(together, one, rtol=1e-4, atol=1e-5)


def test_detach_restores_everything(
    exported: Path, llava: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> None:
    inputs = prompt(processor, [pictures(1)])
    before, names = llava(**inputs).logits, list(llava.state_dict())
    with attach(llava, exported, processor) as attachment:
        assert prompt(processor, [pictures(1)])["input_ids"].shape[1] == inputs["input_ids"].shape[1] - 576 + GRID**2
        with pytest.raises(ConfigError, match="already has a compressor"):
            attach(llava, exported, processor)
    attachment.detach()
    again = prompt(processor, [pictures(1)])
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(llava(**again).logits, before)
    assert list(llava.state_dict()) == names
    assert "save_pretrained" not in vars(llava)


def test_gradients_reach_the_compressor_and_only_what_is_not_frozen(
    exported: Path, llava: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> None:
    llava.requires_grad_(False)
    attachment = attach(llava, exported, processor)
    inputs = prompt(processor, [pictures(1), pictures(1)])
    llava(**inputs, labels=inputs["input_ids"]).loss.backward()
    reached = {name for name, parameter in llava.named_parameters() if parameter.grad is not None}
    assert reached
    assert all(".compressor." in name for name in reached)
    assert all(parameter.grad is not None for parameter in attachment.compressor.parameters())
    # One gradient step lowers its own loss.
    before = llava(**inputs, labels=inputs["input_ids"]).loss.item()
    torch.optim.SGD(attachment.compressor.parameters(), lr=1e-2).step()
    assert llava(**inputs, labels=inputs["input_ids"]).loss.item() < before


def test_what_is_saved_makes_the_same_model_again(
    exported: Path, llava: LlavaForConditionalGeneration, processor: LlavaProcessor, tmp_path: Path
) -> None:
    attachment = attach(llava, exported, processor)
    with torch.no_grad():
        for parameter in attachment.compressor.parameters():
            parameter += 0.01
    inputs = prompt(processor, [pictures(1)])
    expected = llava(**inputs).logits
    copied = copy.deepcopy(llava)
    copied.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    plain, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    attach(plain, tmp_path / "saved" / "compressor")
    loaded = LlavaProcessor.from_pretrained(tmp_path / "saved")
    again = prompt(loaded, [pictures(1)])
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(plain.eval()(**again).logits, expected)


def test_half_precision_keeps_the_compressor_in_float32(
    exported: Path, llava: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> None:
    llava.to(torch.bfloat16)
    attach(llava, exported, processor)
    inputs = prompt(processor, [pictures(1)])
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    assert llava(**inputs).logits.dtype == torch.bfloat16
    assert next(llava.model.multi_modal_projector.compressor.parameters()).dtype == torch.float32


def test_a_mismatch_is_refused_and_changes_nothing(
    exported: Path, llava: LlavaForConditionalGeneration, processor: LlavaProcessor, tmp_path: Path
) -> None:
    names = list(llava.state_dict())
    other = make_llava(layer=-1)
    with pytest.raises(
        ConfigError, match=r"trained on hidden layer 3, this model reads layer 4 .*model\.clip\.layer=-1"
    ):
        attach(other, exported)
    with pytest.raises(ConfigError, match="does not record which hidden layer"):
        attach(llava, ResidualCompressor(24, 64, GRID))
    with pytest.raises(ConfigError, match="trained on hidden layer 2, this model reads layer 3"):
        attach(llava, ResidualCompressor(24, 64, GRID), layer=2)
    with pytest.raises(ConfigError, match="layer=1, but the compressor was trained"):
        attach(llava, exported, layer=1)
    with pytest.raises(ConfigError, match="width is 32, the vision tower's is 64"):
        attach(llava, ResidualCompressor(24, 32, GRID), layer=-2)
    with pytest.raises(ConfigError, match="token grid is 12, the vision tower's is 24"):
        attach(llava, ResidualCompressor(12, 64, GRID), layer=-2)
    processor.patch_size = 8
    with pytest.raises(ConfigError, match="the processor's patch_size is 8, the model's is 4"):
        attach(llava, exported, processor)
    processor.patch_size, processor.num_additional_image_tokens = 4, 0
    with pytest.raises(ConfigError, match=r"num_additional_image_tokens is 0, .*set it to 1"):
        attach(llava, exported, processor)
    llava.config.vision_feature_select_strategy = "full"
    with pytest.raises(ConfigError, match="vision_feature_select_strategy is 'full'"):
        attach(llava, exported)
    llava.config.vision_feature_select_strategy = "default"
    llava.config.vision_feature_layer = [-2, -1]
    with pytest.raises(ConfigError, match="one layer, not several"):
        attach(llava, exported)
    with pytest.raises(CheckpointError, match="not an exported compressor"):
        attach(make_llava(), tmp_path)
    with pytest.raises(ConfigError, match="the model is a Linear"):
        attach(torch.nn.Linear(1, 1), exported)  # type: ignore[arg-type]
    assert list(llava.state_dict()) == names


def test_a_layer_counted_from_the_end_is_known_too(exported: Path, llava: LlavaForConditionalGeneration) -> None:
    """A compressor that was trained on tokens from a file records such a layer."""
    compressor = load_compressor(exported)
    assert compressor.description is not None
    compressor.description["encoder"]["layer"] = -1
    with pytest.raises(ConfigError, match="trained on hidden layer 4, this model reads layer 3"):
        attach(llava, compressor)
    compressor.description["encoder"]["layer"] = -2
    attach(llava, compressor).detach()


def test_a_compressor_of_another_tower_is_refused_as_far_as_its_export_tells(
    exported: Path, llava: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> None:
    compressor = load_compressor(exported)
    assert compressor.description is not None
    encoder = compressor.description["encoder"]
    own = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    assert {name: encoder["preprocessing"][name] for name in own} == own
    for name, other in (("image_mean", [0.4814, 0.4578, 0.4082]), ("image_std", [0.2686, 0.2613, 0.2757])):
        encoder["preprocessing"] = {**own, name: other}
        with pytest.raises(ConfigError, match=rf"whose {name} is \[0.*that of this model is .*model\.clip\.model_name"):
            attach(llava, compressor, processor)
        attach(llava, compressor).detach()  # Without a processor, nothing is known of it.
    encoder["preprocessing"] = {**own, "image_mean": [0.5, 0.5, 0.50001]}
    attach(llava, compressor, processor).detach()
    encoder["image_size"] = 384  # As patches of 16 px make the same grid.
    with pytest.raises(ConfigError, match="whose image_size is 384; that of this model is 96"):
        attach(llava, compressor)
    del encoder["image_size"], encoder["preprocessing"]
    attach(llava, compressor, processor).detach()


def test_nothing_is_disabled_silently(
    exported: Path, llava: LlavaForConditionalGeneration, processor: LlavaProcessor, tmp_path: Path
) -> None:
    full = prompt(processor, [pictures(1)])
    attach(llava, exported)
    with pytest.raises(ValueError, match="image tokens do not match"):
        llava(**full)
    with pytest.raises(ConfigError, match="vision_feature_layer=-1"):
        llava(**full, vision_feature_layer=-1)
    bare = make_llava()
    attach(bare, ResidualCompressor(24, 64, GRID), layer=-2)
    with pytest.raises(ConfigError, match="cannot be written as one"):
        bare.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
