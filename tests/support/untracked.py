"""Trainings that leave no run in MLflow, which takes seconds: all but those of the tests of that."""

from __future__ import annotations

from tokconv.cli import train_tracking

TRACK = train_tracking.track
"""The real one, for `monkeypatch.setattr("tokconv.cli.train.track", TRACK)`."""


def leave_trainings_untracked() -> None:
    """Replace it before `tokconv.cli.train` is imported."""
    train_tracking.track = lambda *_: ""
