"""The protocol's figures agree with reference libraries and plain formulas on the same arrays, to 1e-4."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import NearestNeighbors
from support.stores import write_store
from torch import Tensor

from tokconv.evaluation import probe as probes
from tokconv.evaluation.metrics.features import ImageFeatures
from tokconv.evaluation.metrics.fidelity import Fidelity
from tokconv.evaluation.metrics.mmd import MEDIAN_TOKENS, MmdReference
from tokconv.evaluation.metrics.similarity import cka, nearest, neighbour_overlap
from tokconv.evaluation.metrics.wasserstein import projections, sliced_wasserstein, sorted_projections
from tokconv.evaluation.probe import Probe, linear_probe
from tokconv.models.windows import Windows
from tokconv.store.sample import standardised_batches, training_sample

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram(features: Tensor) -> Tensor:
    return features.double() @ features.double().T


def test_fidelity_is_the_same_in_one_batch_or_many() -> None:
    tokens, reconstructed = normal(10, 4, 3), normal(10, 4, 3, seed=1)
    whole, parts = Fidelity(torch.zeros(3)), Fidelity(torch.zeros(3))
    whole.update(reconstructed, tokens)
    for a, b in zip(reconstructed.split(3), tokens.split(3), strict=True):
        parts.update(a, b)
    assert whole.figures() == pytest.approx(parts.figures())


def test_fidelity_agrees_with_torch_and_a_zero_vector_has_cosine_zero() -> None:
    mean = 5 * normal(8)
    tokens = mean + normal(6, 9, 8, seed=1)
    reconstructed = tokens + 0.3 * normal(6, 9, 8, seed=2)
    reconstructed[0] = mean
    fidelity = Fidelity(mean)
    fidelity.update(reconstructed, tokens)
    found = fidelity.figures()
    cosine = torch.nn.functional.cosine_similarity
    assert found["val/cosine"] == pytest.approx(cosine(reconstructed, tokens, dim=-1).mean().item(), abs=1e-6)
    centered = cosine(reconstructed - mean, tokens - mean, dim=-1)
    assert found["val/cosine_centered"] == pytest.approx(centered.mean().item(), abs=1e-6)
    error, deviation = (reconstructed - tokens).square().sum(), (tokens - mean).square().sum()
    assert found["val/fvu"] == pytest.approx((error / deviation).item(), rel=1e-5)


def test_sliced_wasserstein_of_a_shift_is_the_shifts_projection() -> None:
    sample, shift = normal(500, 8), torch.zeros(8)
    shift[0] = 2.0
    directions = projections(8, 256, 0)
    expected = (shift @ directions).square().mean().sqrt().item()
    reference = sorted_projections(sample, directions)
    assert sliced_wasserstein(sorted_projections(sample + shift, directions), reference) == pytest.approx(
        expected, rel=1e-4
    )
    shuffled = sorted_projections(sample[torch.randperm(500)], directions)
    assert sliced_wasserstein(shuffled, reference) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("count", "dim", "shift"), [(300, 6, 0.0), (1000, 64, 0.2), (257, 32, 3.0)])
def test_sliced_wasserstein_agrees_with_pot(count: int, dim: int, shift: float) -> None:
    a, b = normal(count, dim), normal(count, dim, seed=1) * 1.1 + shift
    directions = projections(dim, 512, 3)
    ours = sliced_wasserstein(sorted_projections(a, directions), sorted_projections(b, directions))
    arrays = [array.double().numpy() for array in (a, b, directions)]
    theirs = ot.sliced_wasserstein_distance(*arrays[:2], p=2, projections=arrays[2])
    assert ours == pytest.approx(float(theirs), rel=1e-4)


def _plain_mmd(tokens: Tensor, reference: Tensor) -> float:
    """Evaluate equation 3 of Gretton et al. 2012 with scikit-learn's kernels."""
    x, y = tokens.double().numpy(), reference.double().numpy()
    few = y[:MEDIAN_TOKENS]
    distances = np.sqrt(((few[:, None] - few[None]) ** 2).sum(-1))[np.triu_indices(len(few), 1)]
    total = 0.0
    for multiple in (0.5, 1.0, 2.0):
        gamma = 1 / (2 * (multiple * np.median(distances)) ** 2)
        xx, yy, xy = rbf_kernel(x, x, gamma), rbf_kernel(y, y, gamma), rbf_kernel(x, y, gamma)
        m, n = len(x), len(y)
        within = (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1))
        total += float(within - 2 * xy.mean())
    return total / 3


@pytest.mark.parametrize(("m", "n", "dim"), [(2, 3, 1), (64, 64, 8), (130, 200, 16), (500, 700, 64)])
def test_mmd_agrees_with_scikit_learns_kernels(m: int, n: int, dim: int) -> None:
    tokens, reference = 5 + 1.2 * normal(m, dim), 5.3 + normal(n, dim, seed=1)
    ours = MmdReference.of(reference).squared_distance(tokens)
    assert ours == pytest.approx(_plain_mmd(tokens, reference), rel=1e-3 if n < 10 else 1e-4, abs=1e-6)


def test_mmd_of_one_distribution_is_zero_on_average() -> None:
    reference = MmdReference.of(normal(300, 4))
    found = torch.tensor([reference.squared_distance(normal(200, 4, seed=seed)) for seed in range(1, 41)])
    assert abs(found.mean()) < 3 * found.std() / math.sqrt(len(found)) + 1e-3
    assert found.min() < 0 < found.max()
    assert reference.squared_distance(normal(200, 4) + 1) > 20 * found.abs().max()


def test_mmd_of_a_single_token_or_of_equal_ones() -> None:
    with pytest.raises(ValueError, match="needs two tokens"):
        MmdReference.of(normal(1, 4))
    assert MmdReference.of(torch.ones(5, 4)).squared_distance(torch.ones(3, 4)) == pytest.approx(0, abs=1e-6)


def test_neighbours_agree_with_scikit_learn() -> None:
    features = normal(150, 20) + 3
    theirs = NearestNeighbors(n_neighbors=10).fit(features.numpy()).kneighbors(return_distance=False)
    assert torch.equal(nearest(gram(features), 10), torch.from_numpy(theirs))


def test_neighbour_overlap_counts_common_members() -> None:
    a, b = normal(60, 20), normal(60, 20, seed=1)
    ours = nearest(gram(a), 10), nearest(gram(a + b), 10)
    expected = np.mean([len(set(p.tolist()) & set(q.tolist())) / 10 for p, q in zip(*ours, strict=True)])
    assert neighbour_overlap(*ours) == pytest.approx(expected)
    assert neighbour_overlap(ours[0], ours[0]) == 1


def _plain_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Evaluate Song et al. 2012, eq. 5, term by term."""

    def hsic(k: np.ndarray, other: np.ndarray) -> float:
        n, ones = len(k), np.ones(len(k))
        k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
        product = np.trace(k @ other) + (ones @ k @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
        return float(product - 2 / (n - 2) * (ones @ k @ other @ ones)) / (n * (n - 3))

    k, other = a @ a.T, b @ b.T
    return hsic(k, other) / math.sqrt(hsic(k, k) * hsic(other, other))


@pytest.mark.parametrize("noise", [0.0, 0.5, 5.0])
def test_cka_agrees_with_the_plain_formula(noise: float) -> None:
    a = normal(80, 40) + 2
    b = a + noise * normal(80, 40, seed=1)
    assert cka(gram(a), gram(b)) == pytest.approx(_plain_cka(a.double().numpy(), b.double().numpy()), abs=1e-4)


def test_cka_is_blind_to_rotation_scale_and_origin_and_debiased() -> None:
    a = normal(80, 500)
    rotation = torch.linalg.qr(normal(500, 500, seed=1)).Q
    assert cka(gram(a), gram(3 * a @ rotation + 7)) == pytest.approx(1, abs=1e-6)
    # The biased estimate is above 0.8 here: 500 random features of 80 images are nearly orthogonal.
    assert abs(cka(gram(a), gram(normal(80, 500, seed=2)))) < 0.1
    assert cka(gram(a), gram(torch.full((80, 500), 0.3))) == 0


def test_features_of_any_batch_size_have_one_gram_matrix() -> None:
    tokens = normal(300, 5, 7)
    flat = gram(tokens.flatten(1))
    for limit, places in ((35, 1), (34, 4096)):
        features = ImageFeatures(300, 35, limit=limit, places=places, seed=0, device=CPU)
        grams = []
        for size in (300, 7):
            features.restart()
            for batch in tokens.split(size):
                features.add(batch)
            grams.append(features.gram())
        assert torch.allclose(*grams, atol=1e-4)
        assert torch.equal(grams[0], grams[0].T)
        # 35 values in 4,096 places rarely meet.
        assert torch.allclose(grams[0], flat, atol=1e-4 if limit == 35 else 4.0)


def test_a_sketch_keeps_neighbours_and_alignment() -> None:
    """The images are clusters of 20,000 values each, sketched in 2,048 places."""
    centers = normal(12, 20_000).repeat_interleave(20, 0)
    images = centers + 0.7 * normal(240, 20_000, seed=1)
    blurred = images + 0.3 * normal(240, 20_000, seed=2)
    exact, sketched = [], []
    for tokens in (images, blurred):
        exact.append(gram(tokens))
        features = ImageFeatures(240, 20_000, limit=1, places=2048, seed=0, device=CPU)
        features.add(tokens[:, None])
        sketched.append(features.gram())
    assert (sketched[0] - exact[0]).std() / exact[0].diagonal().mean() == pytest.approx(2048**-0.5, rel=0.3)
    assert cka(*sketched) == pytest.approx(cka(*exact), abs=0.01)
    members = torch.arange(240)[:, None] // 20
    assert all((nearest(found, 10) // 20 == members).all() for found in (exact[0], sketched[0]))


def test_the_probe_is_scikit_learns_ridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_store(tmp_path / "store", num_images=160, num_classes=2)
    monkeypatch.setattr(probes, "RIDGES", (0.01,))
    probe = linear_probe(store)
    sample = training_sample(store)
    features = torch.cat([tokens.flatten(1) for tokens in standardised_batches(store, sample)]).double()
    assert store.labels is not None
    targets = torch.nn.functional.one_hot(store.labels[sample], 2).double()
    centred = features - features.mean(0)
    # The mean eigenvalue of the Gram matrix is the unit of the ridge.
    alpha = 0.01 * centred.square().sum().item() / len(features)
    theirs = Ridge(alpha=alpha, solver="cholesky").fit(features.numpy(), targets.numpy())
    assert torch.allclose(probe.weight.double(), torch.from_numpy(theirs.coef_.T), atol=1e-4)
    assert torch.allclose(probe.bias.double(), torch.from_numpy(theirs.intercept_), atol=1e-4)
    held_out = (store.tokens(store.val_indices) - store.mean) / store.scale
    predicted = theirs.predict(held_out.flatten(1).double().numpy()).argmax(1)
    assert torch.equal(probe.predict(held_out), torch.from_numpy(predicted))


def test_the_ridge_of_the_probe_is_best_for_images_that_are_left_out(tmp_path: Path) -> None:
    """Left out in turn, and read by ridge regression on all others; there are ten times as many features as images."""
    store = write_store(tmp_path / "store", num_images=40)
    sample = training_sample(store)
    features = torch.cat([tokens.flatten(1) for tokens in standardised_batches(store, sample)]).double().numpy()
    assert store.labels is not None
    targets = torch.nn.functional.one_hot(store.labels[sample], 2).double().numpy()
    unit = ((features - features.mean(0)) ** 2).sum() / len(features)

    def error(ridge: float) -> float:
        model, total = Ridge(alpha=ridge * unit, solver="cholesky"), 0.0
        for image in range(len(features)):
            others = [other for other in range(len(features)) if other != image]
            predicted = model.fit(features[others], targets[others]).predict(features[[image]])
            total += float(((predicted - targets[image]) ** 2).sum())
        return total

    best = min(probes.RIDGES, key=error)
    assert min(probes.RIDGES) < best < max(probes.RIDGES)
    theirs = Ridge(alpha=best * unit, solver="cholesky").fit(features, targets)
    assert torch.allclose(linear_probe(store).weight.double(), torch.from_numpy(theirs.coef_.T), atol=1e-4)


@pytest.mark.parametrize("output_grid", [1, 2, 4, 6])
@pytest.mark.parametrize("probe_grid", [2, 3, 6])
def test_the_reader_is_the_probe_on_tokens_spread_over_their_windows(output_grid: int, probe_grid: int) -> None:
    probe = Probe(normal(probe_grid**2 * 5, 3), normal(3, seed=1), Windows(6, probe_grid))
    windows, cells = Windows(6, output_grid), normal(200, output_grid**2, 5, seed=2)
    spread = windows.join(cells[:, :, None].expand(-1, -1, windows.window_size, -1))
    assert (probe.reader(windows).predict(cells) == probe.predict(spread)).float().mean() > 0.99
