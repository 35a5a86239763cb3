"""Embeddings are what vLLM documents that it takes, and make a language model answer as the attached model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from support.artefacts import write_export
from support.llavas import make_llava, make_processor
from support.towers import write_tower
from support.vlms import make_vlm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tokconv.errors import ConfigError, DataError
from tokconv.integrations import attach
from tokconv.integrations.vllm import embed, load

GRID, WIDTH = 2, 16
IMAGES = [Image.new("RGB", (16 + 4 * i, 16), (80 * i, 90, 255 - 80 * i)) for i in range(3)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A LLaVA with its processor, and a compressor."""
    root = tmp_path_factory.mktemp("vllm")
    tower = write_tower(root / "tower")
    make_llava(tower=tower, width=WIDTH, layers=2).save_pretrained(root / "llava")
    make_processor(tower).save_pretrained(root / "llava")
    return root / "llava", write_export(root / "compressor", token_grid=4, dim=32, grid=GRID)


def test_the_tensor_is_what_vllm_documents(folders: tuple[Path, Path]) -> None:
    """(num_items, feature_size, hidden_size of LM); three dimensions, so that it is taken for embeddings."""
    model, processor = load(str(folders[0]), folders[1])
    embeds = embed(model, processor, IMAGES, batch_size=2)
    assert embeds.shape == (len(IMAGES), GRID**2, model.config.text_config.hidden_size)
    assert (embeds.dtype, embeds.device.type, embeds.requires_grad) == (model.dtype, "cpu", False)
    torch.testing.assert_close(embed(model, processor, IMAGES[1:2]), embeds[1:2])
    # Nearly all of the language model was left out.
    assert len(model.model.language_model.layers) == 0


@torch.inference_mode()
def test_a_plain_model_that_reads_them_answers_as_the_attached_one(folders: tuple[Path, Path]) -> None:
    """As in vLLM, each <image> becomes as many placeholders as its item has rows, and the rows take their place."""
    visual, processor = load(str(folders[0]), folders[1])
    embeds = embed(visual, processor, IMAGES[:2])
    plain = LlavaForConditionalGeneration.from_pretrained(folders[0]).eval()
    tokenizer = LlavaProcessor.from_pretrained(folders[0]).tokenizer
    ids: list[int] = []
    items = iter(embeds)
    for token in tokenizer("user : <image> what is <image> ?")["input_ids"]:
        ids += [token] * (len(next(items)) if token == plain.config.image_token_id else 1)
    input_ids = torch.tensor([ids])
    mixed = plain.get_input_embeddings()(input_ids)
    mixed[input_ids == plain.config.image_token_id] = embeds.flatten(0, 1)
    found = plain(inputs_embeds=mixed).logits
    own = LlavaProcessor.from_pretrained(folders[0])
    with attach(plain, folders[1], own):
        inputs = own(images=[IMAGES[:2]], text=["user : <image> what is <image> ?"], return_tensors="pt")
        assert inputs["input_ids"].tolist() == [ids]
        torch.testing.assert_close(found, plain(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_what_vllm_could_not_read_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    plain = LlavaForConditionalGeneration.from_pretrained(folders[0])
    processor = LlavaProcessor.from_pretrained(folders[0])
    with pytest.raises(ConfigError, match="has no compressor"):
        embed(plain, processor, IMAGES)
    with attach(plain, folders[1]), pytest.raises(ConfigError, match="no images"):
        embed(plain, processor, [])
    other = make_vlm("paligemma")
    with pytest.raises(ConfigError, match="is a PaliGemmaForConditionalGeneration; allowed: LlavaFor"):
        embed(other.model, other.processor, IMAGES)
    with pytest.raises(DataError, match="cannot be loaded as a vision-language model"):
        load(str(tmp_path), folders[1])
