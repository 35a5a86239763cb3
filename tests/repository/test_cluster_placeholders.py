"""The files in cluster/ hold no secret, and placeholders where a reader fills in his own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.clusterfiles import CLUSTER, FILES

FILLED = re.compile(r"# ---- fill in ----\n(.*?)# ---- end of what is filled in ----", re.DOTALL)
PLACEHOLDER = re.compile(r"FILL-IN[-A-Z0-9]*")
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|://[^/\s:@]+:[^/\s@]+@|\b\d{12}\b|\b[0-9a-f]{32,}\b"
    r"|(?i:(password|secret_access_key|api_key|auth_token)\s*[:=]\s*[\"']?[A-Za-z0-9+/_-]{6,})"
)


@pytest.mark.parametrize("path", [*FILES, CLUSTER / "Dockerfile", CLUSTER / "README.md"], ids=lambda path: path.stem)
def test_no_file_holds_a_secret(path: Path) -> None:
    found = SECRET.search(path.read_text())
    assert found is None, found


@pytest.mark.parametrize("text", ["AKIAABCDEFGHIJKLMNOP", "postgresql://mlflow:hunter2@db/x", "auth_token: c0ffee1234"])
def test_a_secret_would_be_found(text: str) -> None:
    assert SECRET.search(f"value: {text}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_placeholders_are_in_one_place_and_in_the_table(path: Path) -> None:
    text, guide = path.read_text(), (CLUSTER / "README.md").read_text()
    (block,) = FILLED.findall(text)
    assert text.index(block) < 900
    assert PLACEHOLDER.findall(text) == PLACEHOLDER.findall(block)
    keys = re.findall(r"^\s*([\w/]+): &", block, re.MULTILINE)
    assert keys
    for key in keys:
        assert f"`{key.removeprefix('tokconv/')}`" in guide
