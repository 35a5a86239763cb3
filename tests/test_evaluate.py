"""The protocol: perfect is perfect, the mean is 1, the floor is a floor, and nothing depends on order or repetition."""

from __future__ import annotations

import pytest
import torch
from networks import linear_networks
from stores import write_store
from torch import Tensor, nn

from tokconv.evaluate import Evaluator, codec_of
from tokconv.metrics import Fidelity, projections, sliced_wasserstein, sorted_projections
from tokconv.probe import fit_probe
from tokconv.rate_distortion import baseline_figures
from tokconv.store import TokenStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("stores") / "tiny", num_images=120)


class _Constant(nn.Module):
    """A decoder that answers with the training mean."""

    def __init__(self, store: TokenStore) -> None:
        super().__init__()
        self.store = store

    def forward(self, compressed: Tensor) -> Tensor:
        return self.store.mean.expand(len(compressed), self.store.num_tokens, -1)


def test_identity_is_perfect(store: TokenStore) -> None:
    compressor, decoder = linear_networks(store, store.token_grid)
    with torch.no_grad():
        for layer in (compressor.projection, decoder.projection):
            layer.weight.copy_(torch.eye(store.dim))
            layer.bias.zero_()
    figures = Evaluator(store, store.token_grid).evaluate(codec_of(compressor, decoder))
    assert figures["val/fvu"] == pytest.approx(0, abs=1e-9)
    assert figures["val/cosine"] == pytest.approx(1, abs=1e-6)
    assert figures["val/probe_kept"] == 1
    assert figures["compression_ratio"] == 1


def test_predicting_the_mean_leaves_all_variance(store: TokenStore) -> None:
    compressor, _ = linear_networks(store, 3)
    figures = Evaluator(store, 3).evaluate(codec_of(compressor, _Constant(store)))  # type: ignore[arg-type]
    assert figures["val/fvu"] == pytest.approx(1, abs=1e-5)
    # The raw cosine flatters: tokens share a large mean.
    assert figures["val/cosine"] > 0.9
    assert figures["val/cosine_centered"] < 0.1


def test_figures_repeat_exactly(store: TokenStore) -> None:
    torch.manual_seed(0)
    networks = linear_networks(store, 3)
    first = Evaluator(store, 3).evaluate(codec_of(*networks))
    torch.manual_seed(1)
    assert Evaluator(store, 3).evaluate(codec_of(*networks)) == first


def test_baselines_are_ordered_and_cached(store: TokenStore) -> None:
    figures = baseline_figures(store, 3)
    assert figures["pooling"]["val/gain"] == 0
    assert 0 < figures["window_pca"]["val/fvu"] < 0.9 * figures["pooling"]["val/fvu"] < 1
    assert figures["window_pca"]["val/gain"] > 0
    assert figures["matched_window_pca"]["val/fvu"] == pytest.approx(figures["window_pca"]["val/fvu"], rel=1e-3)
    assert figures["matched_window_pca"]["val/swd"] < figures["window_pca"]["val/swd"]
    assert baseline_figures(store, 3) == figures


def test_averages_of_whole_images_are_further_from_tokens_than_tokens_are(store: TokenStore) -> None:
    pooling = baseline_figures(store, 1)["pooling"]
    assert pooling["val/swd"] > pooling["val/swd_floor"]


def test_probe_finds_what_is_linear(store: TokenStore) -> None:
    probe = fit_probe(store)
    assert store.labels is not None
    standardised = (store.tokens(store.val_indices) - store.mean) / store.scale
    accuracy = (probe.predict(standardised) == store.labels[store.val_indices]).float().mean()
    assert accuracy > 0.75


def test_fidelity_is_the_same_in_one_batch_or_many() -> None:
    tokens, reconstructed = torch.randn(10, 4, 3), torch.randn(10, 4, 3)
    whole, parts = Fidelity(torch.zeros(3)), Fidelity(torch.zeros(3))
    whole.update(reconstructed, tokens)
    for a, b in zip(reconstructed.split(3), tokens.split(3), strict=True):
        parts.update(a, b)
    assert whole.fvu == pytest.approx(parts.fvu)
    assert whole.cosine == pytest.approx(parts.cosine)


def test_sliced_wasserstein_of_a_shift_is_the_shifts_projection() -> None:
    sample, shift = torch.randn(500, 8), torch.zeros(8)
    shift[0] = 2.0
    directions = projections(8, 256, 0)
    expected = (shift @ directions).square().mean().sqrt().item()
    reference = sorted_projections(sample, directions)
    assert sliced_wasserstein(sorted_projections(sample + shift, directions), reference) == pytest.approx(
        expected, rel=1e-4
    )
    shuffled = sorted_projections(sample[torch.randperm(500)], directions)
    assert sliced_wasserstein(shuffled, reference) == pytest.approx(0, abs=1e-6)
