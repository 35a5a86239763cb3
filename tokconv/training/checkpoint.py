"""Checkpoints: directories of weights, optimizer states, and one JSON file with the config and the loop's state.

    weights.safetensors    every module, its keys prefixed with its name ("compressor.projection.weight")
    optimizers.pt          tensors and numbers only, read with weights_only=True
    state.json             format version, config, store fingerprint, figures of every epoch and of the best ones
    best-0003.safetensors  compressor and decoder of a best epoch that is not the newest (`tokconv.training.best`)

Written whole or not at all. Checkpoints of earlier versions hold no best epochs: their newest one is all that is left.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokconv.errors import CheckpointError, first_line
from tokconv.system.files import atomic_path, write_json

FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint: weights by prefixed name, optimizer states by name, the loop's state."""

    path: Path
    weights: dict[str, Tensor]
    optimizers: dict[str, dict[str, Any]]
    state: dict[str, Any]

    def restore(self, modules: Mapping[str, nn.Module]) -> None:
        """Load every module's weights. Raises CheckpointError if names or shapes differ."""
        for name, module in modules.items():
            try:
                module.load_state_dict(self.module_weights(name))
            except RuntimeError as error:
                reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
                raise CheckpointError(
                    f"{self.path}: its {name} has another architecture than this config ({reason})"
                ) from error

    def module_weights(self, name: str) -> dict[str, Tensor]:
        """Return the state dict of one module, without its prefix."""
        return {key[len(name) + 1 :]: value for key, value in self.weights.items() if key.startswith(f"{name}.")}

    @property
    def figures(self) -> dict[str, float]:
        """The figures of the epoch that the weights are of."""
        return dict(self.state["history"][-1])

    @property
    def best_rows(self) -> dict[str, dict[str, float]]:
        """Figure -> figures of the best epoch by it; empty for a checkpoint of an earlier version."""
        return dict(self.state.get("best", {}))

    def best_weights(self) -> dict[int, dict[str, Tensor]]:
        """Return epoch -> weights of the best epochs that are not the newest. Raises CheckpointError."""
        epochs = {int(row["epoch"]) for row in self.best_rows.values()} - {int(self.figures["epoch"])}
        return {epoch: _load_weights(self.path, _best_file(epoch)) for epoch in sorted(epochs)}

    def best(self, figure: str) -> Checkpoint:
        """Return the checkpoint with the figures and the weights of the best epoch by a figure, as its last ones.

        The newest epoch stands for a figure by which no epochs were compared. Raises CheckpointError.
        """
        row = self.best_rows.get(figure, self.figures)
        weights, epoch = self.weights, int(row["epoch"])
        if epoch != self.figures["epoch"]:
            weights = _load_weights(self.path, _best_file(epoch))
        history = [before for before in self.state["history"] if before["epoch"] < epoch]
        return replace(self, weights=weights, state={**self.state, "history": [*history, row]})


def save(
    directory: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Any],
    best: Mapping[int, Mapping[str, Tensor]] = MappingProxyType({}),
) -> Path:
    """Write a checkpoint directory atomically and return it.

    Args:
        state: JSON values, at least `config` and `store_fingerprint`.
        best: epoch -> weights by prefixed name, of the best epochs that are not the newest.
    """
    weights = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    with atomic_path(directory) as temporary:
        temporary.mkdir()
        save_file(weights, temporary / "weights.safetensors")
        for epoch, kept in best.items():
            save_file(dict(kept), temporary / _best_file(epoch))
        torch.save({name: opt.state_dict() for name, opt in optimizers.items()}, temporary / "optimizers.pt")
        write_json(temporary / "state.json", {"format": FORMAT, **state})
    return directory


def load(directory: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; nothing in it is unpickled.

    Raises:
        CheckpointError: it is missing, damaged, or of another format version.
    """
    directory = Path(directory)
    state, weights = load_state(directory), _load_weights(directory, "weights.safetensors")
    try:
        optimizers = torch.load(directory / "optimizers.pt", map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{directory}: damaged checkpoint ({first_line(error)})") from error
    return Checkpoint(directory, weights, optimizers, state)


def load_state(directory: Path) -> dict[str, Any]:
    """Read only the JSON of a checkpoint: config, epoch, figures. Raises CheckpointError."""
    path = Path(directory) / "state.json"
    if not path.is_file():
        raise CheckpointError(f"{directory}: not a checkpoint (no state.json)")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({first_line(error)})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{directory}: checkpoint of another format version; this tokconv reads {FORMAT}")
    return state


def _best_file(epoch: int) -> str:
    return f"best-{epoch:04d}.safetensors"


def _load_weights(directory: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(directory / name)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{directory}: damaged checkpoint ({first_line(error)})") from error
