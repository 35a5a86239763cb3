"""The checkpoints of one trial at a URL: `epoch-NNNN/` each, only the newest kept. Used in a trial's own process."""

from __future__ import annotations

from pathlib import Path

from tokconv.system.storage import Remote, retry
from tokconv.training.runtime import epoch_of

STATE = "state.json"
"""Of a checkpoint, the file that is put there last: one without it is not whole."""
OUTAGE_SECONDS = 600.0
"""A server that is away for less than this costs a trial nothing but the time."""


class RemoteCheckpoints:
    """Puts checkpoints there and brings the newest back.

    Args:
        url: the trial's own prefix.
        scratch: a local directory for what is brought back.
    """

    def __init__(self, url: str, scratch: Path) -> None:
        self._remote, self._scratch = Remote(url), Path(scratch)
        self._newest: Path | None = None

    def keep(self, checkpoint: Path) -> str:
        """Upload a checkpoint directory, remove the older ones there; its URL comes back.

        Raises:
            StorageError: the server was away for longer than OUTAGE_SECONDS.
        """
        place = self._remote / checkpoint.name
        if checkpoint != self._newest:
            retry(lambda: self._put(checkpoint), OUTAGE_SECONDS)
        return place.url

    def latest(self) -> Path | None:
        """A local copy of the newest whole checkpoint there; None when there is none. Raises StorageError as `keep`."""
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
        # Its state first: a checkpoint that lost only its weights would be taken for a whole one.
        self._remote.remove(sorted(older, key=lambda name: not name.endswith(STATE)))


def newest_checkpoint(trial: Remote) -> Remote | None:
    """The newest whole checkpoint of a trial, by the trial's prefix."""
    whole = [name.split("/")[0] for name in trial.files() if name.endswith(f"/{STATE}")]
    return trial / max(whole, key=epoch_of) if whole else None
