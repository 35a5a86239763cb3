"""tokconv: learned compression of the patch tokens of CLIP and other vision towers.

From images to a compressor:

    import tokconv

    config = tokconv.compose(["data=folder", "data.root=photos", "model.compressor.output_grid_size=6"])
    store = tokconv.encode(config)  # images to tokens, once
    result = tokconv.train(config, store, "runs/first")  # trains on the tokens alone
    folder = tokconv.export(result, "my-compressor")  # weights, config.json, model card
    print(tokconv.evaluate(folder, store)["val/fvu"])  # held-out error: 0 is perfect

    compressor = tokconv.load_compressor(folder)  # a torch module
    tokens = store.tokens(store.val_indices[:8])  # [8, 576, 1024]
    compressed = compressor(tokens)  # [8, 36, 1024]

The public names:

    compose            a config, from overrides such as "training.epochs=5"
    encode             images to a token store
    TokenStore         the tokens of all images, on disk
    train              one compressor, trained and evaluated on held-out images
    evaluate           the held-out figures of a compressor
    export             a checkpoint, as a folder that loads with torch and safetensors alone
    load_compressor    an exported compressor, as a torch module
    load_decoder       its decoder, which restores the uncompressed tokens
    load_dynamic       the compressors of a sweep, which give each image the smallest grid that is good enough
    load_ragged        a file with the tokens of images that have different grids
    sweep              the subpackage that reads finished sweeps: `tokconv.sweep.load`

Importing tokconv imports neither torch nor Ray nor MLflow: each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Read by OpenMP when torch loads it, and inherited by every child and every worker of Ray that is started from here.
# Threads that spin while they wait starve whatever else runs on the cores: beside one busy process, five training steps
# took 192 s, and take 12 s with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from tokconv import sweep
    from tokconv.config.overrides import compose
    from tokconv.encoding.pipeline import encode
    from tokconv.exports.artefact import export, load_compressor, load_decoder
    from tokconv.exports.dynamic.compressor import load_dynamic
    from tokconv.exports.dynamic.ragged import load_ragged
    from tokconv.exports.evaluate import evaluate
    from tokconv.store.reader import TokenStore
    from tokconv.training.api import train

__version__ = "0.1.0"
__all__ = [
    "TokenStore",
    "__version__",
    "compose",
    "encode",
    "evaluate",
    "export",
    "load_compressor",
    "load_decoder",
    "load_dynamic",
    "load_ragged",
    "sweep",
    "train",
]
_HOMES = {
    "TokenStore": "tokconv.store.reader",
    "compose": "tokconv.config.overrides",
    "encode": "tokconv.encoding.pipeline",
    "evaluate": "tokconv.exports.evaluate",
    "export": "tokconv.exports.artefact",
    "load_compressor": "tokconv.exports.artefact",
    "load_decoder": "tokconv.exports.artefact",
    "load_dynamic": "tokconv.exports.dynamic.compressor",
    "load_ragged": "tokconv.exports.dynamic.ragged",
    "train": "tokconv.training.api",
}


def __getattr__(name: str) -> Any:
    if name == "sweep":
        return importlib.import_module("tokconv.sweep")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tokconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
