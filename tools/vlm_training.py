"""Train a LLaVA's projector, and low-rank adapters of its language model, from stored tokens; resumes exactly."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from assemble_vlm import start_projector, width_of
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from vlm_alignment import align
from vlm_examples import Example
from vlm_packing import loss_of, some_places

from tokconv.errors import ConfigError, DataError, DivergedError, first_line
from tokconv.exports.answers.model import AnsweringModel
from tokconv.store.reader import TokenStore
from tokconv.system.files import atomic_path
from tokconv.system.terminal import progress_line

WARM_UP = 0.03
"""Share of the steps in which the learning rate rises."""
CHECKPOINT, TRAINED = "checkpoint.pt", "trained.safetensors"
PART = 96
"""The tokens per image that `part_first` trains on."""
ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj"]
"""The layers of the language model that have adapters: its attention."""
Read = Callable[[Tensor], Tensor]
"""Tokens [b, N, C] -> the tokens [b, K, C] that the projector reads."""


@dataclass(frozen=True)
class Settings:
    """What the trained weights depend on, beside the data."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    part_first: float = 0.0
    """The share of the steps, the first ones, that read PART tokens per image."""
    lora_rank: int = 0
    """Of the adapters (LoRA, arXiv:2106.09685); 0 trains the projector alone."""
    precision: str = "float32"
    """Of the frozen language model; what is trained is float32."""
    compressor: str = ""
    """The digest of the compressor whose tokens are read; "" for none."""
    layer: int = -2
    """The hidden layer of the tower that is read."""
    start: str = ""
    """The digest of what an earlier training wrote, which this one goes on from; "" for none."""


class Trained:
    """What is trained of a model: its projector and, from rank 1 on, adapters that `merge` adds to its weights."""

    def __init__(self, model: AnsweringModel, settings: Settings) -> None:
        self.settings, self.precision = settings, getattr(torch, settings.precision)
        model.model.to(self.precision)
        self.projector: nn.Module = model.model.model.multi_modal_projector.float().requires_grad_(True)
        self.parameters = {f"projector.{name}": value for name, value in self.projector.named_parameters()}
        self._adapted: Any = None
        if settings.lora_rank:
            from peft import LoraConfig, LoraModel

            rank = settings.lora_rank
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=ADAPTED, bias="none")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                self._adapted = LoraModel(model.model.model.language_model, config, "default")
            for name, value in self._adapted.named_parameters():
                if value.requires_grad:
                    self.parameters[f"lora.{name}"] = value

    def state(self) -> dict[str, Tensor]:
        """Return the trained tensors by name."""
        return {name: value.detach() for name, value in self.parameters.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Set the trained tensors. Raises KeyError for one that is missing."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state[name])

    def start(self, state: dict[str, Tensor], path: Path) -> None:
        """Set what `read_trained` read from a file. Raises DataError: it is of another model or rank."""
        try:
            self.load(state)
        except (KeyError, RuntimeError) as error:
            raise DataError(f"{path}: not the trained part of this model ({first_line(error)})") from error

    def merge(self) -> None:
        """Add the adapters to the weights that they adapt, and take the model's precision for all of it."""
        if self._adapted is not None:
            self._adapted.merge_and_unload()
        self.projector.to(self.precision).requires_grad_(False)


def write_trained(trained: Trained, path: Path) -> None:
    """Write what was trained in the model's precision, with the settings: all that tells the model from its parts."""
    state = {name: value.to(trained.precision).contiguous() for name, value in trained.state().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"settings": json.dumps(asdict(trained.settings))})


def read_trained(path: Path) -> tuple[Settings, dict[str, Tensor]]:
    """Return what `write_trained` wrote. Raises DataError: the file is missing, or another one."""
    try:
        with safe_open(path, "pt") as file:
            settings = Settings(**json.loads(file.metadata()["settings"]))
            return settings, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the trained part of a model ({first_line(error)})") from error


def apply_trained(model: AnsweringModel, path: Path) -> None:
    """Give an untrained model what `write_trained` wrote, merged.

    Raises:
        DataError: the file is missing, or of another model.
    """
    settings, state = read_trained(path)
    trained = Trained(model, settings)
    trained.start(state, path)
    trained.merge()


def batches(count: int, settings: Settings, first: int) -> Iterator[tuple[int, list[int]]]:
    """Yield each step from `first` on with the indices of its examples: every epoch in an order of its own."""
    for step in range(first, settings.steps):
        chosen = []
        for place in range(step * settings.batch_size, (step + 1) * settings.batch_size):
            generator = torch.Generator().manual_seed(settings.seed + 1 + place // count)
            chosen.append(int(torch.randperm(count, generator=generator)[place % count]))
        yield step, chosen


def part_of(
    tokens_BNC: Tensor, examples: Sequence[Example], settings: Settings, step: int
) -> tuple[Tensor, Tensor | None]:
    """Return the tokens that a step of the first training reads, and their places if they are not all."""
    count = tokens_BNC.shape[1]
    if step >= round(settings.part_first * settings.steps) or count <= PART:
        return tokens_BNC, None
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    places_BK = torch.stack([some_places(example, count, PART, generator) for example in examples])
    return tokens_BNC.gather(1, places_BK[..., None].expand(-1, -1, tokens_BNC.shape[2])), places_BK


def train(
    model: AnsweringModel,
    store: TokenStore,
    examples: Sequence[Example],
    settings: Settings,
    out: Path,
    save_every: int,
    read: Read | None = None,
    start: Path | None = None,
) -> list[float]:
    """Train and return the loss of every step of this run; resumes from `out`/checkpoint.pt.

    `out`/trained.safetensors then holds what was trained, for `apply_trained`. The given model is used up.

    Args:
        read: what the projector reads; None is the first training, whose projector starts at noise, or at the words
            for digits if there are images that show them (`vlm_alignment.align`), and reads all tokens, or a part.
        start: what an earlier training wrote, to go on from.

    Raises:
        ConfigError: the checkpoint was made with other settings or data.
        DataError: `start` is missing, or of another model or rank.
        DivergedError: the loss is not finite.
    """
    trained = Trained(model, settings)
    optimizer = torch.optim.AdamW(trained.parameters.values(), lr=settings.learning_rate, weight_decay=0.0)
    identity = {**asdict(settings), "store": store.fingerprint, "examples": len(examples)}
    path, first = out / CHECKPOINT, 0
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        if saved["identity"] != identity:
            raise ConfigError(f"{path}: was trained with {saved['identity']}, not {identity}; choose another --out")
        trained.load(saved["trained"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    elif start is not None:
        trained.start(read_trained(start)[1], start)
    elif read is None and any(example.values is not None for example in examples):
        align(model, store, examples, settings.seed)
    elif read is None:
        width = width_of(model.model.get_input_embeddings().weight)
        start_projector(trained.projector, store.mean, store.scale, width, settings.seed)
    losses: list[float] = []
    started = time.monotonic()
    with progress_line("training") as line:
        line(first, settings.steps)
        for step, chosen in batches(len(examples), settings, first):
            own = [examples[index] for index in chosen]
            tokens = store.tokens(torch.tensor([example.image for example in own])).float()
            read_now, places = (read(tokens), None) if read is not None else part_of(tokens, own, settings, step)
            loss = loss_of(model, read_now, own, places)
            if not math.isfinite(value := loss.item()):
                raise DivergedError("the loss of the answers", step)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(step, settings.steps)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters.values(), 1.0)
            optimizer.step()
            losses.append(value)
            if (step + 1) % save_every == 0 or step + 1 == settings.steps:
                with atomic_path(path) as temporary:
                    state = {"trained": trained.state(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "step": step + 1, "identity": identity}, temporary)
            each = (time.monotonic() - started) / len(losses)
            line(step + 1, settings.steps, f"loss {sum(losses[-20:]) / len(losses[-20:]):.3f}, {each:.2f} s/step")
    write_trained(trained, out / TRAINED)
    return losses


def schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine to 0."""
    rising = max(1, round(WARM_UP * steps))
    return (step + 1) / rising if step < rising else 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
