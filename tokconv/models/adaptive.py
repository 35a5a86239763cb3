"""The adaptive compressor and its decoder: an image's own low-rank factorisation, with branches that start at zero.

`tokconv.models.factorisation` is the closed form that both start at, and has the meaning of the shapes. Window PCA is a
start that branches on cells do not leave on real tokens: even the training error stands still. What they miss is the
structure of the single image, which this start has, and the branches here see tokens at full resolution.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokconv.models.blocks import ChannelMap
from tokconv.models.compressor import Branch, Compressor
from tokconv.models.decoder import Decoder
from tokconv.models.factorisation import (
    Code,
    Factorisation,
    check_rank,
    exact,
    factored,
    fold,
    num_local,
    num_shared,
    unfold,
)
from tokconv.models.network import ClosedForm


class FittedCode(ClosedForm):
    """One side of a `Factorisation`: the fitted maps are trained, its axes and scales are not.

    Args:
        dim: C.
        rank: r.
        window_size, num_cells: W and K.
        decodes: whether it is the decoder's, which sums over a cell's numbers where the compressor sums over a window.
    """

    learning_share = 0.1
    axes: Tensor
    shared_mean: Tensor
    shared_scale: Tensor
    scale: Tensor

    def __init__(self, dim: int, rank: int, window_size: int, num_cells: int, *, decodes: bool = False) -> None:
        super().__init__()
        self.decodes = decodes
        width, shared = window_size * (rank + dim), num_shared(rank, dim)
        self.window_mean = nn.Parameter(torch.zeros(width))
        self.window_basis = nn.Parameter(torch.eye(width, num_local(rank, dim, num_cells)))
        self.weight, self.bias = nn.Parameter(torch.eye(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("axes", torch.eye(dim))
        self.register_buffer("shared_mean", torch.zeros(shared))
        self.register_buffer("shared_scale", torch.ones(shared))
        # What a branch writes is in deviations of [A | R], [r + C].
        self.register_buffer("scale", torch.ones(rank + dim))

    @torch.no_grad()
    def fill(self, code: Code, weight: Tensor, bias: Tensor, token_covariance: Tensor) -> None:
        """Set it to a closed form.

        Args:
            weight, bias: from codes to cells [C, C] and [C], or back.
            token_covariance: [C, C], of standardised tokens.
        """
        for name in ("axes", "window_mean", "window_basis", "shared_mean", "shared_scale"):
            getattr(self, name).copy_(getattr(code, name))
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        variances = (code.axes.double() * (token_covariance.double() @ code.axes.double())).sum(0)
        parts = [part.mean().sqrt().expand(count) for part, count in _split(variances, code.rank)]
        self.scale.copy_(torch.cat(parts))
        self.closed_form = True

    def inputs(self) -> Iterator[tuple[nn.Parameter, int]]:
        width, local = self.window_basis.shape
        for parameter in (self.window_mean, self.window_basis):
            yield parameter, local if self.decodes else width
        for parameter in (self.weight, self.bias):
            yield parameter, len(self.bias)

    def code(self, dtype: torch.dtype) -> Code:
        """Return the code in this dtype."""
        names = ("axes", "window_mean", "window_basis", "shared_mean", "shared_scale")
        return Code(**{name: getattr(self, name).to(dtype) for name in names})

    def match(self, rows: Tensor) -> Tensor:
        """Map codes to cells, or cells to codes; exact, for cells hold what cannot be rounded."""
        with exact(rows):
            return F.linear(rows, self.weight.to(rows.dtype), self.bias.to(rows.dtype))


def _split(variances: Tensor, rank: int) -> list[tuple[Tensor, int]]:
    """Return the variances that A and R mostly hold, each with its number of channels; A first, unless it is empty."""
    of_rest = (variances[rank:] if rank < len(variances) else variances, len(variances))
    return [(variances[:rank], rank), of_rest] if rank else [of_rest]


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class AdaptiveCompressor(Compressor):
    """The image's own factorisation + a branch on tokens that corrects [A | R] before windows are coded.

    The numbers that cells share are fitted to what the corrected ones keep. They are constants of a backward pass: they
    minimise the error, so that their derivative contributes nothing to its gradient.

    Args: as `Compressor`, and
        rank: r, the directions of an image; 0 is window PCA.
        num_layers, hidden_dim: blocks and width of the branch, which works on the G x G grid.
        use_residual: false leaves the branch out.
        norm, padding: of the blocks, see `tokconv.models.blocks.ConvBlock`.

    Raises:
        ConfigError: the rank is too high for the grid.

    Example:
        >>> AdaptiveCompressor(token_grid=24, dim=64, output_grid_size=6, rank=3)(torch.zeros(2, 576, 64)).shape
        torch.Size([2, 36, 64])
    """

    decoder_kind = "adaptive"

    def __init__(
        self,
        token_grid: int,
        dim: int,
        output_grid_size: int,
        *,
        rank: int = 0,
        num_layers: int = 3,
        hidden_dim: int = 128,
        use_residual: bool = True,
        norm: str = "layer",
        padding: str = "zeros",
    ) -> None:
        super().__init__(token_grid, dim, output_grid_size)
        check_rank(rank, self.windows, dim)
        self.rank, self.projection = rank, None
        self.fitted = FittedCode(dim, rank, self.windows.window_size, self.windows.num_cells)
        self.branch: Branch | None = None
        if use_residual:
            self.branch = Branch(dim, hidden_dim, rank + dim, token_grid**2, num_layers, norm=norm, padding=padding)

    def fill(self, closed: Factorisation, token_covariance: Tensor) -> None:
        """Start at this closed form; token_covariance: [C, C], of standardised tokens."""
        self.fitted.fill(closed, closed.encode_weight, closed.encode_bias, token_covariance)

    def compress(self, standardised_BNC: Tensor) -> Tensor:
        correction = None if self.branch is None else self.branch(standardised_BNC)
        tokens = _at_least_float32(standardised_BNC)
        code = self.fitted.code(tokens.dtype)
        parts = factored(_at_least_float32(tokens @ code.axes), self.windows, self.rank)
        if correction is not None:
            both = parts.both + self.fitted.scale.to(tokens.dtype) * correction.to(tokens.dtype)
            parts = parts._replace(both=both, rows=fold(both, self.windows))
        cells = self.fitted.match(code.pack(*code.numbers(parts, self.windows)))
        return cells.to(standardised_BNC.dtype)


class AdaptiveDecoder(Decoder):
    """The image's own factorisation, decoded, + a branch on cells that corrects [A | R] + a branch on the tokens.

    Args: as `Decoder`, and
        rank: that of the compressor.
        num_layers, hidden_dim, norm, padding: of both branches, as `AdaptiveCompressor`.
    """

    def __init__(
        self,
        token_grid: int,
        dim: int,
        output_grid_size: int,
        *,
        rank: int = 0,
        num_layers: int = 2,
        hidden_dim: int = 128,
        norm: str = "layer",
        padding: str = "zeros",
    ) -> None:
        super().__init__(token_grid, dim, output_grid_size)
        check_rank(rank, self.windows, dim)
        self.rank, self.projection = rank, None
        window_size, cells = self.windows.window_size, self.windows.num_cells
        self.fitted = FittedCode(dim, rank, window_size, cells, decodes=True)
        self.whiten = ChannelMap(dim)
        out = window_size * (rank + dim)
        self.branch = Branch(dim, hidden_dim, out, cells, num_layers, norm=norm, padding=padding)
        self.refine = Branch(dim, hidden_dim, dim, token_grid**2, num_layers, norm=norm, padding=padding)

    def fill(self, closed: Factorisation, token_covariance: Tensor) -> None:
        """Start at this closed form; token_covariance: [C, C], of standardised tokens."""
        self.fitted.fill(closed, closed.decode_weight, closed.decode_bias, token_covariance)

    def decode(self, standardised_BKC: Tensor) -> Tensor:
        correction = self.branch(self.whiten(standardised_BKC))
        cells = _at_least_float32(standardised_BKC)
        code = self.fitted.code(cells.dtype)
        local, shared = code.unpack(self.fitted.match(cells))
        both = code.unfold(local, self.windows)
        both = both + self.fitted.scale.to(cells.dtype) * unfold(correction.to(cells.dtype), self.windows)
        tokens = code.multiply(both, shared).to(standardised_BKC.dtype)
        return tokens + self.refine(tokens)
