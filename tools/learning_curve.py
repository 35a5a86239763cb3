"""How much do more photographs, or more views of each, lower the held-out error? fvu at 6 x 6 against both.

    python tools/public_weights.py
    python tools/learning_curve.py --photos my-photos --images 100 200 400 512 --views 1 4

The photographs are encoded once, with the most views. Each arm trains on the first N photographs of one fixed order, so
that a larger arm contains the smaller ones, and all arms are judged by the same held-out fifth. They take equally many
steps: an arm with four views passes over its images a quarter as often. Other words are overrides of `tokconv train`.
Finished arms are skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tokconv.config.overrides import compose, with_values
from tokconv.config.tree import Config
from tokconv.encoding.console import encode_and_print
from tokconv.errors import DataError, TokconvError
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.store.format import VIEW, default_shard_size, pack
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter
from tokconv.sweep.judge.evidence import half_width
from tokconv.system.files import read_json_object, write_json
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime

PCA, START = "matched_window_pca", "own_factorisation"
FVU = "val/fvu"


def choose(store: TokenStore, images: int, views: int) -> Tensor:
    """Return the rows of the first views of the first training images, and of all held-out ones, ascending int64.

    Raises:
        DataError: the store has fewer training images, or fewer views of them.
    """
    rows: dict[str, list[int]] = {}
    for row in store.train_indices.tolist():
        rows.setdefault(store.keys[row].partition(VIEW)[0], []).append(row)
    have = store.settings.source.get("views", 1)
    if images > len(rows) or views > have:
        raise DataError(
            f"{images} images and {views} views: the store has {len(rows)} images to train on and {have} views"
        )
    order = sorted(rows, key=lambda key: hashlib.sha256(f"order\t{key}".encode("utf-8", "surrogateescape")).digest())
    chosen = [row for key in order[:images] for row in rows[key][:views]]
    return torch.tensor(sorted([*chosen, *store.val_indices.tolist()]))


def write_part(store: TokenStore, rows: Tensor, path: Path) -> TokenStore:
    """Write some rows of a store as a store without classes, of the same split, and return it."""
    settings = replace(
        store.settings,
        source={"store": store.fingerprint, "rows": hashlib.sha256(rows.numpy().tobytes()).hexdigest()},
        num_items=len(rows),
        class_names=(),
        shard_size=default_shard_size(store.token_grid, store.dim, store.settings.dtype),
    )
    with StoreWriter(path, settings) as writer:
        for number in range(settings.num_shards):
            items = settings.shard_items(number)
            writer.write_shard(number, pack(store.tokens(rows[list(items)]), settings.dtype), items)
        held_out = torch.isin(rows, store.val_indices).tolist()
        writer.finish([store.keys[row] for row in rows.tolist()], ["val" if value else "train" for value in held_out])
    return TokenStore.open(path)


def run_arm(config: Config, store: TokenStore, images: int, views: int, steps: int, directory: Path) -> None:
    """Train on some images and views for about `steps` steps; write figures.json, unless it is there."""
    if (directory / "figures.json").exists():
        return
    epochs = max(1, round(steps * config.training.batch_size / (images * views)))
    config = with_values(config, {"training.epochs": epochs})
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        part = write_part(store, choose(store, images, views), Path(folder) / "store")
        free = baseline_figures(part, config.model.compressor.output_grid_size, [PCA, START], full=False)
        result = run_trial(config, part, LocalRuntime(Path(folder) / "run", device="cpu"))
    closed_forms = {name: figures[FVU] for name, figures in free.items()}
    write_json(directory / "figures.json", {FVU: result.figures[FVU], **closed_forms, "epochs": epochs})


def table(out: Path) -> str:
    """Return the finished arms as Markdown: mean fvu and, of several seeds, half of its 95 % interval."""
    lines = [
        "| photographs | views | window PCA | own factorisation | learned | of window PCA |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    arms: dict[tuple[int, int], list[dict[str, float]]] = {}
    for path in out.glob("images-*/views-*/seed-*/figures.json"):
        images, views = (int(part.name.rpartition("-")[2]) for part in (path.parents[2], path.parents[1]))
        arms.setdefault((images, views), []).append(read_json_object(path))
    for (images, views), found in sorted(arms.items()):
        values = [figures[FVU] for figures in found]
        pca, start, mean = (statistics.mean(figures[name] for figures in found) for name in (PCA, START, FVU))
        half = f" +- {half_width(values):.4f}" if len(values) > 1 else ""
        lines.append(f"| {images} | {views} | {pca:.4f} | {start:.4f} | {mean:.4f}{half} | {mean / pca:.3f} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--tower", default="runs/public/dinov2-small", help="default: %(default)s")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 200, 400], help="default: 100 200 400")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4], help="default: 1 4")
    parser.add_argument("--steps", type=int, default=600, help="of every arm, rounded to epochs (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/learning-curve"), help="default: %(default)s")
    # Taken out before: after `--views 1 4` they would be further views.
    words = sys.argv[1:] if arguments is None else arguments
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    args = parser.parse_args([word for word in words if word not in overrides])
    args.overrides = overrides
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    try:
        config = compose(
            [
                *("data=folder", f"data.root={args.photos}", "data.val_fraction=0.2", f"data.views={max(args.views)}"),
                *(f"model.clip.model_name={args.tower}", "loss.weights.wgan=0", *args.overrides),
            ]
        )
        store = encode_and_print(config)
        for images in args.images:
            choose(store, images, 1)  # what is impossible is said before anything is trained
        for seed in range(args.seeds):
            for images in args.images:
                for views in args.views:
                    directory = args.out / f"images-{images}" / f"views-{views}" / f"seed-{seed}"
                    directory.mkdir(parents=True, exist_ok=True)
                    seeded = with_values(config, {"training.seed": seed})
                    run_arm(seeded, store, images, views, args.steps, directory)
                    print(f"{directory}: {json.dumps(read_json_object(directory / 'figures.json'))}", flush=True)
    except (TokconvError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
