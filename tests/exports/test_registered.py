"""`load_compressor("models:/...")`: a champion from MLflow's model registry, and why it cannot be had."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from support.artefacts import write_export
from support.tracked import client

import tokconv
from tokconv.errors import CheckpointError, MissingExtraError
from tokconv.sweep.tracking.mlflow_models import register
from tokconv.system.uris import file_uri

MODEL = "models:/tokconv-demo-2x2@champion"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKCONV_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_registered_champion_is_the_export(here: Path) -> None:
    export = write_export(here / "export")
    (here / "runs").mkdir()
    mlflow = client(here / "runs")
    run = mlflow.create_run(mlflow.create_experiment("demo", file_uri(here / "served"))).info.run_id
    register(mlflow, "tokconv-demo-2x2", run, "sweep", {"export": export, "meets_targets": True, "evidence": "proven"})
    tokens = torch.randn(2, 16, 8)
    expected = tokconv.load_compressor(export)(tokens)
    for name in (MODEL, "models:/tokconv-demo-2x2@fidelity", "models:/tokconv-demo-2x2/1"):
        assert torch.equal(tokconv.load_compressor(name)(tokens), expected)
    assert tokconv.load_decoder(MODEL)(expected).shape == (2, 16, 8)
    with pytest.raises(CheckpointError, match=r"does not have it .*named tokconv-SWEEP-KxK"):
        tokconv.load_compressor("models:/tokconv-demo-3x3@champion")
    # The copy of a version is kept, and the registry is asked only which version it is.
    for file in (here / "served").rglob("*.safetensors"):
        file.unlink()
    assert torch.equal(tokconv.load_compressor(MODEL)(tokens), expected)


def test_every_version_of_one_run_is_its_own_export(here: Path) -> None:
    """Purposes judge a run at epochs of their own, and each epoch is a version."""
    (here / "runs").mkdir()
    mlflow = client(here / "runs")
    run = mlflow.create_run(mlflow.create_experiment("demo", file_uri(here / "served"))).info.run_id
    tokens, expected = torch.randn(2, 16, 8), {}
    for epoch, purpose in enumerate(("fidelity", "plug-in")):
        path = write_export(here / purpose, seed=epoch)
        champion = {"export": path, "epoch": epoch, "meets_targets": True, "evidence": "proven"}
        register(mlflow, "tokconv-demo-2x2", run, "sweep", champion, purpose)
        expected[purpose] = tokconv.load_compressor(path)(tokens)
    assert not torch.equal(expected["fidelity"], expected["plug-in"])
    for purpose, wanted in expected.items():
        assert torch.equal(tokconv.load_compressor(f"models:/tokconv-demo-2x2@{purpose}")(tokens), wanted)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (MODEL, "there is no MLflow database .*runs/mlflow.db; set MLFLOW_TRACKING_URI"),
        ("models:/tokconv-demo-2x2", "names no version; write models:/NAME@ALIAS"),
    ],
)
def test_a_model_that_cannot_be_found_is_explained(here: Path, name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        tokconv.load_compressor(name)
    assert not list(here.iterdir())


def test_without_mlflow_the_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "mlflow.exceptions", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'tokconv\[sweep\]'"):
        tokconv.load_compressor(MODEL)
