"""What a config asks to be encoded, and where the store goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tokconv.config.tree import Config
from tokconv.encoding.images import ImageSource, describe_tokens, open_source
from tokconv.encoding.sources.features import FeatureSpec
from tokconv.encoding.towers.spec import EncoderSpec
from tokconv.store.format import StoreSettings, default_shard_size
from tokconv.store.reader import TokenStore
from tokconv.store.remote import exists_remote, staging_dir
from tokconv.system.files import local_path
from tokconv.system.storage import check_url, is_url

STORES = Path("runs/stores")


@dataclass(frozen=True)
class EncodeJob:
    """What a config asks to be encoded, and where to; it can be pickled."""

    spec: EncoderSpec | FeatureSpec
    source: ImageSource
    settings: StoreSettings
    path: Path
    """The directory that the store is written to."""
    url: str | None = None
    """Where the store goes if `data.store` is a URL; `path` is then the local directory that it is written to first."""
    named: bool = True
    """Whether `data.store` names the place; otherwise another data set of the same files goes to a place beside it."""

    def at(self, place: str, settings: StoreSettings | None = None) -> EncodeJob:
        """Return the job with its store at another place, and with the settings of a store that is there."""
        settings = settings or self.settings
        if is_url(place):
            return replace(self, settings=settings, path=staging_dir(place, settings), url=place)
        return replace(self, settings=settings, path=local_path(place), url=None)

    @property
    def place(self) -> str:
        """The directory or URL of the store."""
        return self.url or str(self.path)

    def is_complete(self) -> bool:
        """Return whether the whole store is at its place. Raises StoreError if another store is there."""
        if self.url is not None:
            return exists_remote(self.url, self.settings)
        return TokenStore.find(self.path, self.settings) is not None


def open_job(config: Config, stores: str | Path = STORES) -> EncodeJob:
    """Open the source and describe the encoder, without loading weights or images. Raises as `encode`."""
    spec, source, data = describe_tokens(config), open_source(config.data), config.data
    settings = StoreSettings(
        encoder=spec.identity(),
        source=source.identity(),
        num_items=len(source.items),
        token_grid=spec.token_grid,
        dim=spec.dim,
        dtype=data.dtype,
        val_fraction=data.val_fraction,
        class_names=source.class_names,
        shard_size=default_shard_size(spec.token_grid, spec.dim, data.dtype),
    )
    place = data.store or default_place(stores, source, spec, settings)
    job = EncodeJob(spec, source, settings, Path(place), named=data.store is not None)
    return job.at(check_url("data.store", place) if is_url(place) else place)


def default_place(
    stores: str | Path, source: ImageSource, spec: EncoderSpec | FeatureSpec, settings: StoreSettings
) -> str:
    """Return where the store of these settings goes if `data.store` does not name a place."""
    return f"{stores}/{source.name}-{spec.slug}-{settings.digest()[:8]}"
