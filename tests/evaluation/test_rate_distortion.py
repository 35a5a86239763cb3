"""The baselines' figures: complete, ordered as theory predicts, measured once, and never read from a foreign file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.stores import write_store

from tokconv.errors import ConfigError, StoreError
from tokconv.evaluation import baseline_figures as rate_distortion
from tokconv.evaluation.baseline_figures import SHORTFALL, baseline_figures
from tokconv.evaluation.baselines import fits
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.store.reader import TokenStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("stores") / "tiny")


def test_every_baseline_is_measured(store: TokenStore) -> None:
    figures = baseline_figures(store, 3)
    assert tuple(figures) == tuple(name for name in BASELINES if name != "downsampled")
    assert figures["pooling"]["val/gain"] == 0
    for name, row in figures.items():
        assert row["val/gain"] == pytest.approx(1 - row["val/fvu"] / figures["pooling"]["val/fvu"])
        assert 0 < row["val/fvu"] < 1
        assert row.keys() - {SHORTFALL} == figures["pooling"].keys()
        assert (SHORTFALL in row) == name.endswith("window_pca")


def test_a_randomised_fit_reports_its_shortfall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["window_pca", "matched_window_pca"]
    exact = baseline_figures(write_store(tmp_path / "exact"), 2, names)
    assert exact["window_pca"][SHORTFALL] == exact["matched_window_pca"][SHORTFALL] == 0
    monkeypatch.setattr(fits, "MAX_COVARIANCE", 1)
    randomised = baseline_figures(write_store(tmp_path / "randomised"), 2, names)
    assert 0 < randomised["window_pca"][SHORTFALL] < 0.01
    assert randomised["window_pca"]["val/fvu"] == pytest.approx(exact["window_pca"]["val/fvu"], rel=0.05)


def test_figures_are_measured_once(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = baseline_figures(store, 3, ["pooling", "random"])
    monkeypatch.setattr(rate_distortion, "Evaluator", lambda *_: pytest.fail("measured again"))
    assert baseline_figures(store, 3, ["pooling", "random"]) == first


def test_only_the_baselines_that_are_wanted_are_measured(tmp_path: Path) -> None:
    own = write_store(tmp_path / "own")
    assert tuple(baseline_figures(own, 2, ["window_pca", "uniform"])) == ("window_pca", "uniform")
    found = sorted(path.name.split("-")[1] for path in own.derived_dir.glob("baselines-*.json"))
    assert found == ["pooling", "uniform", "window_pca"]
    assert not list(own.derived_dir.glob("own-factorisation-*"))


def test_figures_of_another_protocol_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = write_store(tmp_path / "own")
    first = baseline_figures(own, 2, ["pooling"])
    monkeypatch.setattr(rate_distortion, "PROTOCOL", PROTOCOL + 1)
    assert baseline_figures(own, 2, ["pooling"]) == first
    found = sorted(path.name for path in own.derived_dir.glob("baselines-*.json"))
    assert [f"-p{PROTOCOL}-" in found[0], f"-p{PROTOCOL + 1}-" in found[1]] == [True, True]


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": 0},
        {"store": "another"},
        {"baselines": {}},
        {"baselines": {"pooling": {"val/fvu": "good"}}},
        {"baselines": {"pooling": 1}},
        {"baselines": [1]},
    ],
    ids=str,
)
def test_a_damaged_or_foreign_cache_is_refused(store: TokenStore, change: dict[str, object]) -> None:
    baseline_figures(store, 5, ["pooling"])
    path = next(store.derived_dir.glob("baselines-pooling-*-grid-05.json"))
    whole = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(whole), **change}))
        with pytest.raises(StoreError, match="remove it and it is computed again"):
            baseline_figures(store, 5, ["pooling"])
    finally:
        path.write_text(whole)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"baselines": {"pooling": {"val/fvu": NaN}}}'])
def test_a_cache_without_rows_is_refused(store: TokenStore, text: str) -> None:
    baseline_figures(store, 6, ["pooling"])
    path = next(store.derived_dir.glob("baselines-pooling-*-grid-06.json"))
    whole = path.read_text()
    try:
        path.write_text(text)
        with pytest.raises(StoreError, match=r"damaged \(.+\); remove it and it is computed again"):
            baseline_figures(store, 6, ["pooling"])
    finally:
        path.write_text(whole)


def test_a_grid_that_does_not_fit_is_refused(store: TokenStore) -> None:
    with pytest.raises(ConfigError, match="must be between 1 and the token grid, 6"):
        baseline_figures(store, 7)
