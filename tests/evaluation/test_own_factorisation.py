"""The baseline of an image's own factorisation: its rank, its error against an exact reference, its moments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.stores import write_store
from torch import Tensor

from tokconv.errors import StoreError
from tokconv.evaluation.baselines import factorisation, window_components
from tokconv.evaluation.baselines.codecs import baseline_codec
from tokconv.evaluation.baselines.factorisation import (
    candidate_ranks,
    fit_own_factorisation,
    fit_rank,
    own_factorisation,
    principal_axes,
)
from tokconv.evaluation.codecs import run_codec
from tokconv.models.windows import Windows
from tokconv.store.format import StoreSettings, pack
from tokconv.store.reader import TokenStore
from tokconv.store.sample import standardised_batches
from tokconv.store.writer import StoreWriter


def _own_directions(path: Path, num_images: int = 80, dim: int = 16) -> TokenStore:
    """Write 6 x 6 tokens of images that each vary along two directions of their own, independently from token to
    token: one window says little about another, and no direction is common to all."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(num_images, 2, dim, generator=generator)
    tokens = torch.randn(num_images, 36, 2, generator=generator) @ directions
    tokens += 0.3 * torch.randn(num_images, 36, dim, generator=generator)
    settings = StoreSettings(
        encoder={"name": "synthetic"}, source={"name": "own"}, num_items=num_images, token_grid=6, dim=dim
    )
    with StoreWriter(path, settings) as writer:
        writer.write_shard(0, pack(tokens, settings.dtype), list(range(num_images)))
        writer.finish(
            [str(i) for i in range(num_images)], ["val" if i % 4 == 0 else "train" for i in range(num_images)]
        )
    return TokenStore.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("stores") / "smooth", num_images=80)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return _own_directions(tmp_path_factory.mktemp("stores") / "own")


def _run(store: TokenStore, name: str, grid: int, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return standardised tokens, cells and reconstructions."""
    tokens = store.tokens(images)
    cells, reconstructed = run_codec(baseline_codec(store, grid, name), tokens, images)
    return store.standardise(tokens), store.standardise(cells), store.standardise(reconstructed)


def _fvu(store: TokenStore, name: str, grid: int) -> float:
    tokens, _, reconstructed = _run(store, name, grid, store.val_indices)
    return float((reconstructed - tokens).square().sum() / tokens.square().sum())


def test_directions_of_the_image_win_where_images_differ(own: TokenStore) -> None:
    factors, window_pca = _fvu(own, "own_factorisation", 4), _fvu(own, "window_pca", 4)
    assert own_factorisation(own, 4).rank == 2
    assert factors < 0.6 * window_pca


@pytest.mark.parametrize("grid", [1, 3, 4])
def test_rank_0_is_matched_window_pca(store: TokenStore, grid: int) -> None:
    windows, images = Windows(6, grid), store.train_indices
    code = fit_rank(store, images, windows, principal_axes(store, images), 0)
    tokens, cells, reconstructed = _run(store, "matched_window_pca", grid, store.val_indices)
    assert torch.allclose(code.decode(code.encode(tokens, windows), windows), reconstructed, atol=2e-3)
    assert code.encode(tokens, windows).shape == cells.shape


@pytest.mark.parametrize("grid", [3, 4])
def test_the_error_is_that_of_an_exact_factorisation(own: TokenStore, grid: int) -> None:
    """The reference uses eigenvectors and a solver in float64, and packs nothing: codes and factors stay apart."""
    windows, images = Windows(6, grid), own.train_indices
    axes = principal_axes(own, images)
    tokens = torch.cat(list(standardised_batches(own, images)))
    code = fit_rank(own, images, windows, axes, 2)
    ours = (code.decode(code.encode(tokens, windows), windows) - tokens).square().sum()
    assert float(ours) == pytest.approx(float(_exact_error(tokens.double() @ axes.double(), windows)), rel=0.03)


def _exact_error(tokens: Tensor, windows: Windows, rank: int = 2) -> Tensor:
    mean, dim = tokens.mean(1, keepdim=True), tokens.shape[2]
    centred = tokens - mean
    basis = torch.linalg.eigh(centred.mT @ centred)[1].flip(2)[:, :, :rank]
    left, _, right = torch.linalg.svd(basis[:, :rank])
    directions = (basis @ (left @ right).mT).mT
    both = torch.cat([tokens @ directions.mT, centred - centred @ directions.mT @ directions], 2)
    rows = windows.split(both).flatten(2)
    center = rows.flatten(0, 1).mean(0)
    flat = rows.flatten(0, 1) - center
    kept = dim - -(-(rank + 1) * dim // windows.num_cells)
    components = torch.linalg.eigh(flat.T @ flat)[1].flip(1)[:, :kept]
    unfolded = windows.join(((rows - center) @ components @ components.T + center).unflatten(2, (-1, rank + dim)))
    coordinates, rest = unfolded[..., :rank], unfolded[..., rank:]
    inputs, targets = (part - part.mean(1, keepdim=True) for part in (coordinates, centred - rest))
    error = targets - inputs @ torch.linalg.lstsq(inputs, targets).solution
    return error.square().sum()


def test_cells_have_the_moments_of_tokens_and_do_not_depend_on_the_batch(own: TokenStore) -> None:
    tokens, cells, _ = _run(own, "own_factorisation", 4, own.train_indices)
    flat, real = cells.flatten(0, 1).double(), tokens.flatten(0, 1).double()
    assert torch.allclose(flat.mean(0), real.mean(0), atol=1e-3)
    assert torch.allclose(torch.cov(flat.T), torch.cov(real.T), atol=3e-2)
    _, alone, _ = _run(own, "own_factorisation", 4, own.train_indices[5:6])
    assert torch.allclose(alone[0], cells[5], atol=1e-4)


def test_fits_repeat_exactly(own: TokenStore) -> None:
    first, again = (vars(fit_own_factorisation(own, Windows(6, 4))) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_few_coordinates_of_wide_windows_are_enough(own: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    windows, images = Windows(6, 3), own.train_indices
    axes = principal_axes(own, images)
    tokens = torch.cat(list(standardised_batches(own, images)))
    errors = []
    for least in (10_000, 1):
        monkeypatch.setattr(window_components, "LEAST_COORDINATES", least)
        monkeypatch.setattr(window_components, "COORDINATES_PER_COMPONENT", 2)
        code = fit_rank(own, images, windows, axes, 2)
        errors.append(float((code.decode(code.encode(tokens, windows), windows) - tokens).square().sum()))
    assert errors[0] < errors[1] < 1.05 * errors[0]


def test_components_in_all_coordinates_are_those_of_the_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    across, along = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q, torch.logspace(1, -1, 4)
    rows = (across * along) @ torch.randn(500, 4, 5, generator=generator) * torch.logspace(1, 0, 5) + torch.arange(5.0)
    centred = rows.flatten(1).double() - rows.flatten(1).double().mean(0)
    captured = {}
    for least in (20, 12):
        monkeypatch.setattr(window_components, "LEAST_COORDINATES", least)
        monkeypatch.setattr(window_components, "COORDINATES_PER_COMPONENT", 1)
        components = window_components.WindowComponents(rows[:100], 3)
        for batch in rows.split(150):
            components.update(batch)
        basis = components.basis()
        assert torch.allclose(basis.T @ basis, torch.eye(3, dtype=torch.float64), atol=1e-5)
        assert torch.allclose(components.mean, rows.flatten(1).double().mean(0), atol=1e-6)
        captured[least] = float((centred @ basis).square().sum())
    best = float(torch.linalg.eigvalsh(centred.T @ centred)[-3:].sum())
    assert captured[20] == pytest.approx(best, rel=1e-6)
    assert 0.9 * best < captured[12] <= best * (1 + 1e-9)


def test_candidates_fit_into_the_cells(tmp_path: Path) -> None:
    assert candidate_ranks(Windows(24, 6), 64) == [0, 1, 2, 3, 5]
    assert candidate_ranks(Windows(24, 1), 64) == [0]
    few = write_store(tmp_path / "few", num_images=4)
    assert own_factorisation(few, 3).rank == 0


def test_a_damaged_fit_is_refused(tmp_path: Path) -> None:
    few = write_store(tmp_path / "few", num_images=4)
    own_factorisation(few, 2)
    path = next(few.derived_dir.glob("own-factorisation-*.safetensors"))
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for changed in ({**tensors, "shared_mean": torch.zeros(16)}, {"axes": tensors["axes"]}):
        save_file(changed, path, {"store": few.fingerprint})
        with pytest.raises(StoreError, match="damaged"):
            own_factorisation(few, 2)


@pytest.mark.parametrize(
    ("few", "every", "rank"), [((1.1, 1.0), (0.9, 1.0), 0), ((1.1, 1.0), (1.1, 1.0), 1), ((2.0, 1.0), None, 1)]
)
def test_where_window_pca_comes_near_all_images_decide(
    few: tuple[float, float],
    every: tuple[float, float] | None,
    rank: int,
    own: TokenStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few images favour a high rank: it has fewer components to learn."""
    monkeypatch.setattr(factorisation, "CHOICE_IMAGES", 10)
    monkeypatch.setattr(factorisation, "candidate_ranks", lambda windows, dim: [0, 1])
    asked = []

    def errors(store: TokenStore, windows: Windows, axes: object, ranks: object, images: torch.Tensor) -> object:
        asked.append(len(images))
        found = few if len(asked) == 1 else every
        assert found is not None
        return dict(enumerate(found))

    monkeypatch.setattr(factorisation, "held_out_errors", errors)
    assert factorisation.chosen_rank(own, Windows(6, 3), torch.eye(own.dim)) == rank
    assert asked == [10, len(own.train_indices)][: 1 if every is None else 2]


@pytest.mark.parametrize("grid", [3, 4])
def test_rank_0_is_window_pca(grid: int, own: TokenStore) -> None:
    images = own.val_indices
    tokens, windows = own.tokens(images), Windows(6, grid)
    code = own_factorisation(own, grid, 0)
    decoded = own.standardise(run_codec(baseline_codec(own, grid, "window_pca"), tokens, images)[1])
    standardised = own.standardise(tokens)
    assert torch.allclose(code.decode(code.encode(standardised, windows), windows), decoded, atol=1e-3)
