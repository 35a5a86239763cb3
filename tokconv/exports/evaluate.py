"""Held-out figures of an exported compressor, and the token store to measure them on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokconv.encoding.job import STORES
from tokconv.errors import CheckpointError, ConfigError, StoreError
from tokconv.evaluation.baseline_figures import REFERENCE, baseline_figures
from tokconv.evaluation.codecs import codec_of
from tokconv.evaluation.evaluator import Evaluator, add_gain
from tokconv.exports.artefact import load_compressor, load_decoder
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.store.reader import TokenStore
from tokconv.store.remote import stores_dir
from tokconv.system.devices import resolve_device


def evaluate(
    compressor: str | Path | Compressor,
    store: TokenStore,
    *,
    decoder: Decoder | None = None,
    device: str | None = None,
) -> dict[str, float]:
    """Evaluate a compressor on the held-out images of a token store.

    Args:
        compressor: an exported folder, or a module [B, N, C] -> [B, k*k, C].
        store: tokens of the encoder that the compressor was trained on.
        decoder: the module [B, k*k, C] -> [B, N, C] of a compressor that is a module; a folder has its own.
        device: where they run; modules are moved there. None takes CUDA if there is one, for modules where they are.

    Returns:
        The figures of the evaluation protocol by name, as "val/fvu"; "val/gain" is the share of pooling's error that
        is gone.

    Raises:
        CheckpointError: the folder is not an exported compressor, or the compressor was trained on tokens of another
            encoder.
        ConfigError: a module without a decoder, or one for tokens of another grid or width.
        StoreError: the store has no training or no held-out images.

    Example:
        >>> tokconv.evaluate("my-compressor", store)["val/fvu"]                       # doctest: +SKIP
        0.0398
        >>> tokconv.evaluate(compressor, store, decoder=decoder)["val/gain"]          # doctest: +SKIP
        0.61
    """
    if not isinstance(compressor, Compressor):
        folder = Path(compressor)
        compressor, decoder = load_compressor(folder), load_decoder(folder) if decoder is None else decoder
        place, where = resolve_device(device), str(folder)
    else:
        place = next(compressor.parameters()).device if device is None else resolve_device(device)
        where = "the compressor"
    if decoder is None:
        raise ConfigError("evaluate: a compressor that is a module needs its decoder; give decoder=")
    if compressor.description is not None:
        _check_encoder(where, compressor.description, store)
    if (compressor.token_grid, compressor.dim) != (store.token_grid, store.dim):
        raise ConfigError(
            f"{where}: compresses {compressor.token_grid}x{compressor.token_grid} tokens of {compressor.dim} channels; "
            f"{store.path} holds {store.token_grid}x{store.token_grid} of {store.dim}"
        )
    grid = compressor.output_grid_size
    pooling = baseline_figures(store, grid, [REFERENCE])[REFERENCE]
    codec = codec_of(compressor.to(place), decoder.to(place))
    figures = Evaluator(store, grid, place).evaluate(codec, full=True)
    return add_gain(figures, pooling)


def find_store(folder: Path, fingerprint: str | None, *, advice: str) -> TokenStore:
    """Find the token store that an export, or a folder of exports, was made from.

    Searched are runs/stores, the stores of the sweep that the folder lies in (X/stores of X/sweeps/NAME/champions), and
    this node's copies of remote stores.

    Args:
        fingerprint: of the store, from the export's config.json.
        advice: what to do if it is not found; ends the message.

    Raises:
        StoreError: it is in none of these places, or it is damaged.
    """
    of_sweeps = (above.parent / "stores" for above in folder.resolve().parents if above.name == "sweeps")
    places = list(dict.fromkeys([STORES, *of_sweeps]))
    for stores in (*places, stores_dir()):
        if (store := TokenStore.with_fingerprint(stores, fingerprint)) is not None:
            return store
    raise StoreError(f"{folder}: its token store is not below {' or '.join(map(str, places))}; {advice}")


def _check_encoder(where: str, description: Mapping[str, Any], store: TokenStore) -> None:
    trained_on, found = description.get("encoder"), store.settings.encoder
    if not isinstance(trained_on, dict):
        raise CheckpointError(f"{where}: its config.json is damaged, it describes no encoder")
    differing = sorted(key for key in {*trained_on, *found} if trained_on.get(key) != found.get(key))
    if differing:
        key = "name" if "name" in differing else differing[0]
        raise CheckpointError(
            f"{where}: was trained on tokens of another encoder than {store.path} holds ({key}: "
            f"{trained_on.get(key)!r}, not {found.get(key)!r}); name a store of its own encoder"
        )
