"""Token merging: K tokens that are averages of groups of tokens, wherever in the image these are.

Shapes: B images, N tokens, C channels, K merged tokens.

The merged tokens are not on a grid, and their decoder needs to know which token went into which group: an assignment
map of N numbers per image. The codecs of windows have no such side information, so at equal ratios the two kinds do not
use equal bits. Merged tokens are ordered by the first token of their group, row by row.

The decoder puts each group's token where its members were (unmerge), then applies one least-squares affine map to all
tokens, with a bias of its own at each of the N positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MERGE_ROUNDS = 12
"""The layers of a ViT-B, in each of which ToMe merges an equal number of tokens."""

Merge = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""[B, N, C] and K -> merged tokens [B, K, C] and the group of each token, [B, N] int64 in 0..K-1."""


def unmerge(merged_BKC: Tensor, groups_BN: Tensor) -> Tensor:
    """Put each group's token in the place of each of its members: [B, K, C] and [B, N] -> [B, N, C]."""
    return _pick(merged_BKC, groups_BN)


def tome(tokens_BNC: Tensor, num_merged: int) -> tuple[Tensor, Tensor]:
    """Merge as ToMe (Bolya et al. 2022, arXiv:2210.09461, section 3 and appendix D) does, to exactly K tokens.

    In each round tokens alternate between two sets. Each token of the first set chooses the most similar token of the
    second (cosine), and the most similar pairs become their mean, weighted by the number of tokens that each stands
    for. There are as many rounds of equal size as a ViT-B has layers, and more if a round would merge more than half.

    The paper merges between the layers of the encoder, by the similarity of attention keys. After a frozen encoder
    there are only its tokens, so their own similarity is used.
    """
    tokens, (batch, total, _) = tokens_BNC, tokens_BNC.shape
    sizes = tokens.new_ones(batch, total, 1)
    groups = torch.arange(total, device=tokens.device).expand(batch, total)
    a_round = -(-(total - num_merged) // MERGE_ROUNDS)
    while tokens.shape[1] > num_merged:
        count = min(a_round, tokens.shape[1] // 2, tokens.shape[1] - num_merged)
        tokens, sizes, moved = _merge_pairs(tokens, sizes, count)
        groups = moved.gather(1, groups)
    return _in_order(tokens, groups)


def prumerge(tokens_BNC: Tensor, num_merged: int) -> tuple[Tensor, Tensor]:
    """Select and merge in the manner of PruMerge (Shang et al. 2024, arXiv:2403.15388), to exactly K tokens.

    The K most important tokens are selected; every other token joins the selected one that is most similar (cosine).
    A group becomes the mean of its members, weighted by importance. In the paper, importance is the class token's
    attention, and its outliers determine K. A store holds no class token, so importance here is a token's distance
    from the mean token (its norm, standardised). Measured on the demo store: the attention that a token receives from
    all others (no learned projections) retains about as much, attention from the image's mean token much less.
    """
    importance = tokens_BNC.norm(dim=-1)
    # Stable, so that ties are broken by position on every machine.
    selected = importance.argsort(dim=1, descending=True, stable=True)[:, :num_merged].sort(1).values
    directions = F.normalize(tokens_BNC, dim=-1)
    groups = (directions @ _pick(directions, selected).mT).argmax(2)
    groups.scatter_(1, selected, torch.arange(num_merged, device=selected.device).expand_as(selected))
    weights = importance.clamp_min(torch.finfo(importance.dtype).tiny)
    total = torch.zeros_like(selected, dtype=weights.dtype).scatter_add_(1, groups, weights)
    shares = weights / total.gather(1, groups)
    merged = tokens_BNC.new_zeros(*selected.shape, tokens_BNC.shape[2])
    merged.scatter_add_(1, _wide(groups, tokens_BNC), shares[..., None] * tokens_BNC)
    return _in_order(merged, groups)


def _merge_pairs(tokens_BnC: Tensor, sizes_Bn1: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge `count` pairs; return the tokens, their sizes, and where each token went, [B, n] in 0..n-count-1."""
    first, second = tokens_BnC[:, ::2], tokens_BnC[:, 1::2]
    first_sizes, second_sizes = sizes_Bn1[:, ::2], sizes_Bn1[:, 1::2]
    similarity, nearest = (F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).mT).max(2)
    order = similarity.argsort(dim=1, descending=True, stable=True)
    leaving, staying = order[:, :count], order[:, count:].sort(1).values
    target = nearest.gather(1, leaving)
    size = _pick(first_sizes, leaving)
    weighted = _pick(first, leaving) * size
    joined_sizes = second_sizes.scatter_add(1, target[..., None], size)
    joined = (second * second_sizes).scatter_add(1, _wide(target, tokens_BnC), weighted) / joined_sizes
    moved = torch.empty(tokens_BnC.shape[:2], dtype=torch.int64, device=tokens_BnC.device)
    num_staying, places = staying.shape[1], torch.arange(tokens_BnC.shape[1], device=tokens_BnC.device)
    # Tokens that stay and tokens that leave make up the first set, so every entry is written.
    first_moved = torch.empty_like(order).scatter_(1, staying, places[:num_staying].expand_as(staying))
    moved[:, ::2] = first_moved.scatter_(1, leaving, target + num_staying)
    moved[:, 1::2] = places[: second.shape[1]] + num_staying
    tokens = torch.cat([_pick(first, staying), joined], 1)
    return tokens, torch.cat([_pick(first_sizes, staying), joined_sizes], 1), moved


def _in_order(merged_BKC: Tensor, groups_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Order merged tokens by the first token of their group, and number the groups so; no group is empty."""
    places = torch.arange(groups_BN.shape[1], device=groups_BN.device).expand_as(groups_BN)
    first = groups_BN.new_full(merged_BKC.shape[:2], groups_BN.shape[1]).scatter_reduce(1, groups_BN, places, "amin")
    order = first.argsort(1)
    return _pick(merged_BKC, order), order.argsort(1).gather(1, groups_BN)


def _pick(values_BnC: Tensor, index_Bm: Tensor) -> Tensor:
    return values_BnC.gather(1, _wide(index_Bm, values_BnC))


def _wide(index_Bm: Tensor, like_BnC: Tensor) -> Tensor:
    return index_Bm[..., None].expand(-1, -1, like_BnC.shape[2])
