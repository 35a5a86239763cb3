"""What encode, train and export do: arguments in, files and a few lines of text out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokconv.config.overrides import compose, from_dict, parse, with_values
from tokconv.config.tree import Config, get, to_dict
from tokconv.encoding.images import describe_tokens
from tokconv.encoding.plan import Encoders, describe_plan
from tokconv.encoding.progress import open_store
from tokconv.errors import CheckpointError, ConfigError
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.protocol import check_resumable, other_protocol
from tokconv.exports import artefact as exports
from tokconv.exports.formats import add_formats, check_formats, copy_export
from tokconv.models.windows import check_output_grid, compression_ratio
from tokconv.store.reader import TokenStore
from tokconv.system.devices import resolve_device
from tokconv.system.files import NAME, NAME_RULE, new_numbered, newest_numbered, write_json
from tokconv.system.terminal import progress_line
from tokconv.training.checkpoint import load_state
from tokconv.training.loop import check_store, run_trial
from tokconv.training.runtime import LocalRuntime, Metrics, checkpoints_of

TRAIN_RUNS = Path("runs/train")
SHOWN_BASELINES = {"pooling": "pooling", "matched_window_pca": "matched PCA"}

COLUMNS: dict[str, tuple[str, str]] = {
    "val/fvu": ("fvu", ".4f"),
    "val/gain": ("gain", "+.3f"),
    "val/cosine": ("cosine", ".3f"),
    "val/swd": ("swd", ".3f"),
    "val/probe_kept": ("probe kept", ".1%"),
}
LEGEND = (
    "held-out figures; fvu: error, 0 is perfect, 1 is the mean token; gain: share of pooling's error that is gone;\n"
    "swd: distance from real tokens, at best about {floor:.3f}"
)


def encode(
    overrides: Sequence[str],
    *,
    plan_only: bool,
    verify: bool,
    device: str | None,
    encoders: Encoders | None = None,
    images: int | None = None,
    images_per_second: float | None = None,
) -> None:
    """`tokconv encode`. Raises TokconvError."""
    config = compose(overrides)
    if plan_only:
        place = resolve_device(device)
        print(
            describe_plan(config, device=place, encoders=encoders, images=images, images_per_second=images_per_second)
        )
        return
    encode_with = None
    if encoders is not None:
        # Only then is Ray imported.
        from tokconv.encoding.pool import encode_with_pool

        encode_with = partial(encode_with_pool, config, encoders)
    try:
        store = open_store(config, device=device, encode_with=encode_with)
    except KeyboardInterrupt:
        print("stopped; finished shards are kept, the same command goes on")
        raise
    if verify:
        TokenStore.open(store.path, verify=True)
        print("every shard has the hash it was written with")


def train(overrides: Sequence[str], *, name: str, resume: bool, device: str | None) -> None:
    """`tokconv train`. Raises TokconvError."""
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"--name: got {name!r}; {NAME_RULE}")
    run_dir = _run_to_resume(name) if resume else None
    config = compose(overrides) if run_dir is None else _resumed_config(run_dir, overrides)
    if run_dir is not None and _finished(run_dir, config):
        return
    token_grid = describe_tokens(config).token_grid
    grid = config.model.compressor.output_grid_size
    check_output_grid(grid, token_grid)
    again = "" if name == "train" else f" --name {name}"
    try:
        store = open_store(config, device=device)
        check_store(config, store)
        run_dir = run_dir or new_numbered(TRAIN_RUNS, name)
        if not (run_dir / "config.json").exists():
            write_json(run_dir / "config.json", to_dict(config))
        ratio = f"{compression_ratio(token_grid, grid):.3g}x fewer"
        print(f"run: {run_dir} on {resolve_device(device)}, {token_grid**2} to {grid**2} tokens ({ratio})")
        _train(config, store, run_dir, device, resume)
    except KeyboardInterrupt:
        how = f" --resume{again}" if run_dir is not None else f"{again} {shlex.join(overrides)}".rstrip()
        print(f"stopped; go on with: tokconv train{how}")
        raise
    print(_next_step(run_dir))


def _train(config: Config, store: TokenStore, run_dir: Path, device: str | None, resume: bool) -> None:
    baselines = baseline_figures(store, config.model.compressor.output_grid_size)
    print(f"\n{LEGEND.format(floor=baselines['pooling']['val/swd_floor'])}\n\n{_header(baselines['pooling'])}")
    for baseline, title in SHOWN_BASELINES.items():
        print(_row(title, baselines[baseline]), flush=True)
    steps = 0
    with progress_line("training") as line:

        def progress(done: int, total: int) -> None:
            nonlocal steps
            steps = total
            if done < total:
                line(done, total)

        runtime = LocalRuntime(
            run_dir,
            device=device,
            on_report=lambda figures, _: line.message(_epoch_row(figures)),
            on_progress=progress,
            resume=resume,
        )
        run_trial(config, store, runtime)
        # The bar is completed below the last epoch's figures, not above them.
        line(steps, steps)


def _run_to_resume(name: str) -> Path:
    run_dir = newest_numbered(TRAIN_RUNS, name)
    if run_dir is None:
        raise CheckpointError(f"{TRAIN_RUNS}: holds no run of {name!r} to resume; start it without --resume")
    return run_dir


def _resumed_config(run_dir: Path, overrides: Sequence[str]) -> Config:
    """The config that a run was started with. Only where its data are and how they are read may change."""
    try:
        saved = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run_dir / 'config.json'}: missing or damaged; start a new run") from error
    config = from_dict(saved)
    asked = compose(overrides)
    changed: dict[str, Any] = {}
    for key, _ in parse(overrides):
        leaf = "data.source" if key == "data" else key
        old, new = get(config, leaf), get(asked, leaf)
        if old == new:
            continue
        if leaf not in ("data.root", "data.store", "data.num_workers", "data.encode_batch_size"):
            raise CheckpointError(
                f"{run_dir}: was started with {leaf}={old}, not {new}; leave it out, or start a new run"
            )
        changed[leaf] = new
    return with_values(config, changed)


def _finished(run_dir: Path, config: Config) -> bool:
    """Whether a run has all its epochs; if so, say it. Raises CheckpointError when it has not and cannot go on."""
    newest = _newest_checkpoint(run_dir)
    if newest is None:
        return False
    state = load_state(newest)
    figures = state["history"][-1]
    if figures["epoch"] < config.training.epochs:
        check_resumable(state, run_dir)
        return False
    print(f"{run_dir}: finished already, nothing is left to train")
    if difference := other_protocol(state):
        print(f"note: {difference}")
    print(f"\n{_header(figures)}")
    for baseline, title in SHOWN_BASELINES.items():
        print(_row(title, state["baselines"][baseline]))
    print(f"{_epoch_row(figures)}\n{_next_step(run_dir)}")
    return True


def _newest_checkpoint(run_dir: Path) -> Path | None:
    return max(checkpoints_of(run_dir), default=None)


def _next_step(run_dir: Path) -> str:
    return f"\ncheckpoint: {_newest_checkpoint(run_dir)}\nexport it:  tokconv export {run_dir} --out my-compressor"


def _header(like: Mapping[str, float]) -> str:
    names = (title.rjust(12) for name, (title, _) in COLUMNS.items() if name in like)
    return f"{'':<14}{''.join(names)}"


def _row(title: str, figures: Mapping[str, float]) -> str:
    cells = (format(figures[name], form).rjust(12) for name, (_, form) in COLUMNS.items() if name in figures)
    return f"{title:<14}{''.join(cells)}"


def _epoch_row(figures: Metrics) -> str:
    epochs = f"{figures['epochs']:.0f}"
    return _row(f"epoch {figures['epoch']:{len(epochs)}.0f}/{epochs}", figures)


def export(checkpoint: Path, out: Path | None, *, formats: Sequence[str] = ()) -> None:
    """`tokconv export`. Raises CheckpointError, ConfigError, MissingExtraError."""
    formats = check_formats(formats)
    if exports.is_export(checkpoint):
        if out is None and not formats:
            raise ConfigError(f"{checkpoint}: is exported already; say --out DIR for a copy, --format for more formats")
        written = checkpoint if out is None else copy_export(checkpoint, out)
    elif out is None:
        raise ConfigError("--out: say which folder to write")
    else:
        newest = checkpoint if (checkpoint / "state.json").is_file() else _newest_checkpoint(checkpoint)
        if newest is None:
            raise CheckpointError(
                f"{checkpoint}: neither a checkpoint, nor a train run with one, nor an exported folder"
            )
        written = exports.export(newest, out)
    for name, known in add_formats(written, formats).items():
        print(f"{written / known['file']}: {name}, off by {known['max_error']:.1e} of a token's deviation at most")
    print(f"{written}: load it with tokconv.load_compressor({str(written)!r})")
