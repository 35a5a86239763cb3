"""What the vision-language models of a sweep read, in its plan: as teacher, as judge, and once per store."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from support.llavas import write_bundled_llava

from tokconv.cli.main import main
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.sweep.plan.accelerator import Accelerator
from tokconv.sweep.plan.plan import GridPlan, SweepPlan, plan_sweep
from tokconv.sweep.plan.text import plan_text
from tokconv.sweep.plan.vlm import JUDGED_EPOCHS
from tokconv.sweep.spec.file import parse_spec

ROOT = Path(__file__).parents[2]
GPU = Accelerator(tflops=1e-3, utilisation=0.5, read_gbs=1e9)
SAID = "nothing is counted of what the vision-language model reads"
GRIDS = {"model.compressor.output_grid_size": {"choice": [2, 4]}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_bundled_llava(tmp_path_factory.mktemp("planned") / "llava"))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a spec on the bundled digits, in a directory without a store."""
    monkeypatch.chdir(tmp_path)
    sizes = ["compressor.num_layers=1", "compressor.hidden_dim=8", "autoencoder.num_layers=1"]
    small = ["model.compressor.kind=residual", "model.autoencoder.hidden_dim=8", *(f"model.{size}" for size in sizes)]
    base = ["data=digits", "data.subset=100", "training.batch_size=4", "training.epochs=3", *small]
    return {"name": "tiny", "trials": 4, "base": base, "search": GRIDS, "confirm": "none", "early_stopping": "none"}


def plan(tree: dict[str, Any], *more: str, accelerator: Accelerator | None = GPU, **change: Any) -> SweepPlan:
    return plan_sweep(parse_spec(tree | change | {"base": [*tree["base"], *more]}), accelerator)


def judge(model: str, *, images: int = 6, prompts: int = 1) -> dict[str, Any]:
    return {"model": model, "prompts": ["what is this ?"] * prompts, "images": images, "tokens": 3}


def test_a_teacher_takes_flops_and_seconds_of_every_step_and_of_nothing_else(tree: dict[str, Any], model: str) -> None:
    plain, taught = plan(tree), plan(tree, "loss.weights.vlm=1", f"loss.vlm.model={model}")
    assert taught.flops(1.0) > plain.flops(1.0)
    assert taught.hours(1.0) > plain.hours(1.0)
    steps = plain.steps_per_epoch
    for with_it, without in zip(taught.grids, plain.grids, strict=True):
        assert with_it.cost.taught_flops == pytest.approx(with_it.cost.flops - without.cost.flops)
        more = with_it.step_seconds - without.step_seconds
        assert more == pytest.approx(with_it.cost.taught_flops * 4 / 0.5e9)
        assert with_it.epoch_seconds - without.epoch_seconds == pytest.approx(steps * more)
        # Evaluation asks no teacher, and nothing judges.
        assert with_it.last_seconds == pytest.approx(without.last_seconds)
        assert with_it.judged_seconds == without.judged_seconds == plain.once_seconds == 0
    assert taught.grids[0].cost.taught_flops < taught.grids[1].cost.taught_flops
    text = plan_text(taught)
    assert SAID not in text
    assert "% of it by the model that teaches" in text
    assert f"before the trials: {taught.tokens.train_images} images for the teacher" in text
    assert "judge " not in text


def test_all_tokens_are_read_once_for_every_training_image_and_all_prompts(tree: dict[str, Any], model: str) -> None:
    named = ("loss.weights.vlm=1", f"loss.vlm.model={model}")
    one = plan(tree, *named, "loss.vlm.prompts='what is this ?'")
    two = plan(tree, *named, "loss.vlm.prompts='what is this ?\nwhat is this ?'")
    views = plan(tree, *named, "loss.vlm.prompts='what is this ?'", "data.views=3")
    assert views.once_seconds == pytest.approx(3 * one.once_seconds)
    # Both prompts share the reading of the image.
    assert one.once_seconds < two.once_seconds < 1.5 * one.once_seconds
    asked = plan(tree, *named, "loss.vlm.prompts='what is this ?\nwhat is this ?'", "loss.vlm.prompts_per_step=1")
    assert asked.grids == one.grids
    for of_two, of_one in zip(two.grids, one.grids, strict=True):
        assert of_one.cost.taught_flops < of_two.cost.taught_flops < 2 * of_one.cost.taught_flops


def test_a_judge_alone_reads_at_the_end_of_a_trial(tree: dict[str, Any], model: str) -> None:
    plain, judged = plan(tree), plan(tree, vlm=judge(model))
    assert judged.flops(1.0) == plain.flops(1.0)
    assert [grid.epoch_seconds for grid in judged.grids] == [grid.epoch_seconds for grid in plain.grids]
    for with_it, without in zip(judged.grids, plain.grids, strict=True):
        more = judged.trial_seconds(with_it) - plain.trial_seconds(without)
        assert more == pytest.approx(with_it.judged_seconds)
        assert more > 0
    assert judged.hours(1.0) - plain.hours(1.0) == pytest.approx(4 * mean_judged(judged.grids) / 3600)
    text = plan_text(judged)
    assert SAID not in text
    assert "at the end of a trial: 6 images, 1 prompt" in text
    assert "the trials: 6 images for the judge, with their baselines" in text
    assert "that teaches" not in text


def mean_judged(grids: tuple[GridPlan, ...]) -> float:
    return fmean(grid.judged_seconds for grid in grids)


def test_a_judge_is_linear_in_images_and_has_no_more_than_there_are(tree: dict[str, Any], model: str) -> None:
    one = plan(tree, vlm=judge(model))
    more = plan(tree, vlm=judge(model, images=12))
    assert mean_judged(more.grids) == pytest.approx(2 * mean_judged(one.grids))
    assert more.once_seconds == pytest.approx(2 * one.once_seconds)
    asked = plan(tree, vlm=judge(model, prompts=3))
    assert mean_judged(one.grids) < mean_judged(asked.grids) < 3 * mean_judged(one.grids)
    most = plan(tree, vlm=judge(model, images=10_000))
    assert most.readings.judge is not None
    assert most.readings.judge.images == one.tokens.val_images
    # Before the trials it reads all tokens, and every baseline at every grid.
    of_baselines = len(BASELINES) / JUDGED_EPOCHS * sum(grid.judged_seconds for grid in one.grids)
    assert one.readings.judge is not None
    of_all = one.readings.judge.meter.all_tokens().flops * 6 / 0.5e9
    assert one.once_seconds == pytest.approx(of_baselines + of_all)


def test_a_judge_that_teaches_is_opened_once(tree: dict[str, Any], model: str) -> None:
    found = plan(tree, "loss.weights.vlm=1", vlm=judge(model)).readings
    assert found.judge is not None
    assert found.teacher is not None
    assert found.judge.meter is found.teacher.meter


def test_a_weight_that_may_be_0_is_taught_in_a_share_of_the_trials(tree: dict[str, Any], model: str) -> None:
    search = {**GRIDS, "loss.weights.vlm": {"choice": [0, 1]}}
    never, some, always = (
        plan(tree),
        plan(tree, f"loss.vlm.model={model}", search=search),
        plan(tree, f"loss.vlm.model={model}", "loss.weights.vlm=1"),
    )
    assert never.flops(1.0) < some.flops(1.0) < always.flops(1.0)
    # All trials share what all tokens say.
    assert some.once_seconds == always.once_seconds


def test_a_compressor_of_several_grids_is_taught_at_one_that_is_drawn(tree: dict[str, Any], model: str) -> None:
    named = ("loss.weights.vlm=1", f"loss.vlm.model={model}")
    single = [grid.cost.taught_flops for grid in plan(tree, *named).grids]
    kind = ("model.compressor.kind=matryoshka", "model.compressor.grids=2-4", "model.compressor.output_grid_size=4")
    several = plan(tree, *named, *kind).grids
    assert [grid.cost.taught_flops for grid in several] == pytest.approx([fmean(single)] * 2)


@pytest.mark.parametrize("image_size", [None, 48])
def test_a_model_that_is_missing_or_reads_other_tokens_counts_for_nothing(
    tree: dict[str, Any], model: str, tmp_path: Path, image_size: int | None
) -> None:
    named = str(tmp_path / "none") if image_size is None else model
    why = "no model directory" if image_size is None else "the token grid of its tower is 24"
    sized = [f"model.clip.image_size={image_size or 'null'}"]
    plain = plan(tree, *sized)
    found = plan(tree, *sized, "loss.weights.vlm=1", vlm=judge(named))
    assert found.flops(1.0) == plain.flops(1.0)
    assert found.wall_seconds(1.0) == plain.wall_seconds(1.0)
    said = [line for line in found.assumed if line.startswith(SAID)]
    assert [why in line for line in said] == [True, True]
    assert "as a judge" in said[0]
    assert "as a teacher, which is most of a step" in said[1]


def test_a_model_that_does_not_fit_into_memory_is_not_opened(
    tree: dict[str, Any], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    found = plan(tree, vlm=judge(model))
    assert found.readings.judge is None
    assert any(line.startswith(SAID) and "of 1 kB of free memory" in line for line in found.assumed)


@pytest.mark.slow
def test_on_this_machine_readings_are_timed(tree: dict[str, Any], model: str) -> None:
    found = plan(tree, "loss.weights.vlm=1", accelerator=None, vlm=judge(model))
    for grid in found.grids:
        assert grid.cost.taught_seconds > 0
        assert grid.step_seconds > grid.cost.taught_seconds
        assert grid.judged_seconds > 0
    assert found.once_seconds > 0
    assert found.hours(1.0) > found.once_seconds / 3600


def test_the_shipped_taught_sweep_is_planned(
    tree: dict[str, Any], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = yaml.safe_load((ROOT / "sweeps/taught.yaml").read_text())
    kept = [line for line in shipped["base"] if not line.startswith(("data", "model.clip."))]
    shipped["base"] = ["data=digits", "data.subset=100", *kept]
    shipped["search"] = GRIDS
    shipped["vlm"]["model"] = model
    path = tmp_path / "taught.yaml"
    path.write_text(yaml.safe_dump(shipped))
    assert main(["sweep", str(path), "--plan", "--tflops", "1"]) == 0
    text = capsys.readouterr().out
    for expected in ("that teaches", "images, 1 prompt", "read once", "answers are as long as they may be"):
        assert expected in text
    assert SAID not in text
    assert sorted(tmp_path.iterdir()) == [path]
