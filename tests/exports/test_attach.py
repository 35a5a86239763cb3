"""Every family of vision-language models computes with a compressor what it would by hand, and without it as before."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.artefacts import write_export
from support.vlms import DIM, MAKERS, TOKEN_GRID, Vlm, make_vlm
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2VLConfig

from tokconv.config.overrides import compose
from tokconv.encoding.towers.tower import VisionTower
from tokconv.errors import ConfigError
from tokconv.exports.artefact import load_compressor, save_compressor
from tokconv.integrations import Attachment, attach
from tokconv.models.compressor import Compressor, ResidualCompressor
from tokconv.models.windows import Windows

# PaliGemma's processor turns tensors into arrays in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module", params=list(MAKERS))
def vlm(request: pytest.FixtureRequest) -> Vlm:
    """One model per family; each test leaves it as it was."""
    return make_vlm(request.param)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compressors of the small towers' tokens, by hidden layer and grid."""
    root = tmp_path_factory.mktemp("exports")
    for grid in (3, 4):
        compressor = load_compressor(write_export(root / "any", TOKEN_GRID, DIM, grid))
        for layer in (-2, -1):
            assert compressor.description is not None
            compressor.description["encoder"] = {"name": "tiny", "revision": None, "layer": layer}
            save_compressor(compressor, root / f"{layer}-{grid}")
    return root


def exported(vlm: Vlm, exports: Path) -> Path:
    return exports / f"{vlm.layer}-{vlm.grid}"


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(1, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


BATCH = [pictures((40, 30)), pictures((60, 20), (20, 90))]
"""Two prompts, one with two images, in several shapes."""


def attached(vlm: Vlm, compressor: Compressor | Path) -> AbstractContextManager[Attachment]:
    """Attach for the length of a test; SmolVLM's processor is set by hand, because Idefics3's stands for it."""
    if vlm.model.config.model_type == "smolvlm":
        stack = ExitStack()
        attachment = stack.enter_context(attach(vlm.model, compressor, layer=vlm.layer))
        stack.callback(setattr, vlm.processor, "image_seq_len", vlm.processor.image_seq_len)
        vlm.processor.image_seq_len = attachment.num_image_tokens
        found = AttachedByHand(stack)
        found.attachment = attachment
        return found
    return attach(vlm.model, compressor, vlm.processor, layer=vlm.layer)


class AttachedByHand(AbstractContextManager[Attachment]):
    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.attachment: Attachment

    def __enter__(self) -> Attachment:
        return self.attachment

    def __exit__(self, *error: object) -> None:
        self.stack.close()


class Averaging(Compressor):
    """The mean of each window, without parameters to speak of: what is easily computed by hand."""

    def __init__(self, output_grid: int) -> None:
        nn.Module.__init__(self)
        self.token_grid, self.output_grid_size, self.dim = TOKEN_GRID, output_grid, DIM
        self.windows = Windows(TOKEN_GRID, output_grid)
        self.unused = nn.Parameter(torch.zeros(1))

    @property
    def num_output_tokens(self) -> int:
        return self.output_grid_size**2

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        return self.windows.split(tokens_BNC).mean(2)


def tower_tokens(vlm: Vlm, pixels: Tensor) -> Tensor:
    """Return the patch tokens [B, N, C] that a store would hold for these pixels."""
    inner = vlm.model.model
    tower = inner.vision_model if hasattr(inner, "vision_model") else inner.vision_tower
    states: Tensor = tower(pixels, output_hidden_states=True).hidden_states[vlm.layer]
    return states[:, 1:] if vlm.layer == -2 else states


def projected(vlm: Vlm, tokens: Tensor) -> Tensor:
    """Return what the language model reads, of compressed tokens, by the model's own parts."""
    inner = vlm.model.model
    kind = vlm.model.config.model_type
    if kind in ("llava_next", "llava_onevision"):
        part = inner.multi_modal_projector
        return part.linear_2(part.act(part.linear_1(tokens)))
    if kind == "paligemma":
        return inner.multi_modal_projector.linear(inner.vision_tower.post_layernorm(tokens))
    if kind == "gemma3":
        part = inner.multi_modal_projector
        return part.mm_soft_emb_norm(inner.vision_tower.post_layernorm(tokens)) @ part.mm_input_projection_weight
    grid = int(tokens.shape[1] ** 0.5)
    normed = inner.vision_model.post_layernorm(tokens).unflatten(1, (grid // 2, 2, grid // 2, 2))
    # [B, rows, 2, columns, 2, C]: the four neighbours side by side, row by row.
    return inner.connector.modality_projection(normed.transpose(2, 3).flatten(3).flatten(1, 2))


@torch.inference_mode()
def test_it_computes_what_is_computed_by_hand(vlm: Vlm) -> None:
    square = pictures((32, 32))
    averaging = Averaging(vlm.grid)
    pixels = vlm.prompt([square])["pixel_values"].flatten(0, -4)
    expected = projected(vlm, averaging(tower_tokens(vlm, pixels)))
    with attached(vlm, averaging) as attachment:
        inputs = vlm.prompt([square])
        given = {name: inputs[name] for name in ("image_sizes", "pixel_attention_mask") if name in inputs}
        features = vlm.model.model.get_image_features(inputs["pixel_values"], **given).pooler_output
        assert attachment.num_image_tokens == expected.shape[1]
        assert vlm.counts(inputs) == [len(features[0])]
        # The tiles of LLaVA-NeXT stand in one grid, after the image as a whole.
        read = features[0][: expected.shape[1]] if "llava" in vlm.model.config.model_type else features[0]
        whole = expected[0] if "llava" in vlm.model.config.model_type else expected.flatten(0, 1)
        torch.testing.assert_close(read, whole, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_prompts_have_as_many_tokens_as_the_model_reads(vlm: Vlm, exports: Path) -> None:
    """Wide, tall and large images, several in a prompt, prompts of different lengths, and their batch."""
    with attached(vlm, exported(vlm, exports)):
        for batch in (BATCH, [pictures((96, 20))], [pictures((20, 64), (100, 100), (9, 80))]):
            inputs = vlm.prompt(batch)
            generated = vlm.model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
            assert generated.shape == (len(batch), inputs["input_ids"].shape[1] + 2)
        together = vlm.model(**vlm.prompt(BATCH)).logits[1, -1]
        alone = vlm.model(**vlm.prompt(BATCH[1:])).logits[0, -1]
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_a_compressor_that_changes_nothing_changes_no_answer(vlm: Vlm) -> None:
    """Only Gemma 3 reads fewer tokens than its tower gives: there, a compressor replaces the averaging."""
    if vlm.model.config.model_type == "gemma3":
        pytest.skip("its projector averages tokens, which the compressor replaces")
    inputs = vlm.prompt(BATCH)
    before = vlm.model(**inputs).logits
    with attached(vlm, Averaging(TOKEN_GRID)):
        again = vlm.prompt(BATCH)
        assert torch.equal(again["input_ids"], inputs["input_ids"])
        torch.testing.assert_close(vlm.model(**again).logits, before, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_detach_restores_everything(vlm: Vlm, exports: Path) -> None:
    inputs, names = vlm.prompt(BATCH), list(vlm.model.state_dict())
    attributes = {name: set(vars(part)) for name, part in vlm.model.named_modules()}
    before, written = vlm.model(**inputs).logits, vlm.processor.to_dict()
    with attached(vlm, exported(vlm, exports)):
        fewer = vlm.prompt(BATCH)
        assert all(few < many for few, many in zip(vlm.counts(fewer), vlm.counts(inputs), strict=True))
        assert not torch.equal(vlm.model(**fewer).logits[:, -1], before[:, -1])
        with pytest.raises(ConfigError, match="already has a compressor"):
            attach(vlm.model, exported(vlm, exports))
    again = vlm.prompt(BATCH)
    assert vlm.processor.to_dict() == written
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(vlm.model(**again).logits, before)
    assert list(vlm.model.state_dict()) == names
    assert {name: set(vars(part)) for name, part in vlm.model.named_modules()} == attributes


def test_gradients_reach_the_compressor_and_only_what_is_not_frozen(vlm: Vlm, exports: Path) -> None:
    vlm.model.requires_grad_(False)
    compressor = load_compressor(exported(vlm, exports))
    with attached(vlm, compressor):
        inputs = vlm.prompt(BATCH)
        vlm.model(**inputs, labels=inputs["input_ids"]).loss.backward()
        reached = {name for name, parameter in vlm.model.named_parameters() if parameter.grad is not None}
    assert reached
    assert all(".compressor." in name for name in reached)
    assert all(parameter.grad is not None for parameter in compressor.parameters())


def test_what_is_saved_makes_the_same_model_again(vlm: Vlm, exports: Path, tmp_path: Path) -> None:
    compressor = load_compressor(exported(vlm, exports))
    with torch.no_grad():
        for parameter in compressor.parameters():
            parameter += 0.01
    with attached(vlm, compressor), torch.inference_mode():
        inputs = vlm.prompt(BATCH)
        expected = vlm.model(**inputs).logits
        copy.deepcopy(vlm.model).save_pretrained(tmp_path)
        vlm.processor.save_pretrained(tmp_path)
    plain, report = type(vlm.model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    loaded = Vlm(plain.eval(), type(vlm.processor).from_pretrained(tmp_path), vlm.grid, placeholder=vlm.placeholder)
    with attach(plain, tmp_path / "compressor"), torch.inference_mode():
        again = loaded.prompt(BATCH)
        assert torch.equal(again["input_ids"], inputs["input_ids"])
        assert torch.equal(plain(**again).logits, expected)


def test_a_mismatch_is_refused_and_changes_nothing(vlm: Vlm, exports: Path) -> None:
    names, model = list(vlm.model.state_dict()), vlm.model
    other = exports / f"{-3 - vlm.layer}-{vlm.grid}"
    with pytest.raises(ConfigError, match=rf"this model reads layer \d .*set model\.clip\.layer={vlm.layer}"):
        attach(model, other)
    with pytest.raises(ConfigError, match="does not record which hidden layer"):
        attach(model, ResidualCompressor(TOKEN_GRID, DIM, vlm.grid))
    with pytest.raises(ConfigError, match="width is 16, the vision tower's is 32"):
        attach(model, ResidualCompressor(TOKEN_GRID, 16, vlm.grid), layer=vlm.layer)
    with pytest.raises(ConfigError, match="token grid is 4, the vision tower's is 8"):
        attach(model, ResidualCompressor(4, DIM, min(vlm.grid, 3)), layer=vlm.layer)
    with pytest.raises(ConfigError, match="the processor is a "):
        attach(model, exported(vlm, exports), vlm.processor.tokenizer)
    if vlm.packed > 1:
        with pytest.raises(ConfigError, match="output grid is 3, which is no multiple of 2"):
            attach(model, exports / "-1-3")
    assert list(model.state_dict()) == names
    assert "save_pretrained" not in vars(model)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "paligemma", "gemma3"])
@torch.inference_mode()
def test_a_tower_saved_from_a_model_encodes_the_tokens_that_its_compressor_reads(name: str, tmp_path: Path) -> None:
    vlm, images = make_vlm(name), pictures((32, 32))
    vlm.model.model.vision_tower.save_pretrained(tmp_path)
    vlm.processor.image_processor.save_pretrained(tmp_path)
    clip = compose([f"model.clip.model_name={tmp_path}", f"model.clip.layer={vlm.layer}"]).model.clip
    tower = VisionTower(clip, "cpu")
    own = vlm.prompt([images])["pixel_values"].flatten(0, -4)[:1]
    assert torch.equal(tower.preprocess(images), own)
    assert torch.equal(tower.encode(own), tower_tokens(vlm, own))


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "smolvlm"])
def test_a_processor_that_counts_otherwise_is_refused(name: str, exports: Path) -> None:
    vlm = make_vlm(name)
    key = {"llava_next": "num_additional_image_tokens", "llava_onevision": "num_image_tokens"}
    counted = key.get(name, "image_seq_len" if name == "idefics3" else "image_seq_length")
    setattr(vlm.processor, counted, 5)
    with pytest.raises(ConfigError, match=f"the processor's {counted} is 5"):
        attach(vlm.model, exported(vlm, exports), vlm.processor)


def test_grids_that_a_processor_cannot_count_are_refused() -> None:
    vlm = make_vlm("llava_next")
    vlm.model.config.vision_config.image_size = 28  # 7 x 7 tokens; 28 // size is 4 for 7 and 5 for 5, but never 6
    with pytest.raises(ConfigError, match="none cuts 28 pixels into 6"):
        attach(vlm.model, ResidualCompressor(7, DIM, 6), layer=-2)


def test_videos_are_refused_while_a_compressor_is_attached(exports: Path) -> None:
    vlm = make_vlm("llava_onevision")
    with attach(vlm.model, exported(vlm, exports), vlm.processor), pytest.raises(ConfigError, match="detach it"):
        vlm.model.get_video_features(torch.zeros(1, 2, 3, 32, 32))
    assert vlm.model.get_video_features(torch.zeros(1, 2, 3, 32, 32)) is not None


def test_models_without_a_fixed_grid_are_refused_with_the_reason() -> None:
    class Other(PreTrainedModel):  # type: ignore[no-untyped-call]
        config_class = Qwen2VLConfig

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.config = Qwen2VLConfig()

    with pytest.raises(ConfigError, match=r"is a Other \(the number and shape of its tokens .*mRoPE"):
        attach(Other(), "anything")
