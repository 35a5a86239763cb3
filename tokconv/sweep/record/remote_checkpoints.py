"""The checkpoints of one trial at a URL, `epoch-NNNN/`, of which only the newest stays. Used in the trial's process."""

from __future__ import annotations

from pathlib import Path

from tokconv.system.storage import Remote, retry
from tokconv.training.runtime import epoch_of

STATE = "state.json"
"""The file of a checkpoint that is uploaded last: a checkpoint without it is not whole."""
OUTAGE_SECONDS = 600.0
"""An outage of the server that is shorter than this costs a trial only the time."""


class RemoteCheckpoints:
    """The checkpoints of one trial, uploaded as they are written; the newest can be downloaded again.

    Args:
        url: the trial's own prefix.
        scratch: a local directory for downloads.
    """

    def __init__(self, url: str, scratch: Path) -> None:
        self._remote, self._scratch = Remote(url), Path(scratch)
        self._newest: Path | None = None

    def keep(self, checkpoint: Path) -> str:
        """Upload a checkpoint directory, remove the older ones at the URL, and return its URL.

        Raises:
            StorageError: the server was away for longer than OUTAGE_SECONDS.
        """
        place = self._remote / checkpoint.name
        if checkpoint != self._newest:
            retry(lambda: self._put(checkpoint), OUTAGE_SECONDS)
        return place.url

    def latest(self) -> Path | None:
        """Return a local copy of the newest whole checkpoint; None if there is none. Raises StorageError as `keep`."""
        if self._newest is None:
            self._newest = retry(self._fetch, OUTAGE_SECONDS)
        return self._newest

    def _fetch(self) -> Path | None:
        found = newest_checkpoint(self._remote)
        if found is None:
            return None
        path = self._scratch / found.name
        found.download_all(list(found.files()), path)
        return path

    def _put(self, checkpoint: Path) -> None:
        names = sorted((path.name for path in checkpoint.iterdir()), key=lambda name: (name == STATE, name))
        for name in names:
            (self._remote / checkpoint.name / name).upload(checkpoint / name)
        older = [name for name in self._remote.files() if epoch_of(name.split("/")[0]) < epoch_of(checkpoint.name)]
        # The state goes first: a checkpoint that lost only its weights would pass for a whole one.
        self._remote.remove(sorted(older, key=lambda name: not name.endswith(STATE)))


def newest_checkpoint(trial: Remote) -> Remote | None:
    """Return the newest whole checkpoint below a trial's prefix; None if there is none."""
    whole = [name.split("/")[0] for name in trial.files() if name.endswith(f"/{STATE}")]
    return trial / max(whole, key=epoch_of) if whole else None
