"""An image's own low-rank factorisation, packed into as many numbers as its k x k tokens have.

Window PCA is the best linear code of one window, the same for all images. Here each image brings its own channel
directions: its tokens are mean + A B + R, with B [r, C] the r directions in which they vary most, A [N, r] the
coordinates along them, and R what is left. Real tokens of one image lie close to few directions, which differ from
image to image, so this needs fewer numbers for the same error. Where all images are alike it does not; r = 0 is window
PCA.

Shapes: B images, N tokens, C channels, K cells, W tokens of a window. F = (r + 1) C numbers are shared by all cells of
an image, its mean and B; each cell carries s = ceil(F / K) of them, and m = C - s numbers of its own.

Everything here is matrix products, so that it runs on any device and exports to ONNX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokconv.models.windows import Windows

SUBSPACE_ITERATIONS = 8
"""Measured on the digits: the error of the code is that of an exact decomposition to three digits."""
NEWTON_ITERATIONS = 20
"""Enough for eigenvalues down to 1e-6 of the trace; smaller ones count as about that large."""
RIDGE = 1e-4
"""Share of a column's own power: keeps directions that a code has dropped from being fitted to noise."""


def inverse_square_root(gram: Tensor) -> Tensor:
    """Return gram^(-1/2) of symmetric matrices [..., r, r] without negative eigenvalues, by coupled Newton-Schulz
    iterations (Higham 2008, Functions of Matrices, eq. 6.35)."""
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp_min(torch.finfo(gram.dtype).tiny)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    root, inverse = gram / trace, identity.expand_as(gram)
    for _ in range(NEWTON_ITERATIONS):
        step = 1.5 * identity - 0.5 * inverse @ root
        root, inverse = root @ step, step @ inverse
    return inverse / trace.sqrt()


def leading_directions(centred_BNC: Tensor, rank: int) -> Tensor:
    """Return the orthonormal directions B [B, r, C] in which the tokens of each image vary most.

    Subspace iteration from the first r axes. Of all bases of the subspace it is the one nearest to these axes: it
    changes continuously with the image and has no arbitrary signs, so that coordinates along it can be coded alike in
    all images.
    """
    square = centred_BNC.mT @ centred_BNC
    axes = torch.eye(square.shape[-1], rank, dtype=square.dtype, device=square.device)
    basis = axes.expand(len(square), -1, -1)
    for _ in range(SUBSPACE_ITERATIONS):
        product = square @ basis
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


@dataclass(frozen=True)
class Factorisation:
    """The code of one store and grid; all tensors float32, tokens standardised.

    axes: [C, C], orthogonal, the tokens' principal directions in columns, strongest first.
    window_mean, window_basis: [D] and [D, m], the components of windows of [A | R]; D = W (r + C).
    shared_mean, shared_scale: [F], what mean and B of an image are standardised with.
    encode_weight, encode_bias: [C, C] and [C], from a cell's code to a token; decode_weight, decode_bias: back.
    """

    axes: Tensor
    window_mean: Tensor
    window_basis: Tensor
    shared_mean: Tensor
    shared_scale: Tensor
    encode_weight: Tensor
    encode_bias: Tensor
    decode_weight: Tensor
    decode_bias: Tensor

    @property
    def rank(self) -> int:
        """r."""
        return max(0, len(self.shared_mean) // len(self.axes) - 1)

    def encode(self, standardised_BNC: Tensor, windows: Windows) -> Tensor:
        """[B, N, C] -> cells [B, K, C] with the tokens' mean and covariance."""
        return F.linear(self.codes(standardised_BNC, windows), self.encode_weight, self.encode_bias)

    def decode(self, cells_BKC: Tensor, windows: Windows) -> Tensor:
        """[B, K, C] -> [B, N, C]."""
        local, shared = self.unpack(F.linear(cells_BKC, self.decode_weight, self.decode_bias))
        return self.tokens(local, shared, windows)

    def codes(self, standardised_BNC: Tensor, windows: Windows) -> Tensor:
        """[B, N, C] -> [B, K, C]: m numbers of the cell's own, then its s of the shared ones."""
        parts = factored(standardised_BNC @ self.axes, windows, self.rank)
        local = (parts.rows - self.window_mean) @ self.window_basis
        return self.pack(local, self._fit_shared(local, parts, windows))

    def pack(self, local_BKm: Tensor, shared_BF: Tensor) -> Tensor:
        """Return the code [B, K, C] of local and shared numbers."""
        cells, slots = local_BKm.shape[1], len(self.axes) - local_BKm.shape[2]
        standard = (shared_BF - self.shared_mean) / self.shared_scale
        spread = F.pad(standard, (0, cells * slots - standard.shape[1])).unflatten(1, (cells, slots))
        return torch.cat([local_BKm, spread], 2)

    def unpack(self, code_BKC: Tensor) -> tuple[Tensor, Tensor]:
        """Invert `pack`: local [B, K, m] and shared [B, F]."""
        local, spread = code_BKC.tensor_split([self.window_basis.shape[1]], 2)
        return local, spread.flatten(1)[:, : len(self.shared_mean)] * self.shared_scale + self.shared_mean

    def tokens(self, local_BKm: Tensor, shared_BF: Tensor, windows: Windows) -> Tensor:
        """Return the standardised tokens [B, N, C] of local and shared numbers."""
        coordinates, rest = self._unfold(local_BKm, windows)
        if self.rank:
            mean, directions = shared_BF.unflatten(1, (self.rank + 1, -1)).tensor_split([1], 1)
            rest = coordinates @ directions + rest + mean
        return rest @ self.axes.T

    def _unfold(self, local_BKm: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
        """Return what the local numbers say of A [B, N, r] and of R [B, N, C]."""
        rows = local_BKm @ self.window_basis.T + self.window_mean
        both = windows.join(rows.unflatten(2, (windows.window_size, -1)))
        coordinates, rest = both.tensor_split([self.rank], 2)
        return coordinates, rest

    def _fit_shared(self, local_BKm: Tensor, parts: Factored, windows: Windows) -> Tensor:
        """Return mean and B, fitted again to what the local numbers keep of A and R: [B, F]."""
        if not self.rank:
            return local_BKm.new_zeros(len(local_BKm), 0)
        coordinates, rest = self._unfold(local_BKm, windows)
        offset, rest_mean = coordinates.mean(1, keepdim=True), rest.mean(1, keepdim=True)
        directions = regressed(coordinates - offset, parts.centred - rest + rest_mean)
        return torch.cat([parts.mean - offset @ directions - rest_mean, directions], 1).flatten(1)


class Factored(NamedTuple):
    """The tokens of each image, factored.

    rows: windows of [A | R], [B, K, W (r + C)]; at rank 0 windows of the tokens, in which their mean stays.
    directions: B, [B, r, C].
    centred: tokens without their mean, [B, N, C].
    mean: [B, 1, C].
    """

    rows: Tensor
    directions: Tensor
    centred: Tensor
    mean: Tensor


def factored(tokens_BNC: Tensor, windows: Windows, rank: int) -> Factored:
    """Factor standardised tokens given in the axes of `Factorisation.axes`."""
    mean = tokens_BNC.mean(1, keepdim=True)
    centred = tokens_BNC - mean
    if not rank:
        return Factored(windows.split(tokens_BNC).flatten(2), centred[:, :0], centred, mean)
    directions = leading_directions(centred, rank)
    coordinates = centred @ directions.mT
    both = torch.cat([coordinates, centred - coordinates @ directions], 2)
    return Factored(windows.split(both).flatten(2), directions, centred, mean)
