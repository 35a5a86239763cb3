"""Closed-form compressors with their best linear decoders: what a learned compressor starts from and has to beat.

    pooling             average of each window
    window_pca          the C leading principal components of each window: the least error any linear compressor of
                        that window can reach, in coordinates that look nothing like tokens
    matched_window_pca  the same components in coordinates with the tokens' own mean and covariance: the same error,
                        and the closest a linear map comes to token statistics

All are fitted on standardised tokens of the training split and stored beside the token store, once per grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokconv.files import atomic_path
from tokconv.grid import Windows
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.store import TokenStore

BASELINES = ("pooling", "window_pca", "matched_window_pca")
FIT_VERSION = 1
MAX_IMAGES = 2048
MAX_EXACT_WINDOW = 4096
"""Largest w*w*C whose covariance is kept; above it a randomised SVD on at most SVD_BYTES of windows."""
MAX_FULL_DECOMPOSITION = 640
"""Largest w*w*C whose covariance is decomposed in full; above it subspace iteration finds the leading C."""
SVD_BYTES = 2**31
OVERSAMPLING = 16
BATCH = 64


@dataclass(frozen=True)
class LinearCodec:
    """An affine compressor of a window and an affine decoder, on standardised tokens.

    encode_weight [C, W*C], encode_bias [C]; decode_weight [W*C, C], decode_bias [W*C]; float32.
    """

    encode_weight: Tensor
    encode_bias: Tensor
    decode_weight: Tensor
    decode_bias: Tensor

    @torch.no_grad()
    def fill(self, compressor: Compressor, decoder: Decoder) -> None:
        """Make this codec the window projections of a compressor and a decoder of the same grid and width."""
        assert compressor.projection is not None
        compressor.projection.weight.copy_(self.encode_weight)
        compressor.projection.bias.copy_(self.encode_bias)
        decoder.projection.weight.copy_(self.decode_weight)
        decoder.projection.bias.copy_(self.decode_bias)


def linear_codecs(store: TokenStore, output_grid: int) -> dict[str, LinearCodec]:
    """Every baseline of a grid, from the store's cache or fitted now (one process fits, others wait)."""
    path = _cache_path(store, output_grid)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            codecs = fit(store, output_grid)
            tensors = {f"{name}.{key}": value for name, codec in codecs.items() for key, value in vars(codec).items()}
            with atomic_path(path) as temporary:
                save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)
        tensors = load_file(path)
    fields = LinearCodec.__dataclass_fields__
    return {name: LinearCodec(*(tensors[f"{name}.{key}"] for key in fields)) for name in BASELINES}


def fit(store: TokenStore, output_grid: int) -> dict[str, LinearCodec]:
    """Fit every baseline of a grid on at most 2,048 training images (fixed seed)."""
    windows = Windows(store.token_grid, output_grid)
    moments = _Moments(store.dim, windows.window_size)
    for tokens in standardised_batches(store, training_sample(store)):
        moments.update(windows.split(tokens).flatten(0, 1))
    components = _components(moments) if moments.exact else _randomised_components(store, windows, moments)
    return {
        "pooling": _pooling(moments),
        "window_pca": _pca(moments, components),
        "matched_window_pca": _matched_pca(moments, components),
    }


def training_sample(store: TokenStore, limit: int = MAX_IMAGES) -> Tensor:
    """At most `limit` training indices, ascending, chosen by a fixed seed."""
    chosen = torch.randperm(len(store.train_indices), generator=torch.Generator().manual_seed(0))[:limit]
    return store.train_indices[chosen].sort().values


def standardised_batches(store: TokenStore, indices: Tensor) -> Iterator[Tensor]:
    """Standardised tokens [b, N, C] float32 of these images, in order."""
    for batch in indices.split(BATCH):
        yield (store.tokens(batch) - store.mean) / store.scale


def _cache_path(store: TokenStore, output_grid: int) -> Path:
    return store.derived_dir / f"codecs-v{FIT_VERSION}-grid-{output_grid:02d}.safetensors"


class _Moments:
    """First and second moments of windows, their pooled tokens and their single tokens, in float64."""

    def __init__(self, dim: int, window_size: int) -> None:
        self.dim, self.window_size, self.window_dim = dim, window_size, dim * window_size
        self.exact = self.window_dim <= MAX_EXACT_WINDOW
        self.count = 0
        self.sum = torch.zeros(self.window_dim, dtype=torch.float64)
        self.pooled_cross = torch.zeros(dim, self.window_dim, dtype=torch.float64)
        self.token_square = torch.zeros(dim, dim, dtype=torch.float64)
        self.square = torch.zeros(self.window_dim if self.exact else 0, self.window_dim, dtype=torch.float64)

    def update(self, windows_nWC: Tensor) -> None:
        flat, pooled, tokens = windows_nWC.flatten(1), windows_nWC.mean(1), windows_nWC.flatten(0, 1)
        self.count += len(flat)
        self.sum += flat.sum(0, dtype=torch.float64)
        self.pooled_cross += pooled.T @ flat
        self.token_square += tokens.T @ tokens
        if self.exact:
            self.square += flat.T @ flat

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count

    @property
    def pooled_mean(self) -> Tensor:
        return self.mean.view(self.window_size, self.dim).mean(0)

    @property
    def window_covariance(self) -> Tensor:
        return self.square / self.count - torch.outer(self.mean, self.mean)

    @property
    def pooled_covariance(self) -> Tensor:
        """Covariance of pooled tokens with whole windows, [C, W*C]."""
        return self.pooled_cross / self.count - torch.outer(self.pooled_mean, self.mean)

    @property
    def token_covariance(self) -> Tensor:
        square = self.token_square / (self.count * self.window_size)
        return square - torch.outer(self.pooled_mean, self.pooled_mean)


def _pooling(moments: _Moments) -> LinearCodec:
    dim, size = moments.dim, moments.window_size
    pooled_square = moments.pooled_covariance.view(dim, size, dim).mean(1)
    ridge = 1e-6 * pooled_square.diagonal().mean() * torch.eye(dim, dtype=torch.float64)
    decode = torch.linalg.solve(pooled_square + ridge, moments.pooled_covariance)
    average = torch.eye(dim, dtype=torch.float64).repeat(1, size) / size
    return _codec(average, decode.T, center=moments.mean, token_mean=moments.pooled_mean)


@dataclass(frozen=True)
class _Components:
    """basis [W*C, C], orthonormal columns (zero where the sample has fewer dimensions); covariance [C, C] of codes."""

    basis: Tensor
    covariance: Tensor


def _components(moments: _Moments) -> _Components:
    covariance = moments.window_covariance
    if moments.window_dim <= MAX_FULL_DECOMPOSITION:
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0), vectors.flip(1)
    else:
        # On a covariance the spectrum is squared, so a few iterations separate the leading components well.
        vectors, values, _ = _svd_lowrank(covariance, moments.dim + OVERSAMPLING)
    return _Components(vectors[:, : moments.dim], values[: moments.dim].clamp_min(0).diag())


def _randomised_components(store: TokenStore, windows: Windows, moments: _Moments) -> _Components:
    """Randomised SVD (Halko et al. 2011, arXiv:0909.4061) on as many training windows as SVD_BYTES hold."""
    images = max(1, SVD_BYTES // (4 * moments.window_dim * windows.num_cells))
    batches = standardised_batches(store, training_sample(store, images))
    sample = torch.cat([windows.split(tokens).flatten(0, 1).flatten(1) for tokens in batches])
    rank = min(moments.dim, *sample.shape)
    _, singular, vectors = _svd_lowrank(sample - moments.mean.float(), min(rank + OVERSAMPLING, *sample.shape))
    basis = torch.zeros(moments.window_dim, moments.dim, dtype=torch.float64)
    basis[:, :rank] = vectors[:, :rank]
    variance = torch.zeros(moments.dim, dtype=torch.float64)
    variance[:rank] = singular[:rank].double().square() / len(sample)
    return _Components(basis, variance.diag())


def _svd_lowrank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, singular, right = torch.svd_lowrank(matrix, q=rank, niter=5)
    return left, singular, right


def _pca(moments: _Moments, components: _Components) -> LinearCodec:
    zero = torch.zeros(moments.dim, dtype=torch.float64)
    return _codec(components.basis.T, components.basis, center=moments.mean, token_mean=zero)


def _matched_pca(moments: _Moments, components: _Components) -> LinearCodec:
    """Codes c of covariance D become S^1/2 Q D^-1/2 c with the tokens' covariance S.

    Every rotation Q gives these moments; this one brings each compressed token nearest to its window's mean token
    (orthogonal Procrustes), so that a compressed token still says what its place in the image says.
    """
    basis = components.basis
    token_root, token_inverse = _root(moments.token_covariance)
    code_root, code_inverse = _root(components.covariance)
    left, _, right = torch.linalg.svd(token_root @ moments.pooled_covariance @ basis @ code_inverse)
    rotation = left @ right
    return _codec(
        token_root @ rotation @ code_inverse @ basis.T,
        basis @ code_root @ rotation.T @ token_inverse,
        center=moments.mean,
        token_mean=moments.pooled_mean,
    )


def _root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and its inverse. Directions with almost no variance in the sample are floored at 1e-4 of the mean:
    otherwise what little a held-out image has there would be blown up without bound."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(1e-4 * float(values.mean()))
    return (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T


def _codec(encode: Tensor, decode: Tensor, *, center: Tensor, token_mean: Tensor) -> LinearCodec:
    """cells = token_mean + encode (window - center); window = center + decode (cells - token_mean)."""
    return LinearCodec(
        encode.float(),
        (token_mean - encode @ center).float(),
        decode.float(),
        (center - decode @ token_mean).float(),
    )
