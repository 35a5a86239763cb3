"""Train the demo vision tower that ships in tokconv/encoding/towers/assets/digits-tower.

It has CLIP's own architecture (transformers.CLIPVisionModel, 96 px, patch 4: 24 x 24 = 576 patch tokens, as at
ViT-L/14-336) and learns to classify the UCI handwritten digits that ship with scikit-learn. It sees only the training
split that DigitsSource declares; the held-out accuracy is printed and written to the card.

    python tools/train_demo_tower.py --out tokconv/encoding/towers/assets/digits-tower     # about 20 minutes, 2 cores
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel
from transformers.utils import logging

from tokconv.encoding.sources.bundled import DigitsSource

IMAGE_SIZE, PATCH_SIZE = 96, 4


def make_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def make_tower() -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=64,
    )
    return CLIPVisionModel(config)


def load_pixels(processor: CLIPImageProcessor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pixels [1797, 3, 96, 96] float32, labels [1797], and the training and held-out indices."""
    source = DigitsSource()
    images = [source.load(index) for index in range(len(source.items))]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    labels = torch.tensor([item.label for item in source.items])
    is_train = torch.tensor([item.split == "train" for item in source.items])
    return pixels, labels, is_train.nonzero().flatten(), (~is_train).nonzero().flatten()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    processor, tower, head = make_processor(), make_tower(), nn.Linear(64, 10)
    pixels, labels, train, held_out = load_pixels(processor)
    params = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(params, weight_decay=0.05)
    steps_per_epoch = len(train) // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.epochs * steps_per_epoch
    )

    @torch.no_grad()
    def accuracy() -> float:
        tower.eval()
        hits = sum((head(tower(pixels[i]).pooler_output).argmax(1) == labels[i]).sum() for i in held_out.split(100))
        tower.train()
        return float(hits) / len(held_out)

    start = time.monotonic()
    for epoch in range(args.epochs):
        order = train[torch.randperm(len(train))]
        for step in range(steps_per_epoch):
            batch = order[step * args.batch_size : (step + 1) * args.batch_size]
            dy, dx = torch.randint(-6, 7, (2,)).tolist()
            shifted = torch.roll(pixels[batch], shifts=(dy, dx), dims=(2, 3))
            loss = F.cross_entropy(head(tower(shifted).pooler_output), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            schedule.step()
        print(
            f"epoch {epoch + 1}/{args.epochs}  loss {loss.item():.3f}  held-out top-1 {accuracy():.4f}"
            f"  {time.monotonic() - start:.0f} s",
            flush=True,
        )

    args.out.mkdir(parents=True, exist_ok=True)
    tower.eval()
    tower.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    save_file(
        {name: value.detach().contiguous() for name, value in head.state_dict().items()}, args.out / "head.safetensors"
    )
    card = {"held_out_top1": round(accuracy(), 4), "train_images": len(train), "held_out_images": len(held_out)}
    (args.out / "card.json").write_text(json.dumps({**card, **vars(args), "out": args.out.name}, indent=2) + "\n")


if __name__ == "__main__":
    main()
