"""Names that no terminal can print: they neither end a command nor write anything but one line of text."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.artefacts import write_export
from support.networks import SMALL

from tokconv.cli.main import main
from tokconv.errors import DataError, StorageError, printable
from tokconv.exports.artefact import read_config
from tokconv.exports.card import model_card
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report.page_tables import trial_cells
from tokconv.sweep.report.text import event_text, values_text
from tokconv.sweep.tracking.mlflow_view import shown
from tokconv.system.files import write_text

# Latin-1 bytes, a line that looks like tokconv's own, a cleared screen, a text that turns around, Greek.
NAMES = [
    *(os.fsdecode(b"kaput\xe9"), "a\ntoken store: forged", "\x1b[2J\x1b[31mred"),
    *("\u202egnp", "\u03b1\u03b2\u03b3\r\x07\x9b1m"),
]
TOWER = ["model.clip.model_name=bundled:digits-tower", "data.num_workers=0"]


@given(st.text(st.characters(codec=None)))
def test_a_printable_text_is_one_line_of_printable_letters(text: str) -> None:
    shown_text = printable(text)
    assert shown_text.isprintable()
    shown_text.encode("utf-8")
    assert printable(shown_text) == shown_text
    if text.isprintable():
        assert shown_text == text


def test_every_error_of_tokconv_is_one_line() -> None:
    for name in NAMES:
        for error in (DataError(f"{name}: missing"), StorageError(f"{name}: missing")):
            assert str(error) == f"{printable(name)}: missing"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photographs and five damaged files with names that cannot be printed."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photos / f"good-{number}.png")
    for name in NAMES:
        (photos / f"{name}.png").write_text("no image")
    return photos


def test_encode_lists_unreadable_images_of_any_name(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(folder.parent)
    assert main(["encode", "data=folder", "data.root=photos", *TOWER]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line for line in lines if line.startswith("    ")]
    assert sorted(line.split(".png: ")[0].strip() for line in listed) == sorted(map(printable, NAMES))
    assert sum(line.startswith("token store: ") for line in lines) == 1
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", None])
def test_strict_and_closed_streams_end_no_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str | None
) -> None:
    """None: the shell has closed standard output."""
    monkeypatch.chdir(folder.parent)
    written = io.BytesIO()
    stream = None if encoding is None else io.TextIOWrapper(written, encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["encode", "data=folder", "data.root=photos", *TOWER]) == 0
    # Greek can be printed, where the encoding has it.
    write_export(folder.parent / "mine")
    assert main(["export", "mine", "--out", "\u03b1"]) == 0
    if stream is None:
        sys.stdout.close()
    elif encoding is not None:
        stream.flush()
        text = written.getvalue().decode(encoding)
        assert r"kaput\udce9.png: " in text
        assert ("\u03b1: load it" if encoding == "utf-8" else r"\u03b1: load it") in text


def test_messages_on_standard_error_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(folder.parent)
    write_export(folder.parent / "mine")
    for name in NAMES:
        for arguments in (
            ["compress", f"photos/{name}.jpg", "--compressor", "mine", "--out", "x.safetensors"],
            ["compress", f"photos/{name}.png", "--compressor", name, "--out", "x.safetensors"],
            ["compress", "photos/good-0.png", "--compressor", "mine", "--out", f"photos/good-0.png/{name}"],
            ["encode", "data=folder", f"data.root={name.splitlines()[0]}/none", *TOWER],
            ["evaluate", name],
            ["export", name, "--out", "other"],
            ["dynamic", name],
            ["status", name],
            ["report", name],
            ["sweep", f"{name}.yaml"],
        ):
            assert main(arguments) == 2, arguments
            message = capsys.readouterr().err
            assert message.endswith("\n"), arguments
            assert message[:-1].isprintable(), arguments
        with pytest.raises(SystemExit):
            main(["export", "--nothing", name])
        assert capsys.readouterr().err.splitlines()[-1].isprintable()


def test_paths_of_any_name_are_printed_on_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The working directory is not printed; what a command writes and where the store is are."""
    monkeypatch.chdir(folder.parent)
    assert main(["train", *SMALL, *TOWER, "data=digits", "data.subset=24", "training.epochs=1", "--device", "cpu"]) == 0
    for name in NAMES[1:]:
        capsys.readouterr()
        assert main(["export", "runs/train/train-001", "--out", f"out {name}"]) == 0
        assert main(["compress", "photos/good-0.png", "--compressor", f"out {name}", "--out", f"tokens {name}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        assert all(line.isprintable() for line in lines)
    assert main(["export", "runs/train/train-001", "--out", NAMES[0]]) == 2
    assert (
        capsys.readouterr().err == "tokconv: kaput\\udce9: safetensors opens only names in UTF-8; choose another one\n"
    )


def test_reports_cards_and_params_escape_names(tmp_path: Path) -> None:
    description = read_config(write_export(tmp_path / "mine"))
    for name in NAMES:
        values = {"data.root": name}
        trial = TrialRecord("00001", values, grid=3, ratio=2.0, started=0, state="failed", reason=name)
        assert values_text(values).isprintable()
        assert event_text(trial).isprintable()
        assert all(text.isprintable() for text, _ in trial_cells(trial, "", ["data.root"]))
        assert shown(name).isprintable()
        description["encoder"]["name"] = name
        assert printable(name) in model_card(description, tmp_path)
        write_text(tmp_path / "text", name)
        assert (tmp_path / "text").read_bytes().decode("utf-8")
