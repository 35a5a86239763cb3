"""The plan of a sweep against its spec, against counts by hand, and for an accelerator that this machine lacks."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import PUBLISHED

from tokconv.cli.main import main
from tokconv.config.overrides import compose
from tokconv.encoding.pipeline import encode
from tokconv.errors import ConfigError, DataError
from tokconv.models.registry import build_compressor, build_decoder
from tokconv.sweep.plan.accelerator import Accelerator
from tokconv.sweep.plan.plan import SweepPlan, plan_sweep
from tokconv.sweep.plan.space import draw_points
from tokconv.sweep.plan.stopping import epochs_share
from tokconv.sweep.plan.text import plan_text
from tokconv.sweep.plan.tokens import plan_tokens
from tokconv.sweep.record.layout import stores_place
from tokconv.sweep.spec.file import load_spec, parse_spec
from tokconv.training import step_cost
from tokconv.training.flops import count
from tokconv.training.networks import TokenShape, network_arguments
from tokconv.training.step import Trainer
from tokconv.training.step_cost import StepMeter

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SHAPE = TokenShape(12, 16, torch.zeros(16))
SMALL = (
    *PUBLISHED,
    *("model.compressor.hidden_dim=16", "model.autoencoder.hidden_dim=16", "model.critic.hidden_dim=16"),
    *("training.batch_size=4", "model.compressor.output_grid_size=6"),
)
GPU = Accelerator(tflops=100)


def meter(*overrides: str, timed: bool = False):  # type: ignore[no-untyped-def]
    return StepMeter(SHAPE, device=CPU, timed=timed)(compose([*SMALL, *overrides]))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return a spec on the bundled digits, in a directory without a store."""
    monkeypatch.chdir(tmp_path)
    base = [
        "data=digits",
        "model.clip.image_size=48",
        *(line for line in SMALL if "grid" not in line),
        "training.epochs=4",
    ]
    search = {
        "model.compressor.output_grid_size": {"choice": [3, 6]},
        "training.n_critic": {"int": [1, 5]},
        "loss.weights.wgan": {"choice": [0, 0.1]},
        "training.learning_rate": {"log": [1e-4, 1e-3]},
    }
    return {"name": "tiny", "trials": 10, "concurrency": 2, "base": base, "search": search}


def test_a_step_without_a_critic_is_three_forward_passes() -> None:
    config = compose([*SMALL, "loss.weights.wgan=0", "model.compressor.use_residual=false"])
    networks = network_arguments(config, 12, 16)
    forward = count(build_compressor(**networks["compressor"]), 1, 144, 16)[1]
    forward += count(build_decoder(**networks["decoder"]), 1, 36, 16)[1]
    found = StepMeter(SHAPE, device=CPU, timed=False)(config).flops
    # One pass forward and two back; the gradient of the tokens themselves is not needed.
    assert 2.4 * forward <= found <= 3 * forward


def test_flops_are_linear_in_critic_updates_and_do_not_depend_on_the_batch() -> None:
    one, two, four = (meter(f"training.n_critic={n}").flops for n in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one))
    assert two > one > meter("loss.weights.wgan=0").flops
    assert meter("training.batch_size=32").flops == pytest.approx(meter().flops)


def test_networks_are_freed_before_the_next_ones_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Trainer]] = []

    class Watched(Trainer):
        def __init__(self, *args: Any, **options: Any) -> None:
            assert not [one for one in made if one() is not None]
            super().__init__(*args, **options)
            made.append(weakref.ref(self))

    monkeypatch.setattr(step_cost, "Trainer", Watched)
    measure = StepMeter(SHAPE, device=CPU, timed=False)
    for dim in (8, 16, 24):
        measure(compose([*SMALL, f"model.compressor.hidden_dim={dim}"]))
    assert len(made) == 3


def test_networks_are_counted_as_a_checkpoint_holds_them() -> None:
    with_critic, without = meter(), meter("loss.weights.wgan=0")
    assert with_critic.parameters == without.parameters
    # Weights and two moments take four bytes each; buffers add a little.
    assert with_critic.checkpoint_bytes == pytest.approx(12 * with_critic.parameters, rel=0.1)
    assert without.checkpoint_bytes < with_critic.checkpoint_bytes
    assert with_critic.export_bytes < with_critic.checkpoint_bytes / 2


def test_a_meter_that_is_used_again_measures_the_same() -> None:
    one = StepMeter(SHAPE, device=CPU, timed=False)
    first = one(compose(list(SMALL)))
    one(compose([*SMALL, "loss.weights.wgan=0"]))
    one(compose([*SMALL, "model.compressor.output_grid_size=4"]))
    assert one(compose(list(SMALL))) == first


def test_timed_seconds_are_positive() -> None:
    seconds = meter(timed=True).seconds
    assert seconds is not None
    assert seconds > 0
    assert meter().seconds is None


def test_the_demos_plan_agrees_with_its_spec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load_spec(ROOT / "sweeps/demo.yaml")
    plan = plan_sweep(spec, GPU)
    assert (plan.trials, plan.confirmations, plan.epochs) == (12, 24, 6)
    assert [grid.grid for grid in plan.grids] == [4, 6, 8, 12]
    assert plan.tokens.images == 400
    assert plan.tokens.bytes == 400 * 576 * 64 * 2
    assert plan.tokens.store is None
    assert plan.steps_per_epoch == plan.tokens.train_images // 16
    assert list(tmp_path.iterdir()) == []


def test_a_store_below_the_specs_storage_is_found(tiny: dict[str, object], tmp_path: Path) -> None:
    """The plan looks where the sweep puts its store."""
    storage = tmp_path / "elsewhere"
    spec = parse_spec(tiny | {"base": ["data=digits", "data.subset=32"], "storage": str(storage)})
    assert plan_tokens(spec.base_config(), stores_place(str(storage))).store is None
    store = encode(spec.base_config(), stores=stores_place(str(storage)))
    plan = plan_sweep(spec, GPU)
    assert plan.tokens.store is not None
    assert plan.tokens.store.path == store.path
    assert store.path.parent == storage / "stores"


def test_hours_are_flops_over_speed(tiny: dict[str, object]) -> None:
    spec = parse_spec(tiny | {"resources": {"gpus_per_worker": 1.0}})
    never = {"read_gbs": 1e9}
    plan = plan_sweep(spec, Accelerator(tflops=1e-3, utilisation=0.5, **never))
    started = (plan.trials + plan.confirmations) * 12 / 3600
    computed = plan.hours(1.0) - started
    # Evaluation counts as training on the held-out images, that of the last epoch on the training images as well.
    # Before the first epoch there is that of the start.
    judged = plan.tokens.val_images * (1 + 1 / plan.epochs) + plan.tokens.train_images / plan.epochs
    more = 1 + judged / (plan.steps_per_epoch * plan.batch_size)
    assert computed == pytest.approx(plan.flops(1.0) * more / 0.5e9 / 3600, rel=1e-3)
    twice = plan_sweep(spec, Accelerator(tflops=2e-3, utilisation=0.5, **never))
    assert twice.hours(1.0) - started == pytest.approx(computed / 2, rel=1e-3)


def test_a_share_of_a_gpu_is_slower_and_costs_the_same(tiny: dict[str, object]) -> None:
    slow = Accelerator(tflops=1e-3, read_gbs=1e9)
    whole = plan_sweep(parse_spec(tiny | {"resources": {"gpus_per_worker": 1.0}}), slow)
    quarter = plan_sweep(parse_spec(tiny | {"resources": {"gpus_per_worker": 0.25}}), slow)
    assert quarter.grids[0].epoch_seconds == pytest.approx(4 * whole.grids[0].epoch_seconds, rel=1e-3)
    assert quarter.usable == whole.usable / 4
    started = (whole.trials + whole.confirmations) * 12 / 3600
    assert quarter.hours(1.0) - 0.25 * started == pytest.approx(whole.hours(1.0) - started, rel=1e-3)


def test_a_plan_without_confirmations_and_early_stopping(tiny: dict[str, object]) -> None:
    plan = plan_sweep(parse_spec(tiny | {"confirm": "none", "early_stopping": "none"}), GPU)
    assert plan.confirmations == 0
    assert plan.share == (1.0, 1.0)
    assert "no early stopping" in plan_text(plan)


def test_early_stopping_leaves_between_its_first_rung_and_everything(tiny: dict[str, object]) -> None:
    spec = parse_spec(tiny | {"trials": 200, "early_stopping": {"min_epochs": 1, "reduction": 4}})
    low, high = epochs_share(spec, spec.trials)
    assert 0.25 < low < high < 1
    assert epochs_share(spec, spec.trials) == (low, high)


def test_a_grid_sampler_has_no_more_trials_than_points(tiny: dict[str, object]) -> None:
    search = {"model.compressor.output_grid_size": {"choice": [3, 6]}, "training.n_critic": {"int": [1, 3]}}
    spec = parse_spec(tiny | {"search": search, "sampler": {"kind": "grid"}, "trials": 50})
    assert plan_sweep(spec, GPU).trials == len(draw_points(spec)) == 6


def test_imagenet_is_planned_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    tokens = plan_tokens(load_spec(ROOT / "sweeps/rate_distortion.yaml").base_config())
    assert (tokens.shape.token_grid, tokens.shape.dim) == (24, 1024)
    assert tokens.images == 100_000
    assert tokens.bytes == 100_000 * 576 * 1024 * 2
    assert len(tokens.assumed) == 2
    whole = plan_tokens(compose(["data=imagenet", "data.root=/nowhere"]))
    assert (whole.train_images, whole.val_images) == (1_281_167, 50_000)


def test_data_that_are_neither_here_nor_published_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.root"):
        plan_tokens(compose(["data=folder", "data.root=/nowhere"]))


def test_a_plan_says_that_it_leaves_out_what_a_language_model_reads(tiny: dict[str, Any]) -> None:
    said = "nothing is counted of what the vision-language model reads"
    assert said not in plan_text(plan_sweep(parse_spec(tiny), GPU))
    model = {"base": [*tiny["base"], "loss.vlm.model=llava"]}
    for change in (
        {"base": [*model["base"], "loss.weights.vlm=1"]},
        {"search": {**tiny["search"], "loss.weights.vlm": {"float": [0, 1]}}, **model},
        {"vlm": {"model": "llava"}},
    ):
        assert said in plan_text(plan_sweep(parse_spec(tiny | change), GPU))


@pytest.mark.slow
def test_the_imagenet_plan_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    # The networks of the finest grid are an eighth of the coarsest one's, and every kind of network is measured.
    text = (ROOT / "sweeps/rate_distortion.yaml").read_text()
    for choices, one in {
        "[4, 6, 8, 12]": "[12]",
        "[adaptive, residual, salient]": "[residual]",
        "[wgan_gp, logistic]": "[wgan_gp]",
        "[token, both]": "[token]",
    }.items():
        assert choices in text
        text = text.replace(choices, one)
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    assert main(["sweep", str(path), "--plan", "--tflops", "312", "--gpus", "16"]) == 0
    text = capsys.readouterr().out
    for expected in ("100,000 images", "118 GB", "64 and at most 9 confirmations", "GPU hours", "cannot use all 16"):
        assert expected in text
    assert "published shape" in text.split("assumed:")[1]


@pytest.mark.slow
def test_a_calibrated_plan_is_of_this_machine(tiny: dict[str, object]) -> None:
    plan = plan_sweep(parse_spec(tiny))
    assert 0 < plan.hours(plan.share[0]) <= plan.hours(1.0)
    assert all(grid.step_seconds > 0 for grid in plan.grids)
    assert "CPU hours" in plan_text(plan)


def test_memory_and_storage_grow_with_what_there_is(tiny: dict[str, object]) -> None:
    few, many = (plan_sweep(parse_spec(tiny | {"trials": trials}), GPU) for trials in (10, 20))
    assert many.checkpoint_bytes > few.checkpoint_bytes
    assert many.artifact_bytes > few.artifact_bytes
    assert few.driver_bytes > 0
    wider: SweepPlan = replace(few, grids=few.grids[1:])
    assert wider.driver_bytes < few.driver_bytes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--plan", "--tflops", "0"], "--tflops: got 0.0"),
        (["--plan", "--utilisation", "30"], "--utilisation: got 30.0"),
        (["--plan", "--gpus", "-1"], "--gpus: got -1.0"),
        (["--tflops", "312"], "--tflops: goes with --plan"),
        (["--tflops", "312", "--submit", "http://127.0.0.1:9"], "--tflops: goes with --plan"),
        (["--plan", "--submit", "http://127.0.0.1:9"], "--plan: starts nothing, and --submit starts a job"),
    ],
)
def test_impossible_values_are_refused(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(ROOT / "sweeps/demo.yaml"), *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_an_accelerator_names_the_wrong_number() -> None:
    with pytest.raises(ConfigError, match="read-gbs"):
        Accelerator(read_gbs=float("nan"))
