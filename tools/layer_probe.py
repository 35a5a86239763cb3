"""Which layer of a tower tells small things apart: handwritten digits on photographs, at places that are told.

    python tools/public_weights.py dinov2-small
    python tools/layer_probe.py runs/public/dinov2-small

The images are those of the task `reading` of `tokconv answers`. For every digit, the tokens of the patches whose
centres lie in its square are averaged to 3 x 3, and logistic regression reads its value from them; it learns from
training images and is tested on test images, which share no digit and no photograph with them. It is told where the
digit is and is asked for nothing else, so a language model behind this layer will hardly read better.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from vlm_digits import square_of

from tokconv.config.tree import ClipConfig
from tokconv.encoding.towers.tower import VisionTower
from tokconv.errors import ConfigError, TokconvError
from tokconv.exports.answers.reading import IMAGES, Placed, Scenes
from tokconv.exports.answers.tasks import Split
from tokconv.system.terminal import progress_line

BATCH, CELLS, FOLDS = 8, 3, 3
PENALTIES = (1e-4, 1e-3, 1e-2)
"""Of logistic regression (its C); cross-validation on the training digits chooses."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tower", help="a directory or name, as model.clip.model_name takes it")
    parser.add_argument("--images", type=int, default=700, help="to learn from (default: %(default)s)")
    parser.add_argument("--test-images", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--precision", default="float32", help="float32 or bfloat16 (default: %(default)s)")
    args = parser.parse_args(arguments)
    for split, count in (("train", args.images), ("test", args.test_images)):
        if not 1 <= count <= IMAGES[split]:
            parser.error(f"--{'images' if split == 'train' else 'test-images'}: got {count}; 1 to {IMAGES[split]}")
    try:
        tower = VisionTower(ClipConfig(model_name=args.tower, layer=-1, precision=args.precision), "cpu")
        check_whole(tower)
        learned, values = read(tower, "train", args.images)
        tested, wanted = read(tower, "test", args.test_images)
    except (TokconvError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(values):,} digits to learn from, {len(wanted):,} to test on; chance is 10 %")
    for layer, (features, others) in enumerate(zip(learned, tested, strict=True)):
        probe = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
            {"logisticregression__C": PENALTIES},
            cv=FOLDS,
        ).fit(features.numpy(), values)
        print(f"hidden layer {layer:2d}: {probe.score(others.numpy(), wanted):.1%}", flush=True)
    return 0


def check_whole(tower: VisionTower) -> None:
    """Raise ConfigError if a tower crops a square image, so that digits are elsewhere."""
    told = tower.spec.preprocessing
    edge, crop = (told.get(key, {}) for key in ("size", "crop_size"))
    if told.get("do_center_crop") and edge.get("shortest_edge") != crop.get("height"):
        raise ConfigError(f"{tower.spec.name}: crops square images; give one whose shortest_edge is its crop_size")


def read(tower: VisionTower, split: Split, count: int) -> tuple[list[Tensor], list[int]]:
    """Return the features of all digits of the first images, [digits, CELLS * CELLS * C] per hidden layer, and their
    values."""
    scenes, values = Scenes(None, split), list[int]()
    found: list[list[Tensor]] = []
    with progress_line(f"{split} images") as line:
        for start in range(0, count, BATCH):
            line(start, count)
            images = range(start, min(count, start + BATCH))
            states = hidden_states(tower, [scenes.load(image) for image in images])
            found = found or [[] for _ in states]
            for place, image in enumerate(images):
                for digit in scenes.placed(image):
                    values.append(digit.value)
                    for own, layer in zip(found, states, strict=True):
                        own.append(features_of(layer[place], digit))
        line(count, count)
    return [torch.stack(own) for own in found], values


@torch.inference_mode()
def hidden_states(tower: VisionTower, images: Sequence[Image.Image]) -> list[Tensor]:
    """Return the patch tokens [B, C, G, G] float32 of every layer, the first of which are the embeddings."""
    grid = tower.spec.token_grid
    pixels = tower.preprocess(images).to(tower.dtype)
    states = tower.model(pixels, output_hidden_states=True).hidden_states
    return [state[:, tower.num_special_tokens :].float().mT.unflatten(2, (grid, grid)) for state in states]


def features_of(tokens_CGG: Tensor, digit: Placed) -> Tensor:
    """Return the tokens in the square of a digit, averaged to CELLS x CELLS, as one vector."""
    rows, columns = square_of(digit, tokens_CGG.shape[-1])
    return F.adaptive_avg_pool2d(tokens_CGG[:, rows][:, :, columns], CELLS).flatten()


if __name__ == "__main__":
    sys.exit(main())
