"""The fits of baselines beside a store: made once, read by later versions, refused if they are damaged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.baselines import fits_of
from support.stores import write_store

from tokconv.errors import StoreError
from tokconv.evaluation.baselines import fits, fitting
from tokconv.evaluation.baselines.fitting import fitted_baselines
from tokconv.evaluation.codecs import run_codec


def test_only_what_is_asked_for_is_fitted_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, seen = write_store(tmp_path / "own", num_images=8), []
    fitting.fit_together(
        own, 2, ["pooling", "matched_window_pca"], lambda done, total, what: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0
    assert [path.name for path in own.derived_dir.glob("*.safetensors")] == ["codec-windows-v3-grid-02.safetensors"]
    first = fitted_baselines(own, 2).linear["pooling"]
    monkeypatch.setattr(fitting, "fit_part", lambda *_: pytest.fail("fitted again"))
    assert torch.equal(fitted_baselines(own, 2).linear["pooling"].encode_weight, first.encode_weight)
    fitting.fit_together(own, 2, ["window_pca"], lambda done, total, what: pytest.fail("fitted again"))


def test_the_one_file_of_older_versions_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = write_store(tmp_path / "own", num_images=8)
    path, tensors = own.derived_dir / "codecs-v3-grid-02.safetensors", fits_of(own, 2)
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"store": own.fingerprint})
    monkeypatch.setattr(fitting, "fit_part", lambda *_: pytest.fail("fitted again"))
    decoder = fitted_baselines(own, 2).linear["matched_window_pca"].decode_weight
    assert torch.equal(decoder, tensors["matched_window_pca.decode_weight"])
    tokens = own.tokens(own.val_indices)
    assert all(len(run_codec(codec, tokens, own.val_indices)) for codec in fitted_baselines(own, 2).codecs.values())


def test_damaged_and_foreign_codecs_are_refused(tmp_path: Path) -> None:
    own = write_store(tmp_path / "own", num_images=8)

    def read() -> object:
        return fitted_baselines(own, 2).linear["pooling"]

    assert read()
    path = next(own.derived_dir.glob("codec-windows-*.safetensors"))
    whole = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for damaged in (b"", whole[: len(whole) // 2], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"damaged .* remove it and it is computed again"):
            read()
    save_file(tensors, path, {"store": "another"})
    with pytest.raises(StoreError, match=r"computed from something else .*store 'another'"):
        read()
    lacking = {name: tensor for name, tensor in tensors.items() if name != "window_pca.decode_bias"}
    for changed in (
        {**tensors, "pooling.decode_bias": torch.zeros(3)},
        {**tensors, fits.SHORTFALL: torch.tensor(math.nan)},
        lacking,
    ):
        save_file(changed, path, {"store": own.fingerprint})
        with pytest.raises(StoreError, match="damaged"):
            read()
    path.unlink()
    assert read()
