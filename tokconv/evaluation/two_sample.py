"""The classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv:1610.06545): can a network tell two samples apart?

A small fresh network learns on training images to tell compressed tokens from real ones. Its AUC on held-out images is
the figure: the probability that it finds a compressed sample less real than a real one, 0.5 if it cannot tell, 1 if it
always can. It never sees a trial's critic. A low AUC is only an upper bound on likeness: a better judge may find more.

A sample is a single token, or the whole k x k grid of an image. Three networks with seeds of their own learn side by
side, as one batched product per layer, and the mean of their AUCs is reported.

A judge that learns too little flatters, so sizes are those with the highest AUC per second on the digits, 6 x 6: 0.983
on the tokens of matched window PCA in 3 s of a core (300 steps at 1e-2: 0.906; ReLU: 0.906), 1.000 on its grids in
2.6 s (Adam instead of Muon: 0.975). docs/evaluation.md has all that were tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokconv.evaluation import protocol
from tokconv.evaluation.muon import Muon
from tokconv.evaluation.schedule import warmed_cosine

SCORED_AT_ONCE = 8192
"""Tokens in memory while held-out samples are scored."""


@dataclass(frozen=True, kw_only=True)
class JudgeSize:
    """How large a judge is, and how long it learns."""

    width: int
    steps: int
    batch: int
    """Samples of each kind in a step: tokens, or grids."""
    rate: float
    """Highest learning rate; it rises over a tenth of the steps and falls to 0 with a cosine."""
    muon_rate: float | None = None
    """That of the two matrices if Muon trains them; None: Adam trains everything."""
    passes: int = 32
    """Passes over the compressed samples at most: more on few images cost as much as on many and find little."""
    num_seeds: int = 3
    scored: int = 8192
    """Held-out samples of each kind at most."""


@dataclass(frozen=True)
class Sides:
    """Tokens of training and of held-out images, [n, K, C] and [m, K, C] float32 on one device, standardised."""

    train: Tensor
    held_out: Tensor

    def mapped(self, offset_C: Tensor, matrix_CC: Tensor) -> Sides:
        """Return (tokens - offset) @ matrix."""
        return Sides(*((part - offset_C) @ matrix_CC for part in (self.train, self.held_out)))

    def tokens(self) -> Sides:
        """Return every token as a sample of its own, [n*K, 1, C]."""
        return Sides(self.train.flatten(0, 1)[:, None], self.held_out.flatten(0, 1)[:, None])


def two_sample_auc(real: Sides, compressed: Sides, size: JudgeSize, seed: int = protocol.SEED) -> float:
    """Return the AUC, mean over the judges, of compressed against real samples; a judge sees all K tokens of a sample.

    Init and batches are drawn on the CPU, so that only sums differ between devices.
    """
    generator = torch.Generator().manual_seed(seed)
    _, num_cells, dim = real.train.shape
    judge = _Judge(dim, num_cells, size, generator, real.train.device)
    matrices = [] if size.muon_rate is None else judge.matrices
    others = _side_by_side([weight for weight in judge.weights if not any(weight is matrix for matrix in matrices)])
    optimizer = torch.optim.AdamW([others], size.rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    muon = Muon(matrices)
    shape = (size.num_seeds, size.batch)
    steps = min(size.steps, math.ceil(size.passes * len(compressed.train) / size.batch))
    target = torch.cat([torch.zeros(shape), torch.ones(shape)], 1).to(real.train.device)
    with torch.enable_grad():
        for step in range(steps):
            share = warmed_cosine(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = size.rate * share
            drawn = [_drawn(part, shape, generator) for part in (real.train, compressed.train)]
            # The sum over judges: each one has its own mean loss, and none sees another's gradient.
            loss = size.num_seeds * F.binary_cross_entropy_with_logits(judge(torch.cat(drawn, 1)), target)
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            optimizer.step()
            muon.step((size.muon_rate or 0.0) * share)
    scores = [_scores(judge, part, size.scored, generator) for part in (real.held_out, compressed.held_out)]
    return float(np.mean([area_under_curve(*each) for each in zip(*scores, strict=True)]))


def _drawn(part_nKC: Tensor, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return random samples, [*shape, K, C]."""
    chosen = torch.randint(len(part_nKC), shape, generator=generator).flatten()
    return part_nKC.index_select(0, chosen.to(part_nKC.device)).unflatten(0, shape)


def _side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """Move leaves and their gradients into one vector each, and return that of the weights.

    An optimizer updates one long vector in a tenth of the time that it takes for several short ones, to the same bits.
    Gradients are added to the vector's `grad`, which has to be zeroed and not dropped before each step.
    """
    flat = torch.cat([weight.detach().flatten() for weight in weights])
    flat.grad = torch.zeros_like(flat)
    sizes = [weight.numel() for weight in weights]
    for weight, own, gradient in zip(weights, flat.split(sizes), flat.grad.split(sizes), strict=True):
        weight.data = own.view_as(weight)
        weight.grad = gradient.view_as(weight)
    return flat


def area_under_curve(negative: np.ndarray, positive: np.ndarray) -> float:
    """Return the probability that a positive score exceeds a negative one; ties count as half."""
    ordered = np.sort(negative)
    below, up_to = (np.searchsorted(ordered, positive, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(ordered)))


class _Judge:
    """S judges with stacked weights: [S, n, K, C] -> scores [S, n], high for compressed samples.

    Each token passes two layers. If a sample has several, the second layer also sees the mean of a token's neighbours,
    a token's place is known, and what the tokens of a sample say is averaged.
    """

    def __init__(self, dim: int, num_cells: int, size: JudgeSize, generator: torch.Generator, device: torch.device):
        self.side = math.isqrt(num_cells)
        self._band = _mean_of_three(self.side).to(device)
        seeds, width = size.num_seeds, size.width
        inner = width if num_cells == 1 else 2 * width

        def drawn(rows: int, columns: int) -> Tensor:
            return (torch.rand(seeds, rows, columns, generator=generator) * 2 - 1) / math.sqrt(rows)

        first = [drawn(dim, width), torch.zeros(seeds, 1, width)]
        second = [drawn(inner, width), torch.zeros(seeds, 1, width)]
        last = [drawn(width, 1), torch.zeros(seeds, 1, 1)]
        place = [torch.zeros(seeds, 1, num_cells, width)] if num_cells > 1 else []
        self.weights = [part.to(device).requires_grad_() for part in (*first, *second, *last, *place)]
        self.matrices = [self.weights[0], self.weights[2]]

    def __call__(self, tokens_SnKC: Tensor) -> Tensor:
        first, first_bias, second, second_bias, last, last_bias, *place = self.weights
        _, count, num_cells, _ = tokens_SnKC.shape
        hidden = torch.baddbmm(first_bias, tokens_SnKC.flatten(1, 2), first)
        if place:
            hidden = (hidden.unflatten(1, (count, num_cells)) + place[0]).flatten(1, 2)
        hidden = F.gelu(hidden)
        if place:
            hidden = torch.cat([hidden, self._neighbours(hidden)], -1)
        hidden = F.gelu(torch.baddbmm(second_bias, hidden, second))
        if place:
            hidden = hidden.unflatten(1, (count, num_cells)).mean(2)
        return torch.baddbmm(last_bias, hidden, last).squeeze(-1)

    def _neighbours(self, hidden_SRw: Tensor) -> Tensor:
        """Return the mean over the 3 x 3 tokens around each token; those of the edge count twice there."""
        rows = self._band @ hidden_SRw.reshape(-1, self.side, self.side * hidden_SRw.shape[-1])
        both = self._band @ rows.reshape(-1, self.side, hidden_SRw.shape[-1])
        return both.reshape(hidden_SRw.shape)


def _mean_of_three(side: int) -> Tensor:
    """Return the matrix [side, side] that averages each place with the places before and after it."""
    places = torch.arange(side)
    near = torch.stack([places + shift for shift in (-1, 0, 1)]).clamp(0, side - 1)
    return F.one_hot(near, side).float().mean(0)


@torch.no_grad()
def _scores(judge: _Judge, part_nKC: Tensor, most: int, generator: torch.Generator) -> np.ndarray:
    """Return scores [S, n] of at most `most` samples, the same ones for every judge."""
    chosen = part_nKC[torch.randperm(len(part_nKC), generator=generator)[:most].to(part_nKC.device)]
    seeds = judge.weights[0].shape[0]
    pieces = chosen.split(max(1, SCORED_AT_ONCE // chosen.shape[1]))
    return torch.cat([judge(piece.expand(seeds, -1, -1, -1)) for piece in pieces], 1).cpu().numpy()
