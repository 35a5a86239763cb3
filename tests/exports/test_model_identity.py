"""Which model a directory holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from tokconv.exports.answers.identity import identity_of
from tokconv.system.files import write_json


def test_a_model_with_one_retrained_tensor_is_another_one(tmp_path: Path) -> None:
    """Also a small tensor among large ones, as a projector is; a copy of the files is the same model."""
    shapes = {f"{kind}.{layer}": size for layer in range(4) for kind, size in (("large", 2**20), ("small", 2**12))}
    weights = {name: torch.zeros(size) for name, size in shapes.items()}
    write_json(tmp_path / "model" / "config.json", {"model_type": "llava"})
    save_file(weights, tmp_path / "model" / "model.safetensors")
    found = {identity_of(tmp_path / "model")}
    shutil.copytree(tmp_path / "model", tmp_path / "again")
    assert identity_of(tmp_path / "again") in found
    for name in ("small.0", "small.2", "large.3"):
        noise = torch.randn(shapes[name], generator=torch.Generator().manual_seed(0))
        save_file({**weights, name: weights[name] + noise}, tmp_path / "again" / "model.safetensors")
        found.add(identity_of(tmp_path / "again"))
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "again")
    (tmp_path / "again" / "tokenizer.json").write_text("{}")
    assert identity_of(tmp_path / "again") not in found
    assert len(found) == 4
