"""A compressor without training: the closed form that runs start at, as a checkpoint that `tokconv.export` takes."""

from __future__ import annotations

from pathlib import Path

from tokconv.config.tree import Config
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.codecs import codec_of
from tokconv.evaluation.evaluator import Evaluator, add_gain
from tokconv.store.reader import TokenStore
from tokconv.system.devices import resolve_device
from tokconv.training import checkpoint as checkpoints
from tokconv.training.loop import check_store, checkpoint_state
from tokconv.training.networks import build_networks, shown_baselines

CLOSED_FORM = ("model.compressor.kind=residual", "model.compressor.use_residual=false", "model.autoencoder.kind=linear")
"""Overrides for networks that are their window projections alone: matched window PCA, unless `init` says otherwise."""


def fit(config: Config, store: TokenStore, directory: Path, *, device: str | None = None) -> Path:
    """Write the checkpoint of networks at their start, evaluated on held-out images, to a directory that is missing.

    The figures are those of an epoch in the middle of a run: the ones that train networks, which take minutes, are
    left out.

    Raises:
        ConfigError, StoreError: as `run_trial`.

    Example:
        >>> config = tokconv.compose(list(CLOSED_FORM))                            # doctest: +SKIP
        >>> tokconv.export(fit(config, store, Path("fitted")), "my-compressor")    # doctest: +SKIP
    """
    check_store(config, store)
    grid, on = config.model.compressor.output_grid_size, resolve_device(device)
    compressor, decoder, _ = build_networks(config, store)
    baselines = baseline_figures(store, grid, shown_baselines(config), full=False)
    codec = codec_of(compressor.to(on).eval(), decoder.to(on).eval())
    figures = add_gain(Evaluator(store, grid, on).evaluate(codec), baselines["pooling"])
    state = checkpoint_state(config, store, baselines, [{**figures, "epoch": 0.0}]) | {"trained": False}
    return checkpoints.save(directory, {"compressor": compressor, "decoder": decoder}, {}, state)
