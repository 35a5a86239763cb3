"""The first step of every command that trains: the token store of a config, encoded when it is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokconv.config.tree import Config
from tokconv.encoding.images import open_source
from tokconv.encoding.pipeline import STORES, EncodeProgress, encode
from tokconv.store.reader import TokenStore
from tokconv.system.devices import resolve_device
from tokconv.system.terminal import progress_line

LISTED = 5


Encode = Callable[[Callable[[EncodeProgress], None]], TokenStore]
"""Open or encode the store of a config, telling how far it is."""


def open_store(
    config: Config, *, device: str | None = None, stores: str | Path = STORES, encode_with: Encode | None = None
) -> TokenStore:
    """The store of a config, encoded with progress when it is missing, and a line that says which it is.

    Args:
        device, stores: as for `tokconv.encoding.pipeline.encode`.
        encode_with: what encodes instead of this process.

    Raises:
        TokconvError: as `tokconv.encoding.pipeline.encode`; ConfigError for a device that is not there.
    """
    with progress_line("encoding") as line:

        def progress(at: EncodeProgress) -> None:
            line(at.done, at.total, f"{at.skipped} skipped" if at.skipped else "")

        if encode_with is None:
            store = encode(config, device=str(resolve_device(device)), progress=progress, stores=stores)
        else:
            store = encode_with(progress)
    print(f"token store: {store.path} ({store.num_images} images, {store.num_tokens} tokens of {store.dim} channels)")
    if store.skipped:
        print(f"  {len(store.skipped)} images could not be read:")
        items = open_source(config.data).items
        for image in store.skipped[:LISTED]:
            print(f"    {items[image.item].key}: {image.reason}")
        if len(store.skipped) > LISTED:
            print(f"    and {len(store.skipped) - LISTED} more, listed in {store.path / 'index.json'}")
    return store
