"""Tiny checkpoints and exported compressors for tests: random weights, plausible figures."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from support.networks import PUBLISHED
from tokconv.config.keys import to_dict
from tokconv.config.overrides import compose
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.exports.artefact import export
from tokconv.models.compressor import ResidualCompressor
from tokconv.models.decoder import ConvDecoder
from tokconv.training import checkpoint as checkpoints
from tokconv.training.networks import network_arguments

BASELINE = {"val/fvu": 0.1, "val/cosine": 0.9, "val/cosine_centered": 0.8, "val/swd": 0.1, "val/swd_floor": 0.05}


def write_checkpoint(path: Path, token_grid: int = 4, dim: int = 8, grid: int = 2, seed: int = 0) -> Path:
    """Write a checkpoint like those of `tokconv.training.loop`, after one epoch; return the path."""
    config = compose(
        [
            *PUBLISHED,
            f"model.compressor.output_grid_size={grid}",
            "model.compressor.num_layers=1",
            "model.compressor.hidden_dim=8",
            "model.autoencoder.num_layers=1",
            "model.autoencoder.hidden_dim=8",
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = {
            "compressor": ResidualCompressor(token_grid, dim, grid, num_layers=1, hidden_dim=8),
            "decoder": ConvDecoder(token_grid, dim, grid, num_layers=1, hidden_dim=8),
        }
    ratio = token_grid**2 / grid**2
    state = {
        "config": to_dict(config),
        "networks": network_arguments(config, token_grid, dim),
        "store_fingerprint": "0" * 16,
        "protocol": PROTOCOL,
        "token_grid": token_grid,
        "dim": dim,
        "encoder": {"name": "tiny", "revision": None, "layer": -2},
        "epoch": 1,
        "history": [{**BASELINE, "val/fvu": 0.05, "val/gain": 0.5, "compression_ratio": ratio, "epoch": 1.0}],
        "baselines": {"pooling": BASELINE, "window_pca": {**BASELINE, "val/fvu": 0.07}},
    }
    return checkpoints.save(path, modules, {}, state)


def write_export(path: Path, token_grid: int = 4, dim: int = 8, grid: int = 2, seed: int = 0) -> Path:
    """Write an exported compressor and return the path."""
    with tempfile.TemporaryDirectory() as scratch:
        return export(write_checkpoint(Path(scratch) / "checkpoint", token_grid, dim, grid, seed), path)
