"""The command line in tests: small trainings, and what a refusal looks like."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.networks import PUBLISHED
from tokconv.cli.main import main

ONE_EPOCH = "training.epochs=1"
TINY = (*PUBLISHED, "training.n_critic=1", "model.compressor.hidden_dim=8", "model.autoencoder.hidden_dim=8")
SHORT = (ONE_EPOCH, *TINY)


def digits(store: Path | str) -> list[str]:
    """Return the overrides of a store of 48 digits."""
    return ["data.subset=48", f"data.store='{store}'"]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *expected: str) -> None:
    """Run a command, which must be refused in one sentence that holds all of `expected`, and must write nothing."""
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert re.fullmatch(r"tokconv: [^\n]+\n", text), text
    for part in expected:
        assert part in text
    assert sorted(Path.cwd().rglob("*")) == before
