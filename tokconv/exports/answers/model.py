"""A vision-language model that answers from any visual tokens: those of its tower, or what a compressor makes of them.

The model is the directory's own, in transformers, of any family that `attach` serves. Its forward pass is taken apart
at one place, the tower: `tower_tokens` runs it alone, once for an image and not once for every compressor. Afterwards
`fed.py` gives the model these tokens, or fewer, in the tower's place. All that follows is the model's own: projector,
tiles, positions, masks. The image itself only has to have the right size then; it is blank.

Shapes: b questions, T tiles of an image (1 for most families), N tokens of the tower, K = k * k tokens that are read, C
their width, L tokens of an answer, D the width of the language model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tokconv.encoding.towers.families import FAMILIES
from tokconv.encoding.towers.hub import quiet_transformers
from tokconv.encoding.towers.tower import preprocess
from tokconv.errors import ConfigError, DataError, first_line
from tokconv.exports.answers.fed import TowerFed
from tokconv.exports.answers.prefill import Prefill, Prompt
from tokconv.exports.integrations.attach import REFUSED, SUPPORTED
from tokconv.exports.integrations.family import Reduction, VisionLanguageFamily
from tokconv.system.devices import fast_dtype

GREY = (127, 127, 127)
"""Idefics3 takes a black tile for padding."""


def check_model(folder: Path) -> VisionLanguageFamily:
    """Return the family of the model in a directory, by its config alone. Raises DataError if none is supported."""
    path = folder / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder}: no model directory of transformers ({first_line(error)})") from error
    families = {family.model_class.config_class.model_type: family for family in SUPPORTED}  # type: ignore[union-attr]
    if kind not in families:
        why = f" ({REFUSED[kind]})" if kind in REFUSED else ""
        raise DataError(f"{folder}: a model of type {kind!r}{why}; allowed: {', '.join(families)}")
    return families[kind]


class AnsweringModel:
    """A vision-language model and its processor, in eval mode; in its own precision, or in float32 on a processor that
    only imitates that (`tokconv.system.devices.fast_dtype`).

    Args:
        folder: the model's directory, with its processor.
        device: where it runs.

    Attributes:
        precision: that of the directory.

    Raises:
        DataError: the directory holds no model of a supported family, or transformers cannot load it.
        ConfigError: its processor writes another number of tokens than its tower makes.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoProcessor

        self.family = check_model(folder)
        processors: Any = AutoProcessor
        try:
            with quiet_transformers():
                model: Any = self.family.model_class.from_pretrained(folder, local_files_only=True)
                self.processor: Any = processors.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers and safetensors raise many kinds, including plain Exception
            raise DataError(f"{folder}: transformers cannot load it ({first_line(error)})") from error
        self.precision: torch.dtype = model.dtype
        self.model = model.to(device, fast_dtype(self.precision, device)).eval().requires_grad_(False)
        self.device, config = device, self.model.config
        self.family.check_processor(config, self.processor)
        vision = config.vision_config
        self.layer: int = self.family.layer_read(config)
        self.patch_size, self.dim = int(vision.patch_size), int(vision.hidden_size)
        self.image_size = int(vision.image_size)
        self.token_grid = self.image_size // self.patch_size
        self._tower = FAMILIES[vision.model_type] if vision.model_type in FAMILIES else None  # noqa: SIM401 (a registry)
        self._first_patch = 1 if getattr(config, "vision_feature_select_strategy", "full") == "default" else 0
        end = self.model.generation_config.eos_token_id
        self.ends: set[int] = {end} if isinstance(end, int) else set(end or ())
        # Blank images of the same size and the same text make the same inputs.
        self._inputs = lru_cache(maxsize=64)(self._make_inputs)
        self._shared = lru_cache(maxsize=64)(self._make_shared)

    def check_grid(self, grid: int) -> None:
        """Raise ConfigError unless the model can read k x k tokens of an image or tile."""
        if grid != self.token_grid:
            self.family.check_model(self.model.config, Reduction(self.token_grid, grid, self.dim))

    def check_patch_tokens(self) -> None:
        """Raise ConfigError unless the projector reads the tower's patch tokens alone, as a store holds them."""
        vision = self.model.config.vision_config.to_dict()
        special = 0 if self._tower is None else self._tower.num_special_tokens(vision)
        if special != self._first_patch:
            strategy = self.model.config.vision_feature_select_strategy
            raise ConfigError(
                f"this model's tower puts {special} class and register tokens before the patch tokens, and "
                f"vision_feature_select_strategy={strategy!r} passes on {special - self._first_patch} of them; a token "
                "store holds patch tokens alone"
            )

    def size_of(self, image: Image.Image) -> tuple[int, int]:
        """Return what the prompt of an image must know of it: its size if that decides how many tiles it has."""
        return image.size if self.family.tiles else (self.image_size, self.image_size)

    def num_tiles(self, size: tuple[int, int]) -> int:
        """Return T for an image of this size."""
        return self._pixels(Image.new("RGB", size, GREY)).shape[0] if self.family.tiles else 1

    @torch.inference_mode()
    def tower_tokens(self, images: Sequence[Image.Image], grid: int | None = None) -> Tensor:
        """Return the tokens that the tower makes of images, before the projector, [images * T, N, C] float32.

        Args:
            grid: k, to downsample each image or tile to k x k patches first; positions are interpolated.
        """
        pixels = torch.cat([self._pixels(image) for image in images]) if self.family.tiles else self._plain(images)
        pixels = pixels.to(self.device)
        request = {}
        if grid is not None and grid != self.token_grid:
            side = grid * self.patch_size
            # In float32: torch has no such interpolation of bfloat16 on a CPU.
            pixels = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True)
            asks = self._tower is not None and self._tower.asks_for_positions
            request = {"interpolate_pos_encoding": True} if asks else {}
        tower = self.model.get_submodule(self.family.tower)
        states = tower(pixels.to(self.model.dtype), output_hidden_states=True, **request).hidden_states
        tokens: Tensor = states[self.layer][:, self._first_patch :]
        return tokens.float()

    def prompt(self, question: str, size: tuple[int, int] | None = None) -> Prompt:
        """Return a question as the prompt of an image of this size (default: the tower's own).

        Raises:
            DataError: the chat template of the processor writes no image, or several.
        """
        image = self.family.placeholder(self.processor)
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            asked = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(asked, add_generation_prompt=True)
        else:
            text = self.family.template.format(image=image, question=question)
        if text.count(image) != 1:
            raise DataError(
                f"the processor writes {text.count(image)} image tokens into a prompt of one; check its chat template"
            )
        return Prompt(text, size or (self.image_size, self.image_size))

    def token_ids(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt for all tokens; those of the image are the config's `image_token_id`."""
        ids: list[int] = self._inputs(prompt, self.token_grid)["input_ids"][0].tolist()
        return ids

    def prefill(self, tokens_MKC: Tensor, prompt: Prompt) -> Prefill:
        """Read one prompt about b images, given as tokens before the projector, [b * T, K, C], and keep their gradient.

        Raises:
            ConfigError: the model cannot read this number of tokens.
        """
        return self._read(tokens_MKC, self._inputs(prompt, math.isqrt(tokens_MKC.shape[1])))

    def prefill_each(self, tokens_MKC: Tensor, prompts: Sequence[Prompt]) -> Iterator[Prefill]:
        """Read each of several prompts about the same b images; arguments and errors as `prefill`.

        What all prompts begin with is read once if the image is in it, and the family reads causally.
        """
        shared = self._shared(tuple(prompts), math.isqrt(tokens_MKC.shape[1]))
        if shared is None:
            yield from (self.prefill(tokens_MKC, prompt) for prompt in prompts)
            return
        begun, rests = shared
        first = self._read(tokens_MKC, begun)
        for rest in rests:
            found = self._read_on(first.branch(), rest.expand(len(first.hidden), -1))
            yield Prefill(found.last_hidden_state[:, -1], found.past_key_values, first.num_visual)

    def _read(self, tokens_MKC: Tensor, inputs: Mapping[str, Tensor]) -> Prefill:
        """Read b images and what the processor made of a prompt."""
        grid = math.isqrt(tokens_MKC.shape[1])
        num_tiles = max(1, math.prod(inputs["pixel_values"].shape[:-3]))
        count = len(tokens_MKC) // num_tiles
        batch = {name: value.repeat(count, *(1,) * (value.dim() - 1)) for name, value in inputs.items()}
        with ExitStack() as undo:
            if grid != self.token_grid:
                self.family.change_model(self.model, Reduction(self.token_grid, grid, self.dim), undo)
            undo.enter_context(TowerFed(self.model, self.family, tokens_MKC.to(self.device, self.model.dtype)))
            found = self.model.model(**batch, use_cache=True)
        visual = int((inputs["input_ids"] == self.model.config.image_token_id).sum())
        return Prefill(found.last_hidden_state[:, -1], found.past_key_values, visual)

    def _read_on(self, prefill: Prefill, ids_bL: Tensor) -> Any:
        """Return the model's output for more tokens; the prefill is used up."""
        return self.model.model(input_ids=ids_bL, past_key_values=prefill.cache, use_cache=True)

    def follow(self, prefill: Prefill, answers_bL: Tensor) -> Tensor:
        """Return the hidden states [b, L, D] that predict each token of given answers, and keep their gradient; the
        prefill stays as it is."""
        answers_bL = answers_bL.to(self.device)
        if answers_bL.shape[1] == 1:
            return prefill.hidden[:, None]
        found = self._read_on(prefill.branch(), answers_bL[:, :-1])
        return torch.cat([prefill.hidden[:, None], found.last_hidden_state], 1)

    @torch.inference_mode()
    def answer(self, prefill: Prefill, limit: int) -> list[list[int]]:
        """Return the greedy answers as token ids, each to its end token or to `limit` tokens; the prefill stays."""
        answers: list[list[int]] = [[] for _ in prefill.hidden]
        done = [False] * len(answers)
        while True:
            chosen = self.logits(prefill.hidden).argmax(-1)
            for place, token in enumerate(chosen.tolist()):
                if not done[place]:
                    answers[place].append(token)
                    done[place] = token in self.ends or len(answers[place]) == limit
            if all(done):
                return answers
            found = self._read_on(prefill.branch(), chosen[:, None])
            prefill = Prefill(found.last_hidden_state[:, -1], found.past_key_values, prefill.num_visual)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the float32 logits of the next token, [..., D] to [..., vocabulary]."""
        found: Tensor = self.model.lm_head(hidden.to(self.device, self.model.dtype)).float()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return found if cap is None else cap * torch.tanh(found / cap)

    def text(self, answer: Sequence[int]) -> str:
        """Return an answer as text."""
        return str(self.processor.tokenizer.decode(list(answer), skip_special_tokens=True)).strip()

    def _plain(self, images: Sequence[Image.Image]) -> Tensor:
        return preprocess(self.processor.image_processor, images)

    def _pixels(self, image: Image.Image) -> Tensor:
        """Return the tiles [T, 3, H, W] of one image."""
        text = self.family.placeholder(self.processor)
        found: Tensor = self._processed(text, image)["pixel_values"]
        return found.flatten(0, -4) if found.dim() > 4 else found

    @torch.inference_mode(False)
    def _make_inputs(self, prompt: Prompt, grid: int) -> dict[str, Tensor]:
        """Return what the model's forward pass takes for a blank image, on its device."""
        self.check_grid(grid)
        with ExitStack() as undo:
            if grid != self.token_grid:
                self.family.change_processor(self.processor, Reduction(self.token_grid, grid, self.dim), undo)
            found = self._processed(prompt.text, Image.new("RGB", prompt.size, GREY))
        return {name: value.to(self.device) for name, value in found.items()}

    @torch.inference_mode(False)
    def _make_shared(self, prompts: tuple[Prompt, ...], grid: int) -> tuple[dict[str, Tensor], list[Tensor]] | None:
        """Return what prompts begin with, image included, as `_make_inputs` does, and the token ids that are left of
        each, [1, L]; None if each must be read alone."""
        if len(prompts) == 1 or not self.family.causal:
            return None
        inputs = [self._inputs(prompt, grid) for prompt in prompts]
        rows = [one["input_ids"][0].tolist() for one in inputs]
        # One token at least is left to each.
        columns = zip(*(row[:-1] for row in rows), strict=False)
        length = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        if any(self.model.config.image_token_id in row[length:] for row in rows):
            return None
        whole = inputs[0]["input_ids"].shape
        begun = {name: value[:, :length] if value.shape == whole else value for name, value in inputs[0].items()}
        return begun, [one["input_ids"][:, length:] for one in inputs]

    def _processed(self, text: str, image: Image.Image) -> dict[str, Tensor]:
        # A chat template that writes the first token itself must not get another.
        bos = getattr(self.processor.tokenizer, "bos_token", None)
        more = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
        found = dict(self.processor(images=[[image.convert("RGB")]], text=[text], return_tensors="pt", **more))
        found.pop("labels", None)
        return found
