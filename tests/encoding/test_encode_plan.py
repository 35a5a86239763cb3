"""The plan of an encode: counts of a source or of an imagined one, given or measured rates, and pools."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from support.towers import write_tower

from tokconv.config.overrides import compose
from tokconv.encoding.encoders import Encoders, parse_encoders
from tokconv.encoding.job import open_job
from tokconv.encoding.pipeline import encode
from tokconv.encoding.plan import calibrate, describe_plan
from tokconv.errors import ConfigError
from tokconv.store.format import image_bytes

CPU = torch.device("cpu")
FEW = ["data.subset=12", "data.num_workers=0"]


def test_an_imagenet_sized_plan_adds_up(tmp_path: Path) -> None:
    config = compose([*FEW, f"data.store={tmp_path / 'store'}"])
    text = describe_plan(config, device=CPU, images=1_281_167, images_per_second=100)
    assert "as if there were 1281167 images x 576 tokens" in text
    assert f"{1_281_167 * image_bytes(24, 64, 'float16') / 1e9:.1f} GB in {-(-1_281_167 // 256)} shards" in text
    assert "one encoder: 3 h 34 min at 100 images/s (as given)" in text
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("encoders", "expected"),
    [
        (Encoders(least=8, most=8, gpus=1), "8 encoders on 8 GPUs: 26 min 41 s, 3.56 GPU hours"),
        (Encoders(least=8, most=8, gpus=0.5), "8 encoders on 4 GPUs: 53 min 23 s, 3.56 GPU hours"),
        (Encoders(least=1, most=4, cpus=2), "1 to 4 encoders on 8 CPUs: 53 min 23 s, "),
    ],
)
def test_encoders_that_share_a_gpu_share_its_speed(encoders: Encoders, expected: str) -> None:
    text = describe_plan(compose(FEW), device=CPU, images=1_281_167, images_per_second=100, encoders=encoders)
    assert f"\n{expected}" in text


def test_the_rate_is_measured_and_nothing_is_written(tmp_path: Path) -> None:
    config = compose([*FEW, f"data.store={tmp_path / 'store'}"])
    rate, how = calibrate(config, open_job(config), CPU)
    assert rate > 0
    # Batches of 1, 2 and 4 images; fewer than 8 are left for the next one.
    assert re.fullmatch(r"measured on a CPU, threads: \d+, batches of 4: 1", how)
    assert re.search(r"\none encoder: .* at .* images/s \(measured on ", describe_plan(config, device=CPU))
    assert not (tmp_path / "store").exists()


def test_nothing_is_measured_for_a_complete_store(tmp_path: Path) -> None:
    config = compose([*FEW, f"data.store={tmp_path / 'store'}"])
    encode(config, device="cpu")
    assert describe_plan(config, device=CPU).endswith("in 1 shards (complete already)")


def test_a_tower_with_damaged_weights_is_planned_without_hours(tmp_path: Path) -> None:
    tower = write_tower(tmp_path / "tower")
    weights = tower / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    config = compose([*FEW, f"model.clip.model_name={tower}"])
    first, second = describe_plan(config, device=CPU).splitlines()
    assert "12 images x 16 tokens" in first
    assert second.startswith("hours: not estimated (")
    assert "--images-per-second" in second


def test_pools_are_counts_or_ranges() -> None:
    assert parse_encoders("4") == Encoders(least=4, most=4)
    assert parse_encoders("1-8", gpus=0.5, cpus=3) == Encoders(least=1, most=8, gpus=0.5, cpus=3)
    assert [str(parse_encoders(text)) for text in ("4", "1-8")] == ["4", "1 to 8"]
    for text in ("0", "-1", "8-1", "two", "1-", "1.5", "", "1-2-3", "9999999"):
        with pytest.raises(ConfigError, match="write a number, as in 4, or the fewest and the most, as in 1-8"):
            parse_encoders(text)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"gpus": -1.0}, "--gpus-per-encoder: got -1; must be 0, a fraction such as 0.5, or a whole number"),
        ({"gpus": 1.5}, "--gpus-per-encoder: got 1.5"),
        ({"gpus": float("nan")}, "--gpus-per-encoder: got nan"),
        ({"cpus": 0}, "--cpus-per-encoder: got 0; must be at least 1"),
    ],
)
def test_impossible_shares_are_refused(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_encoders("2", **shares)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"images": 0}, {"images_per_second": -1.0}, {"images_per_second": float("nan")}])
def test_impossible_plans_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be greater than 0"):
        describe_plan(compose(FEW), device=CPU, **wrong)  # type: ignore[arg-type]
