"""A LLaVA with a compressor inside, fine-tuned with transformers' Trainer: resuming equals not stopping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from support.artefacts import write_export
from support.llavas import make_llava, make_processor
from support.towers import write_tower
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor, Trainer, TrainingArguments

from tokconv.integrations.llava import attach


class Made:
    """The parts of a fine-tune: a tower's LLaVA with random weights, and an exported compressor of grid 2 x 2."""

    def __init__(self, root: Path) -> None:
        self.tower = write_tower(root / "tower")
        self.compressor = write_export(root / "compressor", token_grid=4, dim=32, grid=2)

    def llava(self) -> LlavaForConditionalGeneration:
        return make_llava(tower=self.tower, width=16, layers=1)

    def examples(self, processor: LlavaProcessor) -> list[dict[str, Tensor]]:
        found = []
        for level in range(0, 240, 30):
            image = Image.new("RGB", (16, 16), (level, 90, 255 - level))
            inputs = processor(images=[image], text=["user : <image> what is this ?"], return_tensors="pt")
            example = {name: value[0] for name, value in inputs.items()}
            found.append({**example, "labels": example["input_ids"].clone()})
        return found

    def train(self, model: LlavaForConditionalGeneration, out: Path, resume: Path | None = None, **how: Any) -> Trainer:
        """Attach the export unless the model has a compressor, and train until step 4, saving at 2 and 4."""
        processor = make_processor(self.tower)
        if hasattr(model.model.multi_modal_projector, "compressor"):
            processor.num_additional_image_tokens += 2 * 2 - 4 * 4
        else:
            attach(model, self.compressor, processor)
        settings: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True}
        quiet = {"report_to": [], "disable_tqdm": True, "learning_rate": 1e-2}
        arguments = TrainingArguments(output_dir=str(out), **{**settings, **quiet, **how})
        examples = self.examples(processor)
        trainer = Trainer(model, arguments, train_dataset=examples, eval_dataset=examples[:2])
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return trainer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("fine-tune"))


def equal(one: LlavaForConditionalGeneration, other: LlavaForConditionalGeneration) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("frozen", [True, False])
def test_resuming_equals_not_stopping(made: Made, tmp_path: Path, frozen: bool) -> None:
    """Only the compressor learns, or all weights do."""

    def model() -> LlavaForConditionalGeneration:
        fresh = made.llava()
        fresh.requires_grad_(not frozen)
        return fresh

    whole = model()
    made.train(whole, tmp_path / "whole")
    resumed = model()
    made.train(resumed, tmp_path / "resumed", tmp_path / "whole" / "checkpoint-2")
    assert equal(resumed, whole)
    # Also from a checkpoint whose weights lack the compressor's: loaded as a model, with its own compressor attached.
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    loaded = LlavaForConditionalGeneration.from_pretrained(checkpoint)
    loaded.requires_grad_(not frozen)
    attach(loaded, checkpoint / "compressor")
    loaded.save_pretrained(checkpoint / "plain")
    (checkpoint / "plain" / "model.safetensors").replace(checkpoint / "model.safetensors")
    made.train(loaded, tmp_path / "loaded", checkpoint)
    assert equal(loaded, whole)


def test_the_best_checkpoint_is_loaded_at_the_end_and_saved_plain(made: Made, tmp_path: Path) -> None:
    model = made.llava()
    how = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "greater_is_better": True}
    # The loss falls, so that the first checkpoint is the best by the greatest loss.
    trainer = made.train(model, tmp_path, metric_for_best_model="loss", **how)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    best = LlavaForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-2")
    attach(best, tmp_path / "checkpoint-2" / "compressor")
    assert equal(model, best)
    trainer.save_model(str(tmp_path / "tuned"))
    with safe_open(tmp_path / "tuned" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "compressor" in name]  # noqa: SIM118
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "tuned")
    attach(again, tmp_path / "tuned" / "compressor")
    assert equal(model, again)
