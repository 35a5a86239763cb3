"""The first step of every command that trains: encode the token store of a config, and show that on the console."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tokconv.config.tree import Config
from tokconv.encoding.existing import resumed_store
from tokconv.encoding.job import STORES, EncodeJob
from tokconv.encoding.pipeline import EncodeProgress, OnOpened, OnProgress, encode
from tokconv.errors import printable
from tokconv.store.contents import copies_across
from tokconv.store.reader import TokenStore
from tokconv.system.devices import resolve_device
from tokconv.system.terminal import progress_line

MAX_LISTED = 5
"""The unreadable images that are printed by name."""

Encode = Callable[[OnProgress, OnOpened], TokenStore]
"""Returns the store of a config, and reports what it found and how far its encoding is."""


def encode_and_print(
    config: Config,
    *,
    device: str | None = None,
    stores: str | Path = STORES,
    encode_with: Encode | None = None,
    retry_skipped: bool = False,
    resumed: str | None = None,
) -> TokenStore:
    """Return the store of a config as `encode` does; print how its images are read, the progress, and what it holds.

    Args:
        device, stores: as for `tokconv.encoding.pipeline.encode`.
        encode_with: encodes instead of this process.
        retry_skipped: as for `tokconv.encoding.pipeline.encode`.
        resumed: the fingerprint of the store that a run to resume was trained on; if it is still there, it is opened.

    Raises:
        TokconvError: as `tokconv.encoding.pipeline.encode`; ConfigError for a device that this machine does not have.
    """
    jobs: list[EncodeJob] = []
    with progress_line("encoding") as line:

        def opened(job: EncodeJob) -> None:
            jobs.append(job)
            for note in job.source.notes:
                line.message(f"{config.data.root}: {note}")

        def progress(at: EncodeProgress) -> None:
            line(at.done, at.total, f"{at.skipped} skipped" if at.skipped else "")

        if (found := resumed_store(config, resumed, stores)) is not None:
            store = found
        elif encode_with is None:
            device = str(resolve_device(device))
            store = encode(
                config, device=device, progress=progress, opened=opened, stores=stores, retry_skipped=retry_skipped
            )
        else:
            store = encode_with(progress, opened)
    print(f"token store: {printable(store.path)} ({store.summary})")
    if copies := copies_across(store):
        held_out, trained = (printable(store.keys[image]) for image in copies[0])
        print(
            f"note: {len(copies)} of {len(store.val_indices)} held-out images are also among those to train on "
            f"({held_out} is {trained}), so that held-out figures are too good; remove the copies"
        )
    if store.skipped and jobs:
        again = "" if retry_skipped else "; tokconv encode tries them again"
        items = jobs[0].source.items
        skipped = [(items[image.item].key, image.reason) for image in store.skipped]
        print_skipped(skipped, again=again, rest=f", listed in {printable(store.path / 'index.json')}")
    return store


def print_skipped(skipped: Sequence[tuple[str, str]], *, again: str = "", rest: str) -> None:
    """Print how many images could not be read, and the first of them with the reason.

    Args:
        skipped: names and reasons.
        again: what the first line ends with.
        rest: what the line that counts the others ends with.
    """
    print(f"  {len(skipped)} images could not be read{again}:")
    for name, reason in skipped[:MAX_LISTED]:
        print(f"    {printable(name)}: {printable(reason)}")
    if len(skipped) > MAX_LISTED:
        print(f"    and {len(skipped) - MAX_LISTED} more{rest}")
