"""A sweep's plan as text."""

from __future__ import annotations

from statistics import fmean

from tokconv.sweep.plan.plan import SweepPlan
from tokconv.system.terminal import data_size

GRID_ROW = "{:>8} {:>12} {:>15} {:>12} {:>14} {:>16}"


def plan_text(plan: SweepPlan) -> str:
    """Return everything that a person needs to decide on a sweep before it starts, and last the assumptions."""
    spec, tokens = plan.spec, plan.tokens
    low, high = plan.share
    stopping = (
        "no early stopping"
        if spec.early_stopping is None
        else f"early stopping leaves {_between(f'{low:.0%}', f'{high:.0%}')} of the trials' epochs"
    )
    count = spec.base_config().data.views
    views = f"; {count} views of each image to train on, counted as images" if count > 1 else ""
    whole, confirmed = plan.trials * plan.epochs, plan.confirmations * plan.epochs
    lines = [
        f"{spec.name}: a plan; nothing was started, nothing was written",
        "",
        f"tokens         {tokens.images:,} images ({tokens.train_images:,} to train on) x "
        f"{tokens.shape.token_grid**2} tokens of {tokens.shape.dim} channels{views}",
        f"store          {data_size(tokens.bytes)} in {tokens.shards:,} shards, {tokens.where}",
        f"trials         {plan.trials:,} and at most {plan.confirmations} confirmations, {spec.concurrency} at a time",
        f"epochs         {plan.epochs} per trial; {whole:,} of trials and {confirmed:,} of confirmations; {stopping}",
        f"steps          {plan.steps_per_epoch:,} per epoch, {plan.batch_size} images each",
        f"device         {plan.where}",
        *([plan.left_out] if plan.left_out else []),
        "",
        GRID_ROW.format("grid", "parameters", "FLOPs/image", "step", "whole trial", "checkpoint"),
    ]
    for grid in plan.grids:
        cost = grid.cost
        lines.append(
            GRID_ROW.format(
                f"{grid.grid}x{grid.grid}",
                f"{cost.parameters / 1e6:.1f} M",
                f"{cost.flops / 1e9:.3g} GFLOP",
                _seconds(grid.step_seconds),
                _seconds(plan.trial_seconds(grid)),
                data_size(cost.checkpoint_bytes),
            )
        )
    lines += ["         means over the search space", "", *_totals(plan), "", "assumed:"]
    return "\n".join([*lines, *(f"  - {sentence}" for sentence in plan.assumed)])


def _totals(plan: SweepPlan) -> list[str]:
    low, high = plan.share
    resources = plan.spec.resources
    unit = "GPU" if resources.gpus_per_worker else "CPU"
    reading = plan.read_seconds / fmean(grid.epoch_seconds for grid in plan.grids)
    usable, wanted = plan.usable, plan.accelerator.gpus
    prefix, size = ("E", 1e18) if plan.flops(high) >= 1e18 else ("P", 1e15)
    few = f"; the spec's concurrency cannot use all {wanted:g}" if wanted is not None and usable < wanted else ""
    work = _between(f"{plan.flops(low) / size:.3g}", f"{plan.flops(high) / size:.3g}")
    hours = _between(_number(plan.hours(low)), _number(plan.hours(high)))
    wall = _between(_seconds(plan.wall_seconds(low)), _seconds(plan.wall_seconds(high)))
    return [
        f"training       {work} {prefix}FLOP{_taught(plan)}",
        f"{unit} hours      {hours} ({_number(plan.hours(1.0))} if no trial is stopped)",
        f"wall time      {wall} on {usable:g} {unit}s{few}",
        *_readings(plan),
        f"reading        {data_size(plan.tokens.image_bytes * plan.steps_per_epoch * plan.batch_size)} of tokens per "
        f"epoch and trial, {reading:.0%} of its time",
        f"checkpoints    at most {data_size(plan.checkpoint_bytes)} (the newest of each trial, with its best epoch)",
        f"artifacts      at most {data_size(plan.artifact_bytes)} (compressors and decoders, in the sweep's directory "
        "and in MLflow)",
        f"driver memory  at least {data_size(plan.driver_bytes)} while baselines are fitted, once per grid",
    ]


def _taught(plan: SweepPlan) -> str:
    share = fmean(grid.cost.taught_flops for grid in plan.grids) / fmean(grid.cost.flops for grid in plan.grids)
    return "" if plan.readings.teacher is None else f", {share:.0%} of it by the model that teaches"


def _readings(plan: SweepPlan) -> list[str]:
    """Return a line about the judge, and one about what is read before the trials, as far as there is any."""
    judge, teacher, lines, read = plan.readings.judge, plan.readings.teacher, [], []
    if judge is not None:
        seconds = [grid.judged_seconds for grid in plan.grids]
        lines.append(
            f"judge          {_between(_seconds(min(seconds)), _seconds(max(seconds)))} at the end of a trial: "
            f"{judge.images:,} images, {judge.prompts} {'prompt' if judge.prompts == 1 else 'prompts'}"
        )
        read.append(f"{judge.images:,} images for the judge, with their baselines")
    if teacher is not None:
        read.append(f"{teacher.images:,} images for the teacher")
    if read:
        lines.append(f"read once      {_seconds(plan.once_seconds)} before the trials: {', and '.join(read)}")
    return lines


def _between(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"


def _seconds(seconds: float) -> str:
    for unit, size in (("d", 2 * 86400.0), ("h", 2 * 3600.0), ("min", 2 * 60.0)):
        if seconds >= size:
            return f"{seconds / (size / 2):.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
