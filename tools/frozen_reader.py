"""The frozen reader: the accuracy of the demo tower's own last layer and head if they read compressed tokens.

The tower was trained on 24 x 24 tokens and is not retrained: its last layer attends from the class token to k x k
compressed tokens instead, and its head classifies as before. Only held-out digits are used.

    python tools/frozen_reader.py runs/sweeps/demo-001/champions/grid-*/*
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionModel

from tokconv.config.tree import ClipConfig
from tokconv.encoding.sources.bundled import DigitsSource
from tokconv.encoding.towers.hub import locate
from tokconv.encoding.towers.tower import BUNDLED, VisionTower
from tokconv.exports.artefact import load_compressor
from tokconv.models.windows import Windows

BATCH = 64


class Reader:
    """The bundled tower after hidden layer -2, and the held-out digits at that layer."""

    def __init__(self) -> None:
        folder = locate(BUNDLED, None).folder
        tower = CLIPVisionModel.from_pretrained(folder).eval()
        self.last = tower.encoder.layers[-1] if hasattr(tower, "encoder") else tower.vision_model.encoder.layers[-1]
        self.norm = tower.post_layernorm if hasattr(tower, "encoder") else tower.vision_model.post_layernorm
        weights = load_file(folder / "head.safetensors")
        self.head = nn.Linear(*reversed(weights["weight"].shape))
        self.head.load_state_dict(weights)
        source = DigitsSource()
        held_out = [index for index, item in enumerate(source.items) if item.split == "val"]
        self.labels = torch.tensor([source.items[index].label for index in held_out])
        preprocess = VisionTower(ClipConfig(model_name=BUNDLED), "cpu").preprocess
        states = []
        with torch.inference_mode():
            for start in range(0, len(held_out), BATCH):
                pixels = preprocess([source.load(index) for index in held_out[start : start + BATCH]])
                states.append(tower(pixels, output_hidden_states=True).hidden_states[-2])
        self.states = torch.cat(states)

    @torch.inference_mode()
    def accuracy(self, compress: Callable[[Tensor], Tensor] | None = None) -> float:
        """Return the share of held-out digits classified correctly, from all tokens or from compressed ones."""
        hits = 0
        for states, labels in zip(self.states.split(BATCH), self.labels.split(BATCH), strict=True):
            tokens = states[:, 1:] if compress is None else compress(states[:, 1:])
            read = self.last(torch.cat([states[:, :1], tokens], 1), attention_mask=None)
            read = read if isinstance(read, Tensor) else read[0]
            hits += int((self.head(self.norm(read[:, 0])).argmax(1) == labels).sum())
        return hits / len(self.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compressors", type=Path, nargs="+", help="exported compressors of the bundled digits")
    args = parser.parse_args()
    reader = Reader()
    print(f"{'all 576 tokens':<50} {reader.accuracy():.1%}")
    grids = set()
    for path in args.compressors:
        compressor = load_compressor(path)
        grids.add(compressor.output_grid_size)
        print(f"{path!s:<50} {reader.accuracy(compressor):.1%}")
    for grid in sorted(grids):
        windows = Windows(24, grid)
        print(f"{f'pooling to {grid}x{grid}':<50} {reader.accuracy(lambda t, w=windows: w.split(t).mean(2)):.1%}")


if __name__ == "__main__":
    main()
