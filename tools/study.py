"""The study behind docs/results.md: learned compressors against every baseline, the benefit of a critic, one model for
all grids; every arm over several seeds, on the bundled digits and photographs, and on tokens of DINOv2-small.

    python tools/study.py run --out runs/study                 # about an hour on 2 cores; start it twice to use both
    python tools/study.py table --out runs/study               # Markdown: mean and 95 % interval of every arm

    python tools/public_weights.py                             # the real tower and the textiles, then
    python tools/study.py run --arms 'real/textile/*'          # four hours of one core
    python tools/study.py run --arms 'real/photographs/*' --photos my-photos

Finished arms are skipped, and an arm that another process is training is left to it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from tokconv.config.overrides import compose
from tokconv.encoding.console import encode_and_print
from tokconv.sweep.judge.evidence import half_width
from tokconv.system.files import write_json
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime

GRIDS = (4, 6, 8, 12)
PUBLISHED = ["recipe=published", "loss.wgan.balance=gradient"]
"""The kinds of networks of every arm; its own keys win."""
PHOTOGRAPHS = ["data=photographs", "model.clip.model_name=bundled:digits-tower"]
TOWER = Path("runs/public/dinov2-small")
"""What tools/public_weights.py writes; without it there are no arms of real tokens."""
REAL = ["data=folder", f"model.clip.model_name={TOWER}"]
TEXTILE = [*REAL, "data.root=runs/public/textile", "data.subset=900", "data.val_fraction=0.25"]
VIEWS = ["data.views=4", "model.clip.precision=bfloat16", "training.precision=bfloat16"]
"""Each training image in four views; half precision, which recent CPUs multiply several times as fast."""
WIDE = ["model.autoencoder.hidden_dim=256", "model.autoencoder.num_layers=4"]
"""A larger decoder, which using a compressor does not need."""
BEST = [
    "training.epochs=15",
    "training.learning_rate=3e-3",
    "loss.weights.wgan=0",
    "loss.weights.distribution=1",
    "model.compressor.hidden_dim=256",
    "model.autoencoder.hidden_dim=256",
    "model.autoencoder.num_layers=3",
]
SMALL = [
    "training.epochs=8",
    "training.learning_rate=3e-3",
    "training.critic_learning_rate=1e-3",
    "training.n_critic=1",
    "loss.weights.wgan=0",
    "model.compressor.num_layers=2",
    "model.compressor.hidden_dim=64",
    "model.autoencoder.hidden_dim=64",
    "model.critic.num_layers=1",
    "model.critic.hidden_dim=64",
    "model.compressor.output_grid_size=6",
]
RAW = ["loss.wgan.balance=none", "training.critic_schedule=linear"]
"""How adversarial losses were weighted, and critics trained, when the tables of docs/results.md were measured."""
ADVERSARIAL = {"wgan_gp": RAW, "r3gan": [*RAW, "loss.wgan.kind=r3gan", "loss.wgan.lambda_gp=1"]}
TOKEN_CRITIC = [*SMALL, "loss.weights.distribution=0", "model.critic.kind=token", "training.n_critic=2"]
LOGISTIC = [*TOKEN_CRITIC, "loss.wgan.kind=logistic", "loss.wgan.lambda_gp=0.1"]
CRITICS = {
    "wgan_gp": [*TOKEN_CRITIC, "loss.wgan.kind=wgan_gp", "loss.wgan.lambda_gp=1"],
    "logistic": LOGISTIC,
    "hinge": [*TOKEN_CRITIC, "loss.wgan.kind=hinge"],
}
"""Losses of token critics with a relative weight."""
PLUG_IN = [
    "training.epochs=15",
    "training.learning_rate=2e-3",
    "training.critic_learning_rate=1e-3",
    "training.n_critic=2",
    "model.critic.kind=token",
    "loss.wgan.kind=logistic",
    "loss.wgan.lambda_gp=0.1",
]
"""Default networks, with the critic that makes single tokens most like real ones."""
FIGURES = (
    "val/fvu",
    "val/auc_token",
    "val/auc_token_white",
    "val/auc_grid",
    "val/swd",
    "val/cosine",
    "val/reader_kept",
    "val/adapted_kept",
    "val/grid-04/fvu",
    "val/grid-06/fvu",
    "val/grid-08/fvu",
)


def arms(photos: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Yield name and overrides of every arm, without the seed."""
    for name, overrides in _small_arms():
        yield name, [*PUBLISHED, *overrides]
    for grid in GRIDS if TOWER.exists() else ():
        at = f"model.compressor.output_grid_size={grid}"
        yield f"real/textile/fidelity/{grid:02d}", [*TEXTILE, at]
        salient = ["model.compressor.kind=salient", "model.autoencoder.hidden_dim=64", "training.epochs=6"]
        yield f"real/textile/salient/{grid:02d}", [*TEXTILE, *PUBLISHED, *PLUG_IN, *salient, at]
        yield f"real/textile/plug-in/{grid:02d}", [*TEXTILE, *PUBLISHED, *PLUG_IN, "training.epochs=10", at]
        yield f"real/textile/wide/{grid:02d}", [*TEXTILE, *VIEWS, *WIDE, "training.epochs=4", at]
        if photos is not None:
            photographs = [*REAL, f"data.root={photos}", "data.val_fraction=0.2", at]
            yield f"real/photographs/fidelity/{grid:02d}", photographs
            yield f"real/photographs/views/{grid:02d}", [*photographs, *VIEWS, "training.epochs=6"]
            yield f"real/photographs/wide/{grid:02d}", [*photographs, *VIEWS, *WIDE, "training.epochs=6"]


def _small_arms() -> Iterator[tuple[str, list[str]]]:
    """Yield the arms of the bundled images and tower."""
    for grid in GRIDS:
        at = f"model.compressor.output_grid_size={grid}"
        yield f"digits/best/{grid:02d}", [*BEST, at]
        longer = ["training.epochs=40", "training.batch_size=8"]
        narrow = ["model.compressor.hidden_dim=128", "model.autoencoder.hidden_dim=128"]
        yield f"photographs/best/{grid:02d}", [*PHOTOGRAPHS, *BEST, *longer, *narrow, at]
    yield "front/none", SMALL
    for weight in ("0.001", "0.01", "0.1"):
        for kind, extra in ADVERSARIAL.items():
            yield f"front/{kind}/{weight}", [*SMALL, *extra, f"loss.weights.wgan={weight}"]
    for weight in ("0.1", "1", "10"):
        yield f"front/swd/{weight}", [*SMALL, f"loss.weights.distribution={weight}"]
    for weight in ("0.03", "0.3", "3"):
        sinkhorn = ["loss.distribution=sinkhorn", f"loss.weights.distribution={weight}"]
        yield f"front/sinkhorn/{weight}", [*SMALL, *sinkhorn]
    for weight in ("0.1", "1"):
        yield f"front/anchor/{weight}", [*SMALL, f"loss.weights.anchor={weight}"]
    yield "critic/swd/1", [*SMALL, "loss.weights.distribution=1"]
    for share in ("0.25", "0.5", "1", "2"):
        for kind, extra in CRITICS.items():
            yield f"critic/{kind}/{share}", [*extra, f"loss.weights.wgan={share}"]
    for n_critic, lambda_gp in ((1, "1"), (2, "0.1"), (2, "1"), (2, "10"), (4, "1")):
        steps = [f"training.n_critic={n_critic}", f"loss.wgan.lambda_gp={lambda_gp}", "loss.weights.wgan=1"]
        yield f"steps/{n_critic}/{lambda_gp}", [*CRITICS["wgan_gp"], *steps]
    for grid in GRIDS:
        yield f"digits/plug-in/{grid:02d}", [*PLUG_IN, f"model.compressor.output_grid_size={grid}"]
    matryoshka = ["model.compressor.kind=matryoshka", "model.compressor.output_grid_size=12"]
    yield "digits/matryoshka", [*BEST, *matryoshka]
    yield "kinds/conv", [*SMALL, "model.compressor.kind=conv"]
    yield "kinds/conv-without-start", [*SMALL, "model.compressor.kind=conv", "model.compressor.use_residual=false"]
    whitened = {"compressor": ["model.compressor.whiten=true"], "decoder": ["model.autoencoder.whiten=true"]}
    for name, keys in (whitened | {"both": [*whitened["compressor"], *whitened["decoder"]]}).items():
        yield f"kinds/whitened-{name}", [*SMALL, *keys]
        yield f"critic/logistic-whitened-{name}/1", [*LOGISTIC, "loss.weights.wgan=1", *keys]
    yield "kinds/attention-decoder", [*SMALL, "model.autoencoder.kind=attention"]


def run(out: Path, seeds: int, pattern: str, photos: Path | None) -> None:
    torch.set_num_threads(1)
    chosen = [(name, overrides) for name, overrides in arms(photos) if fnmatch.fnmatch(name, pattern)]
    for seed in range(seeds):
        for name, overrides in chosen:
            directory = out / name / f"seed-{seed}"
            directory.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(directory / ".lock", timeout=0):
                    if (directory / "figures.json").exists():
                        continue
                    config = compose([*overrides, f"training.seed={seed}"])
                    result = run_trial(
                        config, encode_and_print(config), LocalRuntime(directory, device="cpu", resume=True)
                    )
                    # A critic trades fvu for likeness, so the epoch of the lowest fvu would often be the start.
                    figures = result.history[-1] if config.loss.weights.wgan else result.figures
                    write_json(directory / "figures.json", figures)
                    print(directory, {key: round(figures[key], 4) for key in FIGURES if key in figures})
            except Timeout:
                continue


def table(out: Path) -> None:
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for path in sorted(out.rglob("figures.json")):
        found[str(path.parent.parent.relative_to(out))].append(json.loads(path.read_text(encoding="utf-8")))
    shown = [name for name in FIGURES if any(name in rows[0] for rows in found.values())]
    print("| arm | seeds | " + " | ".join(name.removeprefix("val/") for name in shown) + " |")
    print("| --- | ---: |" + " ---: |" * len(shown))
    for arm, rows in found.items():
        cells = [_interval([row[name] for row in rows]) if name in rows[0] else "" for name in shown]
        print(f"| {arm} | {len(rows)} | " + " | ".join(cells) + " |")


def _interval(values: list[float]) -> str:
    """Return mean and half of the 95 % interval (Student's t), as text."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    return f"{mean:.4f} +- {half_width(values):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--arms", default="*", metavar="PATTERN", help="run only arms with these names, such as 'kinds/*'"
    )
    parser.add_argument("--photos", type=Path, help="a folder of photographs, for the arms real/photographs/*")
    args = parser.parse_args()
    if args.action == "run":
        run(args.out, args.seeds, args.arms, args.photos)
    else:
        table(args.out)


if __name__ == "__main__":
    main()
