"""Specs: the shortest, one with every key, and drawn ranges."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tokconv.sweep.spec.outline import GRID_KEY

MINIMAL: dict[str, Any] = {"name": "tiny", "trials": 3}
FULL: dict[str, Any] = {
    "name": "full",
    "base": ["training.epochs=5", "data.root='/photos (old)'", "data=folder", "model.compressor.kind=residual"],
    "search": {
        GRID_KEY: {"choice": [4, 8]},
        "training.n_critic": {"int": [1, 3]},
        "training.grad_clip": {"float": [0.5, 2]},
        "loss.wgan.lambda_gp": {"log": [0.1, 100]},
        "training.critic_learning_rate": {"choice": [None, 1e-3]},
        "model.compressor.use_residual": {"choice": [True, False]},
        "model.compressor.init": {"choice": ["pca", "pooling"]},
    },
    "objectives": [{"metric": "val/gain", "mode": "max"}, {"metric": "val/swd", "mode": "min"}],
    "champions": {"fidelity": {}, "plug-in": {"figure": "val/auc_token", "subject_to": ["val/gain >= 0.123456789"]}},
    "constraints": ["val/fvu <= 1e-07"],
    "baselines": "competing",
    "sampler": {"kind": "random", "seed": 7},
    "early_stopping": {"min_epochs": 3, "reduction": 4},
    "confirm": {"seeds": 4},
    "concurrency": 2,
    "resources": {
        "runner": "inline",
        "workers": 1,
        "gpus_per_worker": 0.25,
        "cpus_per_worker": 3,
        "trial_timeout": 60.0,
    },
    "vlm": {"model": "runs/vlm/model", "prompts": ["What is this?", "1e3"], "images": 16, "tokens": 4},
    "tracking": {"uri": "http://localhost:5000", "experiment": "1e3", "wandb": True},
    "storage": "/mnt/runs",
    "trials": 12,
}
WHOLE = st.integers(1, 10**6)


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, Any]:
    low, high = sorted(draw(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=2, unique=True)))
    first, last = sorted(draw(st.lists(WHOLE, min_size=2, max_size=2, unique=True)))
    number: list[dict[str, Any]] = [{"float": [low, high]}, {"log": [low, high]}, {"int": [first, last]}]
    number += [{"choice": [low, high]}]
    search = {
        "loss.weights.ae": draw(st.sampled_from(number)),
        "training.critic_learning_rate": draw(st.sampled_from([*number, {"choice": [None, low]}])),
        "training.n_critic": draw(st.sampled_from([{"int": [first, last]}, {"choice": [last, first]}])),
        GRID_KEY: {"choice": draw(st.lists(st.integers(1, 24), min_size=1, unique=True))},
    }
    return {key: search[key] for key in draw(st.lists(st.sampled_from(sorted(search)), unique=True))}
