"""The protocol: exact bounds, floors of real tokens, and figures that depend neither on batches nor on repetition."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.networks import linear_networks
from support.stores import write_store
from torch import Tensor, nn

from tokconv.errors import ConfigError, StoreError
from tokconv.evaluation import heldout, probe, protocol, relations
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.baselines.fitting import fitted_baselines
from tokconv.evaluation.codecs import Codec, codec_of
from tokconv.evaluation.evaluator import Evaluator, Figures
from tokconv.evaluation.probe import linear_probe
from tokconv.store.reader import TokenStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("stores") / "tiny", num_images=120)


class _Constant(nn.Module):
    """A decoder that returns the training mean."""

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
    figures = Evaluator(store, store.token_grid).evaluate(codec_of(compressor, decoder), full=True)
    assert figures["val/auc_token"] == pytest.approx(0.5, abs=0.02)
    assert figures["val/adapted_kept"] > 0.75
    assert figures["val/fvu"] == pytest.approx(0, abs=1e-9)
    assert figures["val/cosine"] == pytest.approx(1, abs=1e-6)
    assert figures["val/probe_kept"] == figures["val/reader_kept"] == figures["val/knn_overlap"] == 1
    assert figures["val/cka"] == pytest.approx(1, abs=1e-6)
    assert figures["compression_ratio"] == 1


def test_predicting_the_mean_leaves_all_variance(store: TokenStore) -> None:
    compressor, _ = linear_networks(store, 3)
    figures = Evaluator(store, 3).evaluate(codec_of(compressor, _Constant(store)))  # type: ignore[arg-type]
    assert figures["val/fvu"] == pytest.approx(1, abs=1e-5)
    # The raw cosine is flattering: tokens share a large mean.
    assert figures["val/cosine"] > 0.9
    assert figures["val/cosine_centered"] < 0.1
    assert figures["val/cka"] == 0


def test_figures_repeat_exactly(store: TokenStore) -> None:
    torch.manual_seed(0)
    networks = linear_networks(store, 3)
    first = Evaluator(store, 3).evaluate(codec_of(*networks))
    torch.manual_seed(1)
    assert Evaluator(store, 3).evaluate(codec_of(*networks)) == first


def test_the_figures_of_real_tokens_are_measured_once(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = linear_networks(store, 2)
    first = Evaluator(store, 2)
    monkeypatch.setattr(Evaluator, "_measure_real", lambda _: pytest.fail("measured again"))
    again = Evaluator(store, 2)
    assert (again.real, again.probe_full) == (first.real, first.probe_full)
    assert again.evaluate(codec_of(*networks)) == first.evaluate(codec_of(*networks))


@pytest.mark.parametrize(
    "change",
    [{"store": "another"}, {"protocol": 0}, {"probe": 0}, {"real": {}}, {"real": {"mmd": {"median": 1}}}],
    ids=str,
)
def test_figures_of_real_tokens_with_another_origin_are_refused(store: TokenStore, change: dict[str, object]) -> None:
    Evaluator(store, 1)
    path = next(store.derived_dir.glob("real-*-grid-01.json"))
    whole = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(whole), **change}))
        with pytest.raises(StoreError, match="remove it and it is computed again"):
            Evaluator(store, 1)
    finally:
        path.write_text(whole)


def test_baselines_are_ordered_and_cached(store: TokenStore) -> None:
    names = ["pooling", "window_pca", "matched_window_pca"]
    figures = baseline_figures(store, 3, names)
    assert figures["pooling"]["val/gain"] == 0
    assert 0 < figures["window_pca"]["val/fvu"] < 0.9 * figures["pooling"]["val/fvu"] < 1
    assert figures["window_pca"]["val/gain"] > 0
    assert figures["matched_window_pca"]["val/fvu"] == pytest.approx(figures["window_pca"]["val/fvu"], rel=1e-3)
    assert figures["matched_window_pca"]["val/swd"] < figures["window_pca"]["val/swd"]
    assert baseline_figures(store, 3, names) == figures


def test_averages_of_whole_images_are_further_from_tokens_than_tokens_are(store: TokenStore) -> None:
    pooling = baseline_figures(store, 1, ["pooling"])["pooling"]
    assert pooling["val/swd"] > pooling["val/swd_floor"]


def test_the_probe_finds_linear_classes(store: TokenStore) -> None:
    found = linear_probe(store)
    assert store.labels is not None
    standardised = (store.tokens(store.val_indices) - store.mean) / store.scale
    accuracy = (found.predict(standardised) == store.labels[store.val_indices]).float().mean()
    assert accuracy > 0.75


def _baseline(store: TokenStore, name: str, grid: int) -> Codec:
    networks = linear_networks(store, grid)
    fitted_baselines(store, grid).linear[name].fill(*networks)
    return codec_of(*networks)


@pytest.mark.parametrize("grid", [2, 4])
def test_no_figure_depends_on_batches_or_threads(store: TokenStore, monkeypatch: pytest.MonkeyPatch, grid: int) -> None:
    codec = _baseline(store, "matched_window_pca", grid)
    first = Evaluator(store, grid).evaluate(codec)
    threads = torch.get_num_threads()
    for batch, count in ((7, threads), (200, threads), (16, 3 if threads == 1 else 1)):
        monkeypatch.setattr(heldout, "BATCH", batch)
        torch.set_num_threads(count)
        try:
            again = Evaluator(store, grid).evaluate(codec)
        finally:
            torch.set_num_threads(threads)
        assert again == pytest.approx(first, rel=1e-3, abs=1e-7)


def test_compression_moves_every_figure_away_from_that_of_real_tokens(store: TokenStore) -> None:
    coarse, fine = (Evaluator(store, grid).evaluate(_baseline(store, "pooling", grid)) for grid in (1, 3))
    for figures in (coarse, fine):
        assert abs(figures["val/mmd_floor"]) < 0.02
        assert figures["val/mmd"] > figures["val/mmd_floor"]
        for name in ("val/knn_overlap_halves", "val/cka_halves", "val/reader_sampled"):
            assert 0.5 < figures[name] <= 1
    assert coarse["val/mmd"] > fine["val/mmd"]
    assert coarse["val/knn_overlap"] < fine["val/knn_overlap"] < 1
    assert coarse["val/cka"] < fine["val/cka"] < 1


def test_the_reader_needs_tokens_that_are_like_tokens(store: TokenStore) -> None:
    """Both window PCAs lose equally little, but a frozen reader can only read the matched one."""
    plain, matched = (
        Evaluator(store, 3).evaluate(_baseline(store, name, 3)) for name in ("window_pca", "matched_window_pca")
    )
    assert plain["val/probe_accuracy"] == pytest.approx(matched["val/probe_accuracy"], abs=0.05)
    assert matched["val/reader_accuracy"] > plain["val/reader_accuracy"] + 0.1


def test_a_codec_with_another_number_of_tokens_is_refused(store: TokenStore) -> None:
    with pytest.raises(ConfigError, match="9 tokens per image, not 4"):
        Evaluator(store, 3).evaluate(_baseline(store, "pooling", 2))


def test_tokens_need_not_lie_on_a_grid(store: TokenStore) -> None:
    def some_tokens(tokens: Tensor) -> tuple[Tensor, Tensor]:
        return tokens[:, :9], tokens.mean(1, keepdim=True).expand_as(tokens)

    figures = Evaluator(store, 3).evaluate(some_tokens)
    assert {"val/swd", "val/mmd", "val/knn_overlap", "val/cka", "val/reader_accuracy"} <= figures.keys()


def test_few_images_have_no_neighbours_and_one_token_no_discrepancy(tmp_path: Path) -> None:
    few = write_store(tmp_path / "few", num_images=44)
    assert len(few.val_indices) == 11
    figures = Evaluator(few, 2).evaluate(_baseline(few, "pooling", 2))
    assert not any("knn" in name or "cka" in name for name in figures)
    single = write_store(tmp_path / "single", num_images=4)
    assert "val/mmd" not in Evaluator(single, 1).evaluate(_baseline(single, "pooling", 1))
    # One held-out image of one token: not even the real tokens have a pair.
    lone = baseline_figures(write_store(tmp_path / "lone", num_images=4, token_grid=1), 1)
    assert "val/mmd" not in lone["pooling"]
    assert {"val/fvu", "val/swd", "val/swd_floor"} <= lone["pooling"].keys()
    unlabelled = write_store(tmp_path / "unlabelled", num_images=60, num_classes=0)
    names = Evaluator(unlabelled, 2).evaluate(_baseline(unlabelled, "pooling", 2)).keys()
    assert not any("probe" in name or "reader" in name for name in names)
    assert "val/knn_overlap" in names


@pytest.mark.parametrize(
    ("num_images", "num_classes", "there"),
    [(76, 2, {"adapted"}), (80, 0, {"auc_token", "auc_token_white", "auc_grid"}), (80, 1, {"auc_token", "adapted"})],
    ids=["few held-out images", "no labels", "one class"],
)
def test_full_figures_exist_where_there_is_enough_to_learn_from(
    tmp_path: Path, num_images: int, num_classes: int, there: set[str]
) -> None:
    small = write_store(tmp_path / "small", num_images=num_images, num_classes=num_classes)
    evaluator, codec = Evaluator(small, 2), _baseline(small, "pooling", 2)
    cheap, full = (evaluator.evaluate(codec, full=full) for full in (False, True))
    found = {name.removeprefix("val/").removesuffix("_accuracy") for name in full.keys() - cheap.keys()}
    assert {name for name in found if not name.endswith(("_floor", "_kept"))} >= there
    assert ("adapted" in found) == (num_classes > 0)
    assert ("auc_grid_floor" in found) == ("val/auc_token_quick" in cheap) == (num_images >= 80)
    assert {name: full[name] for name in cheap} == cheap
    if num_classes == 1:
        assert full["val/reader_kept"] == full["val/adapted_kept"] == 1


def test_large_images_are_sketched_and_judged_alike(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged() -> Figures:
        for path in store.derived_dir.glob("image-relations-*"):
            path.unlink()
        return Evaluator(store, 3).evaluate(_baseline(store, "pooling", 3))

    exact = judged()
    monkeypatch.setattr(protocol, "MAX_FEATURES", 1)
    monkeypatch.setattr(protocol, "SKETCH_FEATURES", 2048)
    sketched = judged()
    monkeypatch.undo()
    assert judged() == exact
    assert sketched["val/cka"] == pytest.approx(exact["val/cka"], abs=0.02)
    assert sketched["val/knn_overlap"] == pytest.approx(exact["val/knn_overlap"], abs=0.1)


@pytest.mark.parametrize("row", ["mmd", "figures", "probe"])
def test_real_figures_that_lack_a_row_are_damaged(store: TokenStore, row: str) -> None:
    Evaluator(store, 1)
    path = next(store.derived_dir.glob("real-*-grid-01.json"))
    whole = path.read_text()
    content = json.loads(whole)
    del content["real"][row]
    try:
        path.write_text(json.dumps(content))
        with pytest.raises(StoreError, match=r"real-.*: damaged \(.+\); remove it and it is computed again"):
            Evaluator(store, 1)
    finally:
        path.write_text(whole)


@pytest.mark.parametrize("name", ["image-relations-*.safetensors", "linear-probe-*.safetensors"])
def test_damaged_and_foreign_relations_and_probes_are_refused(store: TokenStore, name: str) -> None:
    Evaluator(store, 2)
    path = next(store.derived_dir.glob(name))
    whole, tensors = path.read_bytes(), {name: tensor.clone() for name, tensor in load_file(path).items()}
    try:
        for damaged in (b"", whole[:100], b"\xff" * 100):
            path.write_bytes(damaged)
            with pytest.raises(StoreError, match=rf"{path}: damaged \(.+\); remove it and it is computed again"):
                Evaluator(store, 2)
        for origin in ({}, {"store": "another"}):
            save_file(tensors, path, origin)
            with pytest.raises(StoreError, match=rf"{path}: was computed from something else .*remove it"):
                Evaluator(store, 2)
        save_file({**tensors, "surplus": torch.zeros(1)}, path, {"store": store.fingerprint})
        with pytest.raises(StoreError, match="damaged"):
            Evaluator(store, 2)
    finally:
        path.write_bytes(whole)


def test_relations_and_probe_are_computed_once(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Evaluator(store, 2).real
    monkeypatch.setattr(relations, "_relate", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(probe, "_fit", lambda *_: pytest.fail("fitted again"))
    assert Evaluator(store, 2).real == first


def test_a_draw_is_the_rows_asked_for_in_their_order() -> None:
    tokens = torch.randn(10, 6, 3)
    rows = torch.randperm(60)[:25]
    draw = heldout.RowSample(rows, 3)
    for batch in tokens.split(4):
        draw.add(batch)
    assert torch.equal(draw.values, tokens.flatten(0, 1)[rows])
