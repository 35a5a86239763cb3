"""Start a projector at the words for what tokens show: its digit, and where in the picture it is.

A language model reads a digit off its token if the token is like the word for it, as a copy of the word is. Patches of
training images are therefore classified by their projected token's dot products with the embeddings of these words:
the ten digits or none, three rows, three columns; and regressed to their exact place. It takes minutes, where the
answers alone took hours and taught nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from assemble_vlm import start_projector, width_of
from torch import Tensor, nn
from vlm_digits import NO_DIGIT
from vlm_examples import Example

from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.reading import COLUMNS, ROWS
from tokconv.store.reader import TokenStore
from tokconv.system.terminal import progress_line

EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 20, 512, 1e-3, 0.05
DROPOUT, NOISE = 0.3, 0.15
"""Of hidden units; of tokens, in their standard deviations. Without them, handwriting is learned by heart."""
EMPTY = 20
"""Patches without a digit that are read per image."""
EMPTY_WEIGHT = 0.4
COMMON = 5000
"""The first tokens of a vocabulary, whose mean embedding is taken off: all embeddings share it."""


def align(model: AnsweringModel, store: TokenStore, examples: Sequence[Example], seed: int) -> None:
    """Train a model's projector in place, float32, from noise; examples without marked digits are left out."""
    marked = [example for example in examples if example.values is not None]
    generator = torch.Generator().manual_seed(seed)
    tokens_PC, values_P, places_P = _patches(store, marked, generator)
    spread_C = tokens_PC.std(0)
    embeddings = model.model.get_input_embeddings().weight.detach().float().cpu()
    width = width_of(embeddings)
    projector = model.model.model.multi_modal_projector.requires_grad_(True)
    start_projector(projector, tokens_PC.mean(0), spread_C, width, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _Head(model, embeddings, width, store.token_grid)
    own = [{"params": [*projector.parameters()], "weight_decay": WEIGHT_DECAY}, {"params": [*head.parameters()]}]
    optimizer = torch.optim.AdamW(own, lr=LEARNING_RATE, weight_decay=0.0)
    batches = -(-len(tokens_PC) // BATCH)
    with progress_line("aligning") as line:
        for step in range(EPOCHS * batches):
            if step % batches == 0:
                order = torch.randperm(len(tokens_PC), generator=generator)
            chosen = order[step % batches * BATCH :][:BATCH]
            tokens = tokens_PC[chosen]
            tokens = tokens + NOISE * spread_C * torch.randn(tokens.shape, generator=generator)
            hidden = F.gelu(projector.linear_1(tokens.to(model.device)))
            kept = (torch.rand(hidden.shape, generator=generator) >= DROPOUT).to(model.device)
            visual = projector.linear_2(hidden * kept / (1 - DROPOUT))
            loss = head(visual.cpu(), values_P[chosen], places_P[chosen])
            for group, factor in zip(optimizer.param_groups, (1, 3), strict=True):
                group["lr"] = factor * LEARNING_RATE * (1 - step / EPOCHS / batches)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 20 == 19 or step + 1 == EPOCHS * batches:
                line(step + 1, EPOCHS * batches, f"loss {loss.item():.3f}")


def _patches(
    store: TokenStore, examples: Sequence[Example], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens [P, C] float32 of all patches with a digit and of EMPTY others per image, their values and
    their places in the grid [P] int64."""
    tokens, values, places = [], [], []
    for example in examples:
        assert example.values is not None
        empty = (example.values == NO_DIGIT).nonzero().flatten()
        some = empty[torch.randperm(len(empty), generator=generator)[:EMPTY]]
        chosen = torch.cat([(example.values != NO_DIGIT).nonzero().flatten(), some])
        tokens.append(store.tokens(torch.tensor([example.image]))[0, chosen].float())
        values.append(example.values[chosen])
        places.append(chosen)
    return torch.cat(tokens), torch.cat(values), torch.cat(places)


class _Head(nn.Module):
    """The loss of projected tokens: their likeness to words, their place, and their length."""

    def __init__(self, model: AnsweringModel, embeddings: Tensor, width: float, token_grid: int) -> None:
        super().__init__()

        def words(names: Sequence[str]) -> Tensor:
            found = [model.processor.tokenizer(name, add_special_tokens=False)["input_ids"][0] for name in names]
            return F.normalize(embeddings[found] - embeddings[:COMMON].mean(0), dim=1)

        self.digits, self.rows = words([str(value) for value in range(10)]), words(ROWS)
        # As in an answer, where they come after a row.
        self.columns = words([f" {column}" for column in COLUMNS])
        self.width, self.token_grid = width, token_grid
        self.scale = nn.Parameter(torch.full((2,), 1 / width))
        self.empty = nn.Parameter(torch.zeros(1))
        self.place = nn.Linear(embeddings.shape[1], 2)
        self.weights = torch.tensor([1.0] * 10 + [EMPTY_WEIGHT])

    def forward(self, visual_PD: Tensor, values_P: Tensor, places_P: Tensor) -> Tensor:
        like = torch.cat([self.scale[0] * visual_PD @ self.digits.T, self.empty.expand(len(visual_PD), 1)], 1)
        loss = F.cross_entropy(like, torch.where(values_P == NO_DIGIT, 10, values_P), weight=self.weights)
        cells = torch.stack([places_P // self.token_grid, places_P % self.token_grid], 1)
        for axis, words in enumerate((self.rows, self.columns)):
            third = (3 * cells[:, axis] + 1) // self.token_grid
            loss = loss + 0.5 * F.cross_entropy(self.scale[1] * visual_PD @ words.T, third.clamp(max=2))
        wanted = 2 * cells / (self.token_grid - 1) - 1
        loss = loss + 0.5 * F.mse_loss(self.place(visual_PD / self.width), wanted)
        length = visual_PD.square().mean(1).sqrt() / self.width
        return loss + 0.1 * (length - 1).square().mean()
