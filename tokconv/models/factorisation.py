"""An image's own low-rank factorisation, packed into as many numbers as its k x k tokens have.

Window PCA is the best linear code of one window, the same for all images. Here each image brings its own channel
directions: its tokens are mean + A B + R, with B [r, C] the r directions in which they vary most, A [N, r] the
coordinates along them, and R what is left. Real tokens of one image lie close to few directions, which differ from
image to image, so this needs fewer numbers for the same error. Where all images are alike it does not; r = 0 is window
PCA. A says where the tokens are along B, their mean included, so that a reader finds it in every cell; `mean` is the
part of the image's mean that B does not reach.

Shapes: B images, N tokens, C channels, K cells, W tokens of a window. F = (r + 1) C numbers are shared by all cells of
an image, its mean and B; each cell carries s = ceil(F / K) of them, and m = C - s numbers of its own.

Everything here is matrix products, so that it runs on any device and exports to ONNX.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokconv.errors import ConfigError
from tokconv.models.windows import Windows

SUBSPACE_ITERATIONS = 6
"""On DINOv2's tokens at rank 17, what the directions miss is within 1 % of that of an exact decomposition."""
NEWTON_ITERATIONS = 20
"""Enough for eigenvalues down to 1e-6 of the trace; smaller ones count as about that large."""
RIDGE = 1e-4
"""Share of a column's own power: keeps directions that a code has dropped from being fitted to noise."""


def exact(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast: iterations on Gram matrices, and small differences of large tokens, do not
    survive half precision. The large products, into windows' components and back, do.

    It does nothing where autocast is off, so that exported graphs hold no trace of it.
    """
    device = tensor.device.type
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if is_on else nullcontext()


def inverse_square_root(gram: Tensor) -> Tensor:
    """Return gram^(-1/2) of symmetric matrices [B, r, r] without negative eigenvalues, by coupled Newton-Schulz
    iterations (Higham 2008, Functions of Matrices, eq. 6.35)."""
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp_min(torch.finfo(gram.dtype).tiny)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    identity = identity.expand_as(gram)
    root, inverse = gram / trace, identity
    for _ in range(NEWTON_ITERATIONS):
        # 1.5 I - 0.5 inverse root, as one operation: these loops are most of an exported graph.
        step = torch.baddbmm(identity, inverse, root, beta=1.5, alpha=-0.5)
        root, inverse = root @ step, step @ inverse
    return inverse / trace.sqrt()


def leading_directions(centred_BNC: Tensor, rank: int) -> Tensor:
    """Return the orthonormal directions B [B, r, C] in which the tokens of each image vary most.

    Subspace iteration from the first r axes. Of all bases of the subspace it is the one nearest to these axes: it
    changes continuously with the image and has no arbitrary signs, so that coordinates along it can be coded alike in
    all images.
    """
    axes = torch.eye(centred_BNC.shape[-1], rank, dtype=centred_BNC.dtype, device=centred_BNC.device)
    basis = axes.expand(centred_BNC.shape[0], -1, -1)
    for _ in range(SUBSPACE_ITERATIONS):
        # Two thin products: the C x C matrix between them would cost more than all iterations of a low rank.
        product = centred_BNC.mT @ (centred_BNC @ basis)
        # Columns of one length: the iteration of a Gram matrix takes the longer, the more its eigenvalues differ.
        product = product / product.norm(dim=1, keepdim=True).clamp_min(torch.finfo(product.dtype).tiny)
        basis = product @ inverse_square_root(product.mT @ product)
    top = basis[:, :rank]
    return (basis @ (top @ inverse_square_root(top.mT @ top)).mT).mT


def regressed(inputs_BNr: Tensor, targets_BNC: Tensor) -> Tensor:
    """Return the coefficients [B, r, C] of the ridge regression of targets on inputs, for each image."""
    gram = inputs_BNr.mT @ inputs_BNr
    lengths = gram.diagonal(dim1=1, dim2=2).sqrt().clamp_min(1e-12)
    scale = lengths[:, :, None]
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    root = inverse_square_root(gram / (scale * scale.mT) + RIDGE * identity)
    return root @ (root @ (inputs_BNr.mT @ targets_BNC / scale)) / scale


def num_shared(rank: int, dim: int) -> int:
    """Return F, the numbers that all cells of an image share; none at rank 0."""
    return (rank + 1) * dim if rank else 0


def num_local(rank: int, dim: int, num_cells: int) -> int:
    """Return m, the numbers of a cell that are its own; below 1 the rank is too high for the grid."""
    return dim - math.ceil(num_shared(rank, dim) / num_cells)


def balanced_rank(windows: Windows, dim: int) -> float:
    """Return r0, the rank at which mean, A and B of an image take K*C numbers; below the highest one."""
    return (windows.num_cells - 1) * dim / (windows.token_grid**2 + dim)


def highest_rank(windows: Windows, dim: int) -> int:
    """Return the highest rank that leaves a cell a number of its own."""
    return max(rank for rank in range(dim) if num_local(rank, dim, windows.num_cells) > 0)


def check_rank(rank: int, windows: Windows, dim: int) -> None:
    """Raise ConfigError unless a code of this rank has room in the cells."""
    highest = highest_rank(windows, dim)
    if rank > highest:
        raise ConfigError(
            f"model.compressor.rank: got {rank}; {windows.num_cells} cells of {dim} channels have room for at most "
            f"{highest}; choose a lower one, or null for the best one of the store"
        )


@dataclass(frozen=True)
class Code:
    """How factors become numbers of cells; all tensors of one floating dtype, tokens standardised.

    axes: [C, C], orthogonal, the tokens' principal directions in columns, strongest first.
    window_mean, window_basis: [D] and [D, m], the components of windows of [A | R]; D = W (r + C).
    shared_mean, shared_scale: [F], what mean and B of an image are standardised with.
    """

    axes: Tensor
    window_mean: Tensor
    window_basis: Tensor
    shared_mean: Tensor
    shared_scale: Tensor

    @property
    def rank(self) -> int:
        """r."""
        return max(0, len(self.shared_mean) // len(self.axes) - 1)

    def codes(self, standardised_BNC: Tensor, windows: Windows) -> Tensor:
        """[B, N, C] -> [B, K, C]: m numbers of the cell's own, then its s of the shared ones."""
        parts = factored(standardised_BNC @ self.axes, windows, self.rank)
        return self.pack(*self.numbers(parts, windows))

    def numbers(self, parts: Factored, windows: Windows) -> tuple[Tensor, Tensor]:
        """Return the local numbers [B, K, m], and the shared ones, fitted to what these keep: [B, F].

        The shared ones are constants in a backward pass.
        """
        local = (parts.rows @ self.window_basis - self.window_mean @ self.window_basis).to(parts.rows.dtype)
        return local, self._fit_shared(local, parts, windows).detach()

    def pack(self, local_BKm: Tensor, shared_BF: Tensor) -> Tensor:
        """Return the code [B, K, C] of local and shared numbers."""
        if not self.rank:
            return local_BKm
        cells, slots = local_BKm.shape[1], len(self.axes) - local_BKm.shape[2]
        standard = (shared_BF - self.shared_mean) / self.shared_scale
        spread = F.pad(standard, (0, cells * slots - standard.shape[1])).unflatten(1, (cells, slots))
        return torch.cat([local_BKm, spread], 2)

    def unpack(self, code_BKC: Tensor) -> tuple[Tensor, Tensor]:
        """Invert `pack`: local [B, K, m] and shared [B, F]."""
        if not self.rank:
            return code_BKC, code_BKC.new_zeros(code_BKC.shape[0], 0)
        num_own = self.window_basis.shape[1]
        local, spread = code_BKC.split([num_own, len(self.axes) - num_own], 2)
        return local, spread.flatten(1)[:, : len(self.shared_mean)] * self.shared_scale + self.shared_mean

    def tokens(self, local_BKm: Tensor, shared_BF: Tensor, windows: Windows) -> Tensor:
        """Return the standardised tokens [B, N, C] of local and shared numbers."""
        return self.multiply(self.unfold(local_BKm, windows), shared_BF)

    def multiply(self, both_BND: Tensor, shared_BF: Tensor) -> Tensor:
        """Return the standardised tokens [B, N, C] of [A | R], [B, N, r + C], and the shared numbers."""
        coordinates, rest = both_BND.split([self.rank, len(self.axes)], 2)
        if self.rank:
            mean, directions = shared_BF.unflatten(1, (self.rank + 1, -1)).tensor_split([1], 1)
            with exact(both_BND):
                rest = coordinates @ directions + rest + mean
        return rest @ self.axes.T

    def unfold(self, local_BKm: Tensor, windows: Windows) -> Tensor:
        """Return what the local numbers say of [A | R], [B, N, r + C]."""
        return unfold(F.linear(local_BKm, self.window_basis, self.window_mean).to(local_BKm.dtype), windows)

    def _fit_shared(self, local_BKm: Tensor, parts: Factored, windows: Windows) -> Tensor:
        """Return mean and B, fitted again to what the local numbers keep of A and R: [B, F]."""
        if not self.rank:
            return local_BKm.new_zeros(local_BKm.shape[0], 0)
        coordinates, rest = self.unfold(local_BKm, windows).split([self.rank, len(self.axes)], 2)
        with exact(local_BKm):
            offset, rest_mean = coordinates.mean(1, keepdim=True), rest.mean(1, keepdim=True)
            # The mean of what is left makes no difference: the coordinates have none.
            directions = regressed(coordinates - offset, parts.centred - rest)
            return torch.cat([parts.mean - offset @ directions - rest_mean, directions], 1).flatten(1)


@dataclass(frozen=True)
class Factorisation(Code):
    """The code of one store and grid, with the maps between it and cells that look like tokens; float32.

    encode_weight, encode_bias: [C, C] and [C], from a cell's code to a token; decode_weight, decode_bias: back.
    """

    encode_weight: Tensor
    encode_bias: Tensor
    decode_weight: Tensor
    decode_bias: Tensor

    def encode(self, standardised_BNC: Tensor, windows: Windows) -> Tensor:
        """[B, N, C] -> cells [B, K, C] with the tokens' mean and covariance."""
        return F.linear(self.codes(standardised_BNC, windows), self.encode_weight, self.encode_bias)

    def decode(self, cells_BKC: Tensor, windows: Windows) -> Tensor:
        """[B, K, C] -> [B, N, C]."""
        local, shared = self.unpack(F.linear(cells_BKC, self.decode_weight, self.decode_bias))
        return self.tokens(local, shared, windows)


class Factored(NamedTuple):
    """The tokens of each image, factored.

    both: [A | R], [B, N, r + C]; at rank 0 the tokens, in which their mean stays.
    rows: their windows, [B, K, W (r + C)].
    directions: B, [B, r, C].
    centred: tokens without their mean, [B, N, C].
    mean: of the tokens, [B, 1, C].
    """

    both: Tensor
    rows: Tensor
    directions: Tensor
    centred: Tensor
    mean: Tensor

    @property
    def outside(self) -> Tensor:
        """The part of the mean that B does not reach, [B, 1, C]: tokens are this + A B + R."""
        return self.mean - self.mean @ self.directions.mT @ self.directions


def factored(tokens_BNC: Tensor, windows: Windows, rank: int, directions: Tensor | None = None) -> Factored:
    """Factor standardised tokens given in the axes of `Code.axes`; directions: B, if they were found before.

    In a backward pass B is a constant: next to a code that is fitted to it, its derivative changes nothing to first
    order, and in an image without variance it has none.
    """
    with exact(tokens_BNC):
        mean = tokens_BNC.mean(1, keepdim=True)
        centred = tokens_BNC - mean
        if not rank:
            return Factored(tokens_BNC, fold(tokens_BNC, windows), centred[:, :0], centred, mean)
        directions = leading_directions(centred.detach(), rank) if directions is None else directions
        coordinates = tokens_BNC @ directions.mT
        inside = centred @ directions.mT @ directions
        both = torch.cat([coordinates, centred - inside], 2)
        return Factored(both, fold(both, windows), directions, centred, mean)


def fold(both_BND: Tensor, windows: Windows) -> Tensor:
    """[B, N, d] -> windows [B, K, W d]."""
    return windows.split(both_BND).flatten(2)


def unfold(rows_BKD: Tensor, windows: Windows) -> Tensor:
    """Invert `fold`; overlapping windows are averaged."""
    return windows.join(rows_BKD.unflatten(2, (windows.window_size, -1)))
