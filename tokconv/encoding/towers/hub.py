"""Finding the files of a vision tower: bundled, in a local directory, or on the Hugging Face hub and in its cache.

Nothing here reads weights. A name that is neither local nor reachable fails in seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokconv.encoding.towers.families import SHORT_NAMES, is_short, nearest_name
from tokconv.errors import DataError, suggest
from tokconv.system.files import file_digest, local_path, read_json_object

BUNDLED = "bundled:digits-tower"
ASSETS = Path(__file__).parent / "assets"
CONFIG_FILE = "config.json"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
WEIGHTS = "model*.safetensors*"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
HUB_TIMEOUT = 5.0


@dataclass(frozen=True)
class Located:
    """The files of a tower on this machine."""

    folder: Path
    revision: str
    repo: str | None = None


def locate(name: str, revision: str | None) -> Located:
    """Return the folder with the config and image processor files; those of a hub name are downloaded unless cached.

    A short name (`SHORT_NAMES`) always means its hub name, even if there is a directory of that name.

    Raises:
        DataError: the name is neither local nor reachable, or its directory lacks weights or `config.json`.
    """
    name = SHORT_NAMES.get(name, name)
    if name.startswith("bundled:"):
        if name != BUNDLED:
            raise DataError(f"model.clip.model_name: {name!r} does not ship with tokconv; {suggest(name, [BUNDLED])}")
        return _local(ASSETS / name.removeprefix("bundled:"), name)
    folder = local_path(name)
    if folder.is_dir():
        return _local(folder, name)
    # A hub name is NAME or OWNER/NAME; anything else can only be meant as a path, so the hub is not asked.
    if name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1:
        raise DataError(f"model.clip.model_name: there is no directory {name!r}; check the path")
    if is_short(name):
        nearest = nearest_name(name)
        hint = f"did you mean {nearest}?" if nearest else f"known: {', '.join(SHORT_NAMES)}, and any OWNER/NAME"
        raise DataError(f"model.clip.model_name: there is no tower called {name!r}; {hint}")
    return _from_hub(name, revision)


def _local(folder: Path, name: str) -> Located:
    if not folder.is_dir():
        raise DataError(f"model.clip.model_name: {name!r} is missing from this installation; reinstall tokconv")
    weights = sorted(folder.glob(WEIGHTS))
    read_json(folder / CONFIG_FILE, name)
    if not weights:
        pickled = next((path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))), None)
        found = f", only {pickled}, a pickle, which could run any code when it is loaded" if pickled else ""
        raise DataError(
            f"model.clip.model_name: {name!r} holds no safetensors weights{found}; save it with save_pretrained"
        )
    total = hashlib.sha256()
    for path in [folder / CONFIG_FILE, *(p for f in PROCESSOR_FILES if (p := folder / f).is_file()), *weights]:
        stat = path.stat()
        total.update(f"{path.name} {_digest_of_unchanged(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return Located(folder, f"sha256:{total.hexdigest()}")


@lru_cache(maxsize=64)
def _digest_of_unchanged(path: Path, size: int, mtime: int) -> str:
    return file_digest(path)


def _from_hub(repo: str, revision: str | None) -> Located:
    """Return the snapshot folder of a hub name; a cached one is returned without waiting for the network."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, whichever the hub uses

    try:
        folder = _cached(repo, revision)
        if folder is None:
            # Downloads retry a dead network for 23 s; this request fails within its timeout.
            HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT)
            with _quiet_hub():
                files = [CONFIG_FILE, *PROCESSOR_FILES]
                folder = Path(
                    snapshot_download(repo, revision=revision, allow_patterns=files, etag_timeout=HUB_TIMEOUT)
                )
    except (httpx.HTTPError, OSError, ValueError) as error:
        nearest = nearest_name(repo)
        hint = f"did you mean {nearest}? Otherwise check" if nearest else "check"
        raise DataError(
            f"model.clip.model_name: {repo!r} is neither a local directory nor reachable on the Hugging Face hub "
            f"({type(error).__name__}); {hint} the name and the network, give the directory of a "
            f"downloaded copy, or try {BUNDLED}, which ships with tokconv (small, trained on digits)"
        ) from error
    return Located(folder, folder.name, repo)


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, CONFIG_FILE, revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if any((folder / name).is_file() for name in PROCESSOR_FILES) else None


def weights_folder(located: Located) -> Path:
    """Return the folder whose safetensors hold the weights; they are downloaded unless cached."""
    if located.repo is None or any(located.folder.glob(WEIGHTS)):
        return located.folder
    # Models that were published as pickles only (openai's L/14-336 among them) have a converted copy on a pull request
    # of the hub's own bot. Its snapshot in the cache holds the weights alone; a real revision also holds a config.
    for sibling in sorted(located.folder.parent.iterdir()):
        if any(sibling.glob(WEIGHTS)) and not (sibling / CONFIG_FILE).exists():
            return sibling
    from huggingface_hub import snapshot_download
    from transformers.safetensors_conversion import auto_conversion

    snapshot_download(located.repo, revision=located.revision, allow_patterns=WEIGHTS, etag_timeout=HUB_TIMEOUT)
    if any(located.folder.glob(WEIGHTS)):
        return located.folder
    path, _, _ = auto_conversion(located.repo)
    return Path(path).parent


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of the tower called `name`. Raises DataError if it is missing or damaged."""
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise DataError(
            f"model.clip.model_name: {path.name} of {name!r} is {reason}; give a directory written by save_pretrained"
        ) from error


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            enable_progress_bars()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress progress bars and the load report of transformers; the caller checks the report."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with _quiet_hub():
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
