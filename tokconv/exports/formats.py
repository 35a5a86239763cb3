"""An exported compressor in other formats; each file is compared with the compressor that it was made from.

    model.pt2     torch.export: a graph that torch runs without tokconv
    model.onnx    ONNX: for onnxruntime and what is built on it

Both take float32 batches of any size. The largest difference goes into config.json and the model card.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokconv.errors import CheckpointError, require_extra
from tokconv.exports.artefact import load_compressor, read_config, write_description
from tokconv.models.compressor import Compressor
from tokconv.system.files import atomic_path
from tokconv.system.registry import Registry

OPSET = 20
MAX_ERROR = 1e-3
"""Largest difference from the compressor, in units of the tokens' standard deviation, with which a file is written."""
BATCHES = (1, 3)

Run = Callable[[Tensor], Tensor]
Writer = Callable[[Compressor, Path], Run]


def check_formats(formats: Iterable[str]) -> dict[str, Writer]:
    """Return the writer of each format, in order.

    Raises:
        ConfigError: an unknown format.
        MissingExtraError: the packages of a format are not installed.
    """
    writers = {name: FORMATS[name] for name in formats}
    if "onnx" in writers:
        require_extra("onnx", "onnx", "onnxscript", "onnxruntime")
    return writers


def add_formats(folder: Path, formats: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Write more formats into an exported folder.

    Returns:
        By format: its file, the largest difference from the compressor (`max_error`), and for ONNX the opset.

    Raises:
        CheckpointError: the folder is not an export, or a file computes something else, which is then not written.
        ConfigError, MissingExtraError: as `check_formats`.
    """
    writers = check_formats(formats)
    if not writers:
        return {}
    compressor = load_compressor(folder)
    description = compressor.description or {}
    measured: dict[str, dict[str, Any]] = {}
    for name, write in writers.items():
        with atomic_path(folder / f"model.{name}") as temporary:
            run = write(compressor, temporary)
            error = max(_error(compressor, run, batch) for batch in BATCHES)
            if error > MAX_ERROR:
                raise CheckpointError(f"{name}: differs from the compressor by {error:.1e} of a token's deviation")
        measured[name] = {"file": f"model.{name}", "max_error": error} | ({"opset": OPSET} if name == "onnx" else {})
    write_description(folder, {**description, "formats": {**description.get("formats", {}), **measured}}, folder)
    return measured


def copy_export(source: Path, out: Path) -> Path:
    """Copy an exported folder. Raises CheckpointError if it is damaged or `out` is already in use."""
    load_compressor(source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: exists; choose another place, or name it as the source to add formats there")
    with atomic_path(out) as temporary:
        shutil.copytree(source, temporary)
        # Its card says where it is.
        write_description(temporary, read_config(source), out)
    return out


def _error(compressor: Compressor, run: Run, batch: int) -> float:
    """Return the largest difference on random tokens with the real ones' mean and deviation, in deviations."""
    shape = (batch, compressor.token_grid**2, compressor.dim)
    random = torch.randn(shape, generator=torch.Generator().manual_seed(batch))
    tokens_BNC = compressor.standardise.restore(random)
    with torch.inference_mode():
        found = run(tokens_BNC) - compressor(tokens_BNC)
    return float(found.abs().max() / compressor.standardise.scale)


def _example(compressor: Compressor) -> Tensor:
    return torch.zeros(2, compressor.token_grid**2, compressor.dim)


def _write_pt2(compressor: Compressor, path: Path) -> Run:
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(compressor, (_example(compressor),), dynamic_shapes=shapes)
    # A file object, because torch refuses a file name that does not end in .pt2.
    with path.open("wb") as file:
        torch.export.save(program, file)
    with path.open("rb") as file:
        module: Run = torch.export.load(file).module()
    return module


def _write_onnx(compressor: Compressor, path: Path) -> Run:
    import onnxruntime

    with warnings.catch_warnings():
        # torch warns about its own internals.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            compressor,
            (_example(compressor),),
            input_names=["tokens"],
            output_names=["compressed"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda tokens_BNC: torch.from_numpy(session.run(None, {"tokens": tokens_BNC.numpy()})[0])


FORMATS: Registry[Writer] = Registry("--format", {"pt2": _write_pt2, "onnx": _write_onnx})
