"""A LLaVA that answers from any visual tokens: those of its tower, or what a compressor makes of them.

The model is the directory's own, in transformers. The steps of its forward pass are taken apart here, so that the tower
runs once for an image and not once for every compressor: tokens before the projector, projected tokens among the
embeddings of the prompt, one prefill, then the answer.

Shapes: b questions, N tokens of the tower, K tokens that are read, C their width, L tokens of text, T of an answer, D
the width of the language model.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tokconv.encoding.towers.families import FAMILIES
from tokconv.encoding.towers.hub import quiet_transformers
from tokconv.encoding.towers.tower import preprocess
from tokconv.errors import DataError, first_line

TEMPLATE = "USER: <image>\n{question} ASSISTANT:"
"""The prompt of LLaVA-1.5, for a processor without a chat template."""


@dataclass
class Prefill:
    """A prompt that has been read: the last hidden states [b, D] and the keys and values of all layers."""

    hidden: Tensor
    cache: Any

    @property
    def cache_bytes(self) -> int:
        """The memory of keys and values for one question."""
        layers = self.cache.layers
        return sum(kept.nbytes for layer in layers for kept in (layer.keys, layer.values)) // len(self.hidden)


def check_model(folder: Path) -> None:
    """Check by its config alone that a directory holds a LLaVA. Raises DataError."""
    path = folder / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder}: no model directory of transformers ({first_line(error)})") from error
    if kind != "llava":
        raise DataError(f"{folder}: a model of type {kind!r}; allowed: llava (LlavaForConditionalGeneration)")


class AnsweringModel:
    """A LLaVA and its processor, in eval mode.

    Args:
        folder: the model's directory, with its processor.
        device: where it runs.

    Raises:
        DataError: the directory is not that of a LLaVA, or transformers cannot load it.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import LlavaForConditionalGeneration, LlavaProcessor

        check_model(folder)
        try:
            with quiet_transformers():
                model: Any = LlavaForConditionalGeneration.from_pretrained(folder, local_files_only=True)
                self.processor: Any = LlavaProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers and safetensors raise many kinds, including plain Exception
            raise DataError(f"{folder}: transformers cannot load it ({first_line(error)})") from error
        self.model = model.to(device).eval().requires_grad_(False)
        self.device, config = device, self.model.config
        vision = config.vision_config
        self.layer: int = config.vision_feature_layer
        self.patch_size, self.dim = int(vision.patch_size), int(vision.hidden_size)
        self.token_grid = int(vision.image_size) // self.patch_size
        self._family = FAMILIES[vision.model_type]
        self._first_patch = 1 if config.vision_feature_select_strategy == "default" else 0
        end = self.model.generation_config.eos_token_id
        self.ends: set[int] = {end} if isinstance(end, int) else set(end or ())

    @torch.inference_mode()
    def tower_tokens(self, images: Sequence[Image.Image], grid: int | None = None) -> Tensor:
        """Return the tokens that the tower makes of images, before the projector, [b, N, C] float32.

        Args:
            grid: k, to downsample each image to k x k patches first; positions are interpolated.
        """
        pixels = preprocess(self.processor.image_processor, images).to(self.device, self.model.dtype)
        request = {}
        if grid is not None and grid != self.token_grid:
            side = grid * self.patch_size
            pixels = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True)
            request = {"interpolate_pos_encoding": True} if self._family.asks_for_positions else {}
        states = self.model.model.vision_tower(pixels, output_hidden_states=True, **request).hidden_states
        tokens: Tensor = states[self.layer][:, self._first_patch :]
        return tokens.float()

    def prompt(self, question: str) -> tuple[list[int], list[int]]:
        """Return the token ids before and after the image of a question.

        Raises:
            DataError: the chat template of the processor writes no image, or several.
        """
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            asked = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(asked, add_generation_prompt=True)
        else:
            text = TEMPLATE.format(question=question).replace("<image>", self.processor.image_token)
        ids = self.processor.tokenizer(text)["input_ids"]
        image = self.model.config.image_token_id
        if ids.count(image) != 1:
            raise DataError(
                f"the processor writes {ids.count(image)} image tokens into a prompt of one; check its chat template "
                "and image_token_id in the model's config.json"
            )
        place = ids.index(image)
        return ids[:place], ids[place + 1 :]

    @torch.inference_mode()
    def prefill(self, tokens_bKC: Tensor, before: list[int], after: list[int]) -> Prefill:
        """Read one prompt about b images, given as tokens before the projector."""
        projector = self.model.model.multi_modal_projector
        visual = projector(tokens_bKC.to(self.device, self.model.dtype))
        texts = [self._embedded(ids).expand(len(visual), -1, -1) for ids in (before, after)]
        return self._read(torch.cat([texts[0], visual, texts[1]], 1), None)

    @torch.inference_mode()
    def follow(self, prefill: Prefill, answers_bT: Tensor) -> Tensor:
        """Return the hidden states [b, T, D] that predict each token of given answers; the prefill stays as it is."""
        answers_bT = answers_bT.to(self.device)
        if answers_bT.shape[1] == 1:
            return prefill.hidden[:, None]
        embedded = self.model.get_input_embeddings()(answers_bT[:, :-1])
        found = self.model.model.language_model(
            inputs_embeds=embedded, past_key_values=copy.deepcopy(prefill.cache), use_cache=True
        ).last_hidden_state
        return torch.cat([prefill.hidden[:, None], found], 1)

    @torch.inference_mode()
    def answer(self, prefill: Prefill, limit: int) -> list[list[int]]:
        """Return the greedy answers as token ids, each to its end token or to `limit` tokens; the prefill stays."""
        prefill = Prefill(prefill.hidden, copy.deepcopy(prefill.cache))
        answers: list[list[int]] = [[] for _ in prefill.hidden]
        done = [False] * len(answers)
        while True:
            chosen = self.logits(prefill.hidden).argmax(-1).tolist()
            for place, token in enumerate(chosen):
                if not done[place]:
                    answers[place].append(token)
                    done[place] = token in self.ends or len(answers[place]) == limit
            if all(done):
                return answers
            embedded = self.model.get_input_embeddings()(torch.tensor(chosen, device=self.device)[:, None])
            prefill = self._read(embedded, prefill.cache)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the float32 logits of the next token, [..., D] to [..., vocabulary]."""
        found: Tensor = self.model.lm_head(hidden.to(self.device, self.model.dtype)).float()
        return found

    def text(self, answer: Sequence[int]) -> str:
        """Return an answer as text."""
        return str(self.processor.tokenizer.decode(list(answer), skip_special_tokens=True)).strip()

    def _embedded(self, ids: list[int]) -> Tensor:
        found: Tensor = self.model.get_input_embeddings()(torch.tensor([ids], dtype=torch.long, device=self.device))
        return found

    def _read(self, embedded_bLD: Tensor, cache: Any) -> Prefill:
        found = self.model.model.language_model(inputs_embeds=embedded_bLD, past_key_values=cache, use_cache=True)
        return Prefill(found.last_hidden_state[:, -1], found.past_key_values)
