"""The artefact: a compressor that loads with torch and safetensors alone.

    config.json            constructor arguments, the encoder and layer its tokens come from, figures, baselines
    model.safetensors      the compressor
    decoder.safetensors    its decoder: what pictures and error maps need; a language model does not
    README.md              the model card

Written whole or not at all; reloaded output is bit-identical.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokconv.errors import CheckpointError
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.models.registry import build_compressor, build_decoder
from tokconv.system.files import atomic_path, write_json
from tokconv.training import checkpoint as checkpoints

FORMAT = 1
MODEL_TYPE = "tokconv"
REGISTERED = {"model_type": MODEL_TYPE, "architectures": ["TokconvModel"]}
"""What tells transformers' AutoModel of `tokconv.hf`."""
DESCRIBED = (
    *("tokconv_format", "compressor", "decoder", "clip", "encoder", "store_fingerprint", "protocol", "figures"),
    *("baselines", "training", "evidence", "formats"),
)
"""The keys of config.json that are tokconv's own."""
Module = TypeVar("Module", Compressor, Decoder)
DEFAULT_KINDS = {"compressor": "residual", "decoder": "conv"}
"""What a network is whose config.json, an older one, names no kind."""
LARGEST = {"token_grid": 1024, "output_grid_size": 1024, "dim": 2**16, "hidden_dim": 2**16, "num_layers": 1024}
"""Sizes in a config.json; beyond them it would only take memory and time."""


def export(checkpoint: Path, out: Path, *, evidence: Mapping[str, Any] | None = None) -> Path:
    """Write the artefact of a checkpoint to the directory `out` (replaced when it is an older artefact).

    Args:
        evidence: what a sweep knows beyond this one run, with a `summary` in words; None outside a sweep.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or `out` holds something else.

    Example:
        >>> export(Path("run/checkpoints/epoch-0005"), Path("compressor"))    # doctest: +SKIP
    """
    saved = checkpoints.load(checkpoint)
    description = _describe(saved.state) | ({} if evidence is None else {"evidence": dict(evidence)})
    networks = {"model.safetensors": "compressor", "decoder.safetensors": "decoder"}
    return _write(description, {file: saved.module_weights(name) for file, name in networks.items()}, out)


def load_compressor(path: str | Path) -> Compressor:
    """Load an exported compressor: a `torch.nn.Module` in eval mode on the CPU, [B, N, C] -> [B, k*k, C].

    Args:
        path: the directory that `tokconv export` or a sweep wrote.

    Raises:
        CheckpointError: no artefact, damaged, or of another format version.

    Example:
        >>> compressor = load_compressor("runs/sweeps/demo/champions/grid-06")    # doctest: +SKIP
        >>> compressor(tokens).shape                                              # doctest: +SKIP
        torch.Size([1, 36, 64])
    """
    description = read_config(path)
    compressor = _load(build_compressor, "compressor", description, Path(path), "model.safetensors")
    compressor.description = description
    return compressor


def save_compressor(compressor: Compressor, out: Path, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Write a loaded compressor, trained further or not, as a folder that `load_compressor` reads; without a decoder.

    Args:
        out: replaced when it is an older artefact.
        weights: its state dict; by default what it has now.

    Raises:
        CheckpointError: it was not loaded from an export, or `out` holds something else.
    """
    if compressor.description is None:
        raise CheckpointError("only a compressor that load_compressor made can be saved: others have no description")
    before = compressor.description.get("evidence", {})
    summary = "saved again after it was loaded; the figures are those of the export that it was loaded from"
    description = {**compressor.description, "evidence": {**before, "status": "unconfirmed", "summary": summary}}
    kept = compressor.state_dict() if weights is None else weights
    return _write(description, {"model.safetensors": kept}, out)


def load_decoder(path: str | Path) -> Decoder:
    """Load the decoder of an exported compressor, a `torch.nn.Module` [B, k*k, C] -> [B, N, C] in evaluation mode.

    Raises:
        CheckpointError: no artefact, one without a decoder, damaged, or of another format version.

    Example:
        >>> decoder = load_decoder("runs/sweeps/demo/champions/grid-06")          # doctest: +SKIP
        >>> decoder(compressor(tokens)).shape                                     # doctest: +SKIP
        torch.Size([1, 576, 64])
    """
    return _load(build_decoder, "decoder", read_config(path), Path(path), "decoder.safetensors")


def read_config(path: str | Path) -> dict[str, Any]:
    """The artefact's config.json. Raises CheckpointError when it is none that this tokconv reads."""
    file = Path(path) / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path}: not an exported compressor (no config.json); tokconv export writes one")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged ({error})") from error
    check_format(description, path)
    return dict(description)


def _write(description: Mapping[str, Any], files: Mapping[str, Mapping[str, Tensor]], out: Path) -> Path:
    out = Path(out)
    if out.exists() and not is_export(out) and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: exists and is no exported compressor; choose another place")
    with atomic_path(out) as temporary:
        temporary.mkdir()
        write_json(temporary / "config.json", {**REGISTERED, **description})
        for file, weights in files.items():
            plain = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
            save_file(plain, temporary / file, {"format": "pt"})
        (temporary / "README.md").write_text(model_card(description), encoding="utf-8")
    return out


def is_export(path: Path) -> bool:
    """Whether `export` wrote this directory, in any format version: many other tools write a config.json, too."""
    try:
        return "tokconv_format" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (ValueError, TypeError, OSError):
        return False


def described(build: Callable[..., Module], name: str, description: Mapping[str, Any], where: object) -> Module:
    """The network that a config.json describes, without its weights. Raises CheckpointError when it describes none, or
    one that only an attack would."""
    arguments = description.get(name)
    for key, limit in LARGEST.items():
        size = arguments.get(key) if isinstance(arguments, Mapping) else None
        if isinstance(size, int | float) and size > limit:
            raise CheckpointError(f"{where}: {name}.{key} is {size}; at most {limit} is read")
    try:
        return build(**{"kind": DEFAULT_KINDS[name], **description[name]})
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{where}: damaged, it describes no {name}") from error


def check_format(description: object, where: object) -> None:
    """Raise CheckpointError unless this tokconv reads such a config.json."""
    if not isinstance(description, Mapping) or description.get("tokconv_format") != FORMAT:
        raise CheckpointError(f"{where}: not a compressor of this format; this tokconv reads format {FORMAT}")


def _load(build: Callable[..., Module], name: str, description: Mapping[str, Any], path: Path, file: str) -> Module:
    module = described(build, name, description, path / "config.json")
    try:
        module.load_state_dict(load_file(path / file))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path / file}: damaged or of another architecture than its config.json") from error
    return module.eval()


def _describe(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tokconv_format": FORMAT,
        **state["networks"],
        "clip": state["config"]["model"]["clip"],
        "encoder": state["encoder"],
        "store_fingerprint": state["store_fingerprint"],
        "protocol": state["protocol"],
        "figures": state["history"][-1],
        "baselines": state["baselines"],
        "training": {"loss": state["config"]["loss"], **state["config"]["training"]},
    }


CARD_FIGURES = {
    "val/fvu": "fraction of variance unexplained (0 is perfect)",
    "val/gain": "share of pooling's error that is gone",
    "val/cosine": "cosine of reconstructed and real tokens",
    "val/cosine_centered": "the same with the mean removed",
    "val/swd": "sliced Wasserstein distance to real tokens",
    "val/swd_floor": "the same distance, real against real",
    "val/mmd": "squared maximum mean discrepancy to real tokens, unbiased",
    "val/mmd_floor": "the same, real against real: 0 on average",
    "val/knn_overlap": "share of the 10 nearest images kept by reconstructions",
    "val/knn_overlap_halves": "the same between two halves of each image's real tokens",
    "val/cka": "alignment (CKA) of reconstructed with real images",
    "val/cka_halves": "the same between two halves of each image's real tokens",
    "val/probe_accuracy": "linear probe on reconstructed tokens",
    "val/probe_kept": "share of the uncompressed probe's accuracy",
    "val/reader_accuracy": "the same probe, not retrained, on compressed tokens",
    "val/reader_kept": "share of the uncompressed probe's accuracy kept by it",
    "val/reader_sampled": "the same reading of one real token of each window",
}


def model_card(description: Mapping[str, Any]) -> str:
    """The model card, Markdown: what it compresses, its figures beside the baselines', how to load it."""
    sizes, figures, baselines = description["compressor"], description["figures"], description["baselines"]
    tokens, cells = sizes["token_grid"] ** 2, sizes["output_grid_size"] ** 2
    columns = [("this compressor", figures), *((name.replace("_", " "), values) for name, values in baselines.items())]
    rows = [
        f"| {meaning} (`{name}`) | " + " | ".join(_cell(values.get(name)) for _, values in columns) + " |"
        for name, meaning in CARD_FIGURES.items()
        if name in figures
    ]
    header = "| held-out figure | " + " | ".join(title for title, _ in columns) + " |"
    formats = description.get("formats", {})
    others = [f"- `{known['file']}`: {_format_line(name, known)}" for name, known in formats.items()]
    return "\n".join(
        [
            # What the Hugging Face hub reads.
            "---",
            "library_name: tokconv",
            "license: other",
            "tags: [clip, vision-language, token-compression]",
            "---",
            "",
            f"# CLIP token compressor, {tokens} to {cells} tokens ({tokens / cells:.3g}x)",
            "",
            f"Compresses [batch, {tokens}, {sizes['dim']}] patch tokens (no CLS) to [batch, {cells}, {sizes['dim']}].",
            "",
            f"- Encoder: `{description['encoder']['name']}`, hidden layer {description['encoder']['layer']}",
            f"- Token store: `{description['store_fingerprint']}`, evaluation protocol {description['protocol']}",
            f"- Evidence: {description.get('evidence', {}).get('summary', 'one run, not confirmed over seeds')}",
            *others,
            "",
            header,
            "| --- |" + " ---: |" * len(columns),
            *rows,
            "",
            "```python",
            "import tokconv",
            "",
            'compressor = tokconv.load_compressor("PATH/OF/THIS/FOLDER")',
            f"compressed = compressor(tokens)  # [batch, {tokens}, {sizes['dim']}] to [batch, {cells}, {sizes['dim']}]",
            "```",
            "",
        ]
    )


def _format_line(name: str, known: Mapping[str, Any]) -> str:
    what = {"pt2": "torch.export", "onnx": f"ONNX, opset {known.get('opset')}"}[name]
    error = known["max_error"]
    same = "bit-identical" if error == 0 else f"differs by at most {error:.1e} of a token's deviation"
    return f"{what}, float32, any batch size; {same} on 4 random images"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    # Four decimals say nothing of a discrepancy of 0.00001 or an alignment of 0.99996.
    return f"{value:.6f}" if abs(value) < 0.005 or 0.9995 < value < 1 else f"{value:.4f}"
