"""The sources by their names in `data.source`; `tokconv.config.sources` lists the keys that each of them reads."""

from __future__ import annotations

from collections.abc import Callable

from tokconv.config.sources import SOURCES
from tokconv.config.tree import DataConfig
from tokconv.encoding.sources.base import ImageSource
from tokconv.encoding.sources.bundled import DigitsSource, PhotographsSource
from tokconv.encoding.sources.coco import CocoSource
from tokconv.encoding.sources.feature_files import Asked
from tokconv.encoding.sources.features import FeatureSource
from tokconv.encoding.sources.folder import FolderSource, ImageNetSource
from tokconv.encoding.sources.huggingface import HuggingFaceSource
from tokconv.system.registry import Registry

OPENERS: Registry[Callable[[DataConfig], ImageSource]] = Registry(
    "data.source",
    {
        "digits": lambda data: DigitsSource(),
        "photographs": lambda data: PhotographsSource(),
        "folder": lambda data: FolderSource(data.root or ""),
        "imagenet": lambda data: ImageNetSource(data.root or ""),
        "coco": lambda data: CocoSource(data.root or "", year=data.name),
        "huggingface": lambda data: HuggingFaceSource(
            data.root or "", config_name=data.name, image_column=data.image_column, label_column=data.label_column
        ),
        "features": lambda data: FeatureSource(data.root or "", Asked(data.extra_tokens)),
    },
)
if tuple(OPENERS) != tuple(SOURCES):
    raise ValueError(f"sources that open, {', '.join(OPENERS)}, differ from those of the config, {', '.join(SOURCES)}")
