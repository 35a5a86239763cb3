"""Do images keep their relations to each other? Both figures compare the Gram matrices [n, n] of two feature sets.

neighbour overlap   share of each image's nearest images that are the same in both
cka                 linear centred kernel alignment (Kornblith et al. 2019, arXiv:1905.00414), with the debiased
                    estimate of HSIC (Song et al. 2012, JMLR 13, eq. 5); with the biased one, features wider than
                    the sample look alike whatever they are
"""

from __future__ import annotations

from torch import Tensor


def nearest(gram_nn: Tensor, count: int) -> Tensor:
    """Return [n, count] int64: the nearest other images of each image, by Euclidean distance of their features."""
    # |a - b|^2 without |a|^2, which is constant in a row.
    distances = gram_nn.diagonal()[None, :] - 2 * gram_nn
    return distances.fill_diagonal_(float("inf")).topk(count, dim=1, largest=False).indices


def neighbour_overlap(a_nk: Tensor, b_nk: Tensor) -> float:
    """Return the mean share of common members of two lists of neighbours, both as `nearest` returns them."""
    common = (a_nk[:, :, None] == b_nk[:, None, :]).sum()
    return common.item() / a_nk.numel()


def cka(a_nn: Tensor, b_nn: Tensor) -> float:
    """Return the alignment of two Gram matrices of at least four images: 1 for features that are equal up to rotation
    and scale, about 0 for unrelated features, and 0 for features that do not tell images apart at all."""
    a, b = _centred(a_nn), _centred(b_nn)
    aa, bb, ab = (a * a).mean().item(), (b * b).mean().item(), (a * b).mean().item()
    # If all images have equal features, centring leaves rounding errors alone.
    if aa <= 1e-10 * a_nn.square().mean().item() or bb <= 1e-10 * b_nn.square().mean().item():
        return 0.0
    return ab / (aa * bb) ** 0.5


def _centred(gram_nn: Tensor) -> Tensor:
    """Apply U-centring (Szekely and Rizzo 2014, arXiv:1310.2926, eq. 2.4), [n, n] float64. The mean product of two
    matrices centred so is Song's eq. 5, up to a factor that cka divides out, without differences of large sums."""
    size = len(gram_nn)
    centred = gram_nn.double().clone().fill_diagonal_(0)
    rows = centred.sum(1)
    centred += rows.sum() / ((size - 1) * (size - 2)) - (rows[:, None] + rows[None, :]) / (size - 2)
    return centred.fill_diagonal_(0)
