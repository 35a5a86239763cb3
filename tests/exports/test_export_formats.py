"""Exports in other formats compute what the compressor computes; one folder serves tokconv and transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.artefacts import write_export
from transformers import AutoConfig, AutoModel

import tokconv
import tokconv.hf
from tokconv.cli.main import main
from tokconv.errors import CheckpointError
from tokconv.exports.artefact import read_config
from tokconv.exports.formats import _error, _write_onnx, _write_pt2
from tokconv.models import factorisation
from tokconv.models.compressor import Compressor
from tokconv.models.registry import build_compressor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of onnxscript's own internals
KINDS = {
    "residual": {"whiten": True},
    "conv": {"padding": "partial"},
    "matryoshka": {"grids": (3, 4)},
    "adaptive": {"rank": 2},
    "salient": {"padding": "partial"},
}


def tokens_of(batch: int) -> torch.Tensor:
    return torch.randn(batch, 16, 8, generator=torch.Generator().manual_seed(batch))


def small(kind: str) -> Compressor:
    """Return a small compressor whose weights are all random, including those that start at zero."""
    compressor = build_compressor(kind, token_grid=7, dim=8, output_grid_size=3, hidden_dim=8, **KINDS[kind])
    for parameter in compressor.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for name, buffer in compressor.named_buffers():
        if name == "colour.matrix":
            torch.nn.init.normal_(buffer, std=0.5)
    return compressor.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_both_formats(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The iterations of a factorisation are unrolled: these are the same operations, fewer of them.
    monkeypatch.setattr(factorisation, "SUBSPACE_ITERATIONS", 2)
    monkeypatch.setattr(factorisation, "NEWTON_ITERATIONS", 2)
    compressor = small(kind)
    assert _error(compressor, _write_pt2(compressor, tmp_path / "m"), 3) == 0
    run = _write_onnx(compressor, tmp_path / "n")
    # Any batch size works, and other tokens give another result.
    assert 0 < max(_error(compressor, run, batch) for batch in (1, 2, 5)) < 1e-5
    assert not torch.equal(run(torch.zeros(1, 49, 8)), run(torch.ones(1, 49, 8)))


def test_formats_are_added_measured_and_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_export(tmp_path / "mine")
    assert main(["export", str(folder), "--out", str(tmp_path / "copy"), "--format", "pt2", "onnx"]) == 0
    copy = tmp_path / "copy"
    assert not (folder / "model.onnx").exists()
    onnx.checker.check_model(str(copy / "model.onnx"))
    tokens = tokens_of(4)
    expected = tokconv.load_compressor(copy)(tokens)
    assert torch.equal(torch.export.load(copy / "model.pt2").module()(tokens), expected)
    session = onnxruntime.InferenceSession(copy / "model.onnx")
    (found,) = session.run(None, {"tokens": tokens.numpy()})
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    measured = read_config(copy)["formats"]
    assert measured["pt2"] == {"file": "model.pt2", "max_error": 0.0}
    assert 0 <= measured["onnx"]["max_error"] < 1e-5
    card = (copy / "README.md").read_text()
    assert f"load_compressor({str(copy)!r})" in card
    assert "- `model.pt2`: torch.export, float32, any batch size; bit-identical" in card
    said = "bit-identical" if measured["onnx"]["max_error"] == 0 else f"{measured['onnx']['max_error']:.1e}"
    assert said in next(line for line in card.splitlines() if line.startswith("- `model.onnx`: ONNX, opset 20"))
    # Formats can be added again in place; the rest is refused.
    assert main(["export", str(folder), "--format", "pt2"]) == 0
    assert (folder / "model.pt2").exists()
    capsys.readouterr()
    for arguments, message in (
        ([str(folder)], "is exported already"),
        ([str(folder), "--format", "tflite"], "--format: got 'tflite'"),
        ([str(folder), "--out", str(copy)], "exists; choose another place"),
        ([str(tmp_path), "--out", str(tmp_path / "x")], "nor an exported folder"),
        ([str(tmp_path)], "--out: missing; give the folder to write"),
    ):
        assert main(["export", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_one_folder_serves_tokconv_and_transformers(tmp_path: Path) -> None:
    # Overlapping windows are computed when a compressor is built, and no file holds them.
    folder = write_export(tmp_path / "mine", token_grid=5, grid=2)
    tokens = torch.randn(3, 25, 8, generator=torch.Generator().manual_seed(3))
    expected = tokconv.load_compressor(folder)(tokens)
    config = AutoConfig.from_pretrained(folder)
    assert config.description == {k: v for k, v in read_config(folder).items() if k in config.description}
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, tokconv.hf.TokconvModel)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(model(tokens).last_hidden_state, expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.5
    changed = model(tokens).last_hidden_state
    assert not torch.equal(changed, expected)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(tokconv.load_compressor(tmp_path / "again")(tokens), changed)
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "again")(tokens).last_hidden_state, changed)
    assert "saved again" in (tmp_path / "again" / "README.md").read_text()
    halved = {name: tensor / 2 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "given", state_dict=halved)
    model.load_state_dict(halved)
    assert torch.equal(tokconv.load_compressor(tmp_path / "given")(tokens), model(tokens).last_hidden_state)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").write_text("mine")
    with pytest.raises(CheckpointError, match="is no exported compressor"):
        model.save_pretrained(tmp_path / "other")


def test_another_format_version_is_refused_by_transformers_too(tmp_path: Path) -> None:
    folder = write_export(tmp_path / "mine")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tokconv_format": 99}))
    with pytest.raises(CheckpointError, match="reads format 1"):
        AutoModel.from_pretrained(folder)


def test_a_graph_runs_without_tokconv(tmp_path: Path) -> None:
    folder = write_export(tmp_path / "mine")
    assert main(["export", str(folder), "--format", "pt2"]) == 0
    load = "torch.export.load(sys.argv[1]).module()(torch.zeros(5, 16, 8)).shape"
    code = f"import sys, torch; print({load}, 'tokconv' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "model.pt2")], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.strip() == "torch.Size([5, 4, 8]) False"
