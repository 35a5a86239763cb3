"""The artefact: a compressor that loads with torch and safetensors alone.

    config.json            constructor arguments, the encoder and layer that its tokens come from, figures, baselines
    model.safetensors      the compressor
    decoder.safetensors    its decoder, which pictures and error maps need and a language model does not
    README.md              the model card

It is written whole or not at all, and its output is bit-identical after reloading.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokconv.errors import CheckpointError, ConfigError, suggest
from tokconv.evaluation.epochs import run_rule
from tokconv.evaluation.figures import FIGURES
from tokconv.exports.card import model_card
from tokconv.exports.champions import find_champion, is_export
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.models.registry import build_compressor, build_decoder
from tokconv.system.files import atomic_path, write_json, write_text
from tokconv.training import checkpoint as checkpoints
from tokconv.training.runtime import checkpoints_of

if TYPE_CHECKING:
    from tokconv.training.loop import TrialResult

FORMAT = 1
MODEL_TYPE = "tokconv"
REGISTERED = {"model_type": MODEL_TYPE, "architectures": ["TokconvModel"]}
"""The entries of config.json by which transformers' AutoModel finds the classes of `tokconv.hf`."""
OWN_KEYS = (
    *("tokconv_format", "compressor", "decoder", "clip", "encoder", "store_fingerprint", "protocol", "figures"),
    *("baselines", "training", "evidence", "formats"),
)
"""The keys of config.json that belong to tokconv and not to transformers."""
Module = TypeVar("Module", Compressor, Decoder)
FILES = {"compressor": "model.safetensors", "decoder": "decoder.safetensors"}
"""The file of each network's weights."""
DEFAULT_KINDS = {"compressor": "residual", "decoder": "conv"}
"""The kinds of networks in older config.json files, which name none."""
MAX_SIZES = {
    "token_grid": 1024,
    "output_grid_size": 1024,
    "dim": 2**16,
    "hidden_dim": 2**16,
    "num_layers": 1024,
    "rank": 2**16,
}
"""Largest sizes that are read from a config.json; a larger one can only be meant to exhaust memory and time."""


def export(
    source: str | Path | TrialResult,
    out: str | Path,
    *,
    evidence: Mapping[str, Any] | None = None,
    epoch: str = "best",
) -> Path:
    """Write the artefact of a trained compressor to the directory `out`; an older artefact there is replaced.

    Args:
        source: what `tokconv.train` returned, a train run's directory, or a checkpoint.
        evidence: what a sweep knows beyond this one run, with a `summary` in words; None outside a sweep.
        epoch: which one is written. "best" is that of the figure by which a run outside a sweep compares its epochs:
            val/fvu, and vlm/kl if a vision-language model taught. A figure is its own best epoch; the best may be the
            start, epoch 0. "last" is the newest epoch, which may be worse than the start.

    Returns:
        `out`.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or `out` holds something else.
        ConfigError: `epoch` is neither of the two and no figure.

    Example:
        >>> tokconv.export(tokconv.train(config, store, "runs/first"), "my-compressor")    # doctest: +SKIP
    """
    if epoch not in (known := ("best", "last", *FIGURES)):
        raise ConfigError(f"epoch: got {epoch!r}; {suggest(epoch, known)}")
    saved = checkpoints.load(find_checkpoint(source))
    if epoch != "last":
        saved = saved.best(run_rule(saved.best_rows).figure if epoch == "best" else epoch)
    state = saved.state
    description = {
        "tokconv_format": FORMAT,
        **state["networks"],
        "clip": state["config"]["model"]["clip"],
        "encoder": state["encoder"],
        "store_fingerprint": state["store_fingerprint"],
        "protocol": state["protocol"],
        "figures": saved.figures,
        "baselines": state["baselines"],
        # Of a closed form, losses and epochs of its config say nothing.
        "training": {"loss": state["config"]["loss"], **state["config"]["training"]}
        if state.get("trained", True)
        else {"epochs": 0},
        **({} if evidence is None else {"evidence": dict(evidence)}),
    }
    return _write(description, {name: saved.module_weights(name) for name in FILES}, Path(out))


def find_checkpoint(source: str | Path | TrialResult) -> Path:
    """Return the checkpoint of a trial's result, the newest one of a train run's directory, or `source` if it is one.

    Raises:
        CheckpointError: there is none.
    """
    if not isinstance(source, str | Path):
        if source.checkpoint is None:
            raise CheckpointError("this trial left no checkpoint; only the worker of rank 0 writes one")
        return source.checkpoint
    path = Path(source)
    if (path / "state.json").is_file():
        return path
    of_run = checkpoints_of(path)
    if not of_run:
        raise CheckpointError(f"{path}: neither a checkpoint, nor a train run with one, nor an exported folder")
    return of_run[-1]


def load_compressor(path: str | Path, *, grid: int | None = None, purpose: str | None = None) -> Compressor:
    """Load an exported compressor: a `torch.nn.Module` in eval mode on the CPU, [B, N, C] -> [B, k*k, C].

    Args:
        path: the directory that `tokconv.export` or `tokconv export` wrote; a sweep, by its directory or name; one
            champion of it, as "demo:6" or "demo:6:plug-in"; or a model in MLflow's registry, which is at
            MLFLOW_TRACKING_URI or in `runs`, as "models:/tokconv-demo-6x6@champion".
        grid: k, among the champions of a sweep; None if they have one grid.
        purpose: among those of the grid: "fidelity", "plug-in" or "adapted"; None takes fidelity if there are several.

    Raises:
        CheckpointError: it is not an artefact, damaged, or of another format version; or a sweep has no such champion,
            or several that fit, which the message lists.
        MissingExtraError: a registered model, and MLflow is not installed.

    Example:
        >>> compressor = tokconv.load_compressor("demo:6:plug-in")    # doctest: +SKIP
        >>> compressor(tokens).shape                                  # doctest: +SKIP
        torch.Size([1, 36, 64])
    """
    folder = find_champion(path, grid, purpose)
    description = read_config(folder)
    compressor = _load(build_compressor, "compressor", description, folder)
    compressor.description = description
    return compressor


def load_decoder(path: str | Path, *, grid: int | None = None, purpose: str | None = None) -> Decoder:
    """Load an exported compressor's decoder: a `torch.nn.Module` in eval mode on the CPU, [B, k*k, C] -> [B, N, C].

    Args:
        path, grid, purpose: as for `load_compressor`.

    Raises:
        CheckpointError: as for `load_compressor`, or the artefact has no decoder.

    Example:
        >>> decoder = tokconv.load_decoder("demo:6:plug-in")    # doctest: +SKIP
        >>> decoder(compressor(tokens)).shape               # doctest: +SKIP
        torch.Size([1, 576, 64])
    """
    folder = find_champion(path, grid, purpose)
    return _load(build_decoder, "decoder", read_config(folder), folder)


def save_compressor(compressor: Compressor, out: Path, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Write a loaded compressor, trained further or not, as a folder that `load_compressor` reads; without a decoder.

    Args:
        out: an older artefact there is replaced.
        weights: its state dict; None takes the current one.

    Raises:
        CheckpointError: the compressor was not loaded from an export, or `out` holds something else.
    """
    if compressor.description is None:
        raise CheckpointError("only a compressor that load_compressor made can be saved: others have no description")
    before = compressor.description.get("evidence", {})
    summary = "saved again after it was loaded; the figures are those of the export that it was loaded from"
    description = {**compressor.description, "evidence": {**before, "status": "unconfirmed", "summary": summary}}
    return _write(description, {"compressor": compressor.state_dict() if weights is None else weights}, out)


def write_description(folder: Path, description: Mapping[str, Any], place: Path) -> None:
    """Write an artefact's config.json and its model card to a folder that is, or becomes, `place`."""
    write_json(folder / "config.json", {**REGISTERED, **description})
    write_text(folder / "README.md", model_card(description, place))


def read_config(path: str | Path) -> dict[str, Any]:
    """Read an artefact's config.json. Raises CheckpointError if this tokconv cannot read it."""
    file = Path(path) / "config.json"
    if not is_export(Path(path)) and checkpoints_of(Path(path)):
        raise CheckpointError(
            f"{path}: a train run, and no exported compressor; export it first: tokconv export "
            f"{shlex.quote(str(path))} --out FOLDER"
        )
    if not file.is_file():
        raise CheckpointError(f"{path}: not an exported compressor (no config.json); tokconv export writes one")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged ({error})") from error
    check_format(description, path)
    return dict(description)


def check_format(description: object, where: object) -> None:
    """Raise CheckpointError unless this tokconv reads such a config.json."""
    if not isinstance(description, Mapping) or description.get("tokconv_format") != FORMAT:
        raise CheckpointError(f"{where}: not a compressor of this format; this tokconv reads format {FORMAT}")


def build_described(build: Callable[..., Module], name: str, description: Mapping[str, Any], where: object) -> Module:
    """Build the network that a config.json describes, without its weights.

    Raises:
        CheckpointError: the description is damaged, or its sizes are beyond `MAX_SIZES`.
    """
    arguments = description.get(name)
    for key, limit in MAX_SIZES.items():
        size = arguments.get(key) if isinstance(arguments, Mapping) else None
        if isinstance(size, int | float) and size > limit:
            raise CheckpointError(f"{where}: {name}.{key} is {size}; at most {limit} is read")
    try:
        return build(**{"kind": DEFAULT_KINDS[name], **description[name]})
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{where}: damaged, it describes no {name}") from error


def _load(build: Callable[..., Module], name: str, description: Mapping[str, Any], path: Path) -> Module:
    _check_path(path)
    module, file = build_described(build, name, description, path / "config.json"), path / FILES[name]
    try:
        module.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{file}: damaged or of another architecture than its config.json") from error
    return module.eval()


def _check_path(path: Path) -> None:
    """Raise CheckpointError for a path that safetensors writes to and then cannot open."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{path}: safetensors opens only names in UTF-8; choose another one") from error


def _write(description: Mapping[str, Any], networks: Mapping[str, Mapping[str, Tensor]], out: Path) -> Path:
    _check_path(out)
    if out.exists() and not is_export(out) and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: exists and is no exported compressor; choose another place")
    with atomic_path(out) as temporary:
        temporary.mkdir()
        write_description(temporary, description, out)
        for name, weights in networks.items():
            plain = {key: tensor.detach().contiguous() for key, tensor in weights.items()}
            save_file(plain, temporary / FILES[name], {"format": "pt"})
    return out
