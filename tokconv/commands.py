"""What the commands do, apart from the sweep and the doctor: arguments in, files and a few lines of text out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from tokconv import export as exports
from tokconv.config import ClipConfig, to_dict
from tokconv.encode import plan
from tokconv.encoder import VisionTower, describe
from tokconv.errors import CheckpointError, DataError
from tokconv.files import atomic_path, new_numbered, newest_numbered, write_json
from tokconv.grid import check_output_grid
from tokconv.imagefiles import open_image
from tokconv.overrides import compose, from_dict
from tokconv.pictures import draw_compression
from tokconv.prepare import open_store
from tokconv.runtime import LocalRuntime, Metrics, resolve_device
from tokconv.store import TokenStore
from tokconv.terminal import progress_line
from tokconv.train import run_trial

TRAIN_RUNS = Path("runs/train")


def encode(overrides: Sequence[str], *, plan_only: bool, verify: bool, device: str | None) -> None:
    """`tokconv encode`. Raises TokconvError."""
    config = compose(overrides)
    if plan_only:
        found = plan(config)
        state = "complete already" if found.complete else "not yet encoded"
        print(
            f"{found.path}: {found.images} images x {found.tokens_per_image} tokens, {found.bytes / 1e6:.1f} MB in "
            f"{found.shards} shards ({state})"
        )
        return
    store = open_store(config, device=device)
    if verify:
        TokenStore.open(store.path, verify=True)
        print("every shard has the hash it was written with")


def train(overrides: Sequence[str], *, name: str, resume: bool, device: str | None) -> None:
    """`tokconv train`. Raises TokconvError."""
    run_dir = newest_numbered(TRAIN_RUNS, name) if resume else None
    if resume and run_dir is None:
        raise CheckpointError(f"{TRAIN_RUNS}: holds no run of {name!r} to resume; start it without --resume")
    if run_dir is not None and not overrides:
        config = from_dict(json.loads((run_dir / "config.json").read_text(encoding="utf-8")))
    else:
        config = compose(overrides)
    check_output_grid(config.model.compressor.output_grid_size, describe(config.model.clip).token_grid)
    store = open_store(config, device=device)
    run_dir = run_dir or new_numbered(TRAIN_RUNS, name)
    if not (run_dir / "config.json").exists():
        write_json(run_dir / "config.json", to_dict(config))
    with progress_line("training") as line:
        runtime = LocalRuntime(
            run_dir,
            device=device,
            on_report=lambda figures, _: line.message(_epoch_line(figures)),
            on_progress=line,
            resume=resume,
        )
        try:
            result = run_trial(config, store, runtime)
        except KeyboardInterrupt:
            line.close()
            print(f"stopped; go on with: tokconv train --resume --name {name}")
            raise
    print(f"checkpoint: {result.checkpoint}\nexport it: tokconv export {run_dir} --out compressor")


def export(checkpoint: Path, out: Path) -> None:
    """`tokconv export`. Raises CheckpointError."""
    if not (checkpoint / "state.json").is_file():
        newest = sorted((checkpoint / "checkpoints").glob("epoch-*"))
        if not newest:
            raise CheckpointError(f"{checkpoint}: neither a checkpoint nor a train run with one")
        checkpoint = newest[-1]
    written = exports.export(checkpoint, out)
    print(f"{written}: load it with tokconv.load_compressor({str(written)!r})")


def compress(
    images: Sequence[Path],
    *,
    compressor: Path,
    encoder: str | None,
    out: Path,
    picture: Path | None,
    device: str | None,
) -> None:
    """`tokconv compress`. Raises TokconvError."""
    description = exports.read_config(compressor)
    clip = ClipConfig(**description["clip"])
    if encoder is not None:
        clip = replace(clip, model_name=encoder, revision=None)
    spec = describe(clip)
    if spec.identity() != description["encoder"]:
        raise CheckpointError(
            f"{compressor}: was trained on tokens of {description['encoder']['name']} "
            f"({description['encoder']['revision']}), not of {clip.model_name} ({spec.revision})"
        )
    opened = [_open(path) for path in images]
    tower = VisionTower(clip, resolve_device(device))
    network = exports.load_compressor(compressor).to(tower.device)
    with torch.no_grad():
        tokens = tower.encode(tower.preprocess(opened))
        compressed = network(tokens).cpu()
    with atomic_path(out) as temporary:
        save_file({"tokens": compressed}, temporary, {"images": json.dumps([str(path) for path in images])})
    print(f"{out}: tokens {list(compressed.shape)}, {network.token_grid**2 / compressed.shape[1]:.3g}x fewer")
    if picture is not None:
        decoder = exports.load_decoder(compressor)
        draw_compression(network.cpu(), decoder, tokens.cpu(), picture, opened)
        print(f"{picture}: image, tokens, compressed grid, error of each token")


def _open(path: Path) -> Image.Image:
    try:
        return open_image(path)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise DataError(f"{path}: cannot be read as an image ({error})") from error


def _epoch_line(figures: Metrics) -> str:
    probe = f"  probe kept {figures['val/probe_kept']:.1%}" if "val/probe_kept" in figures else ""
    return (
        f"epoch {figures['epoch']:.0f}/{figures['epochs']:.0f}  fvu {figures['val/fvu']:.4f}"
        f"  gain {figures['val/gain']:+.3f}  swd {figures['val/swd']:.3f} (floor {figures['val/swd_floor']:.3f})"
        f"  cosine {figures['val/cosine']:.3f}{probe}"
    )
