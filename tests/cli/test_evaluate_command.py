"""`tokconv evaluate`: the table and the plot of a store's baselines, an exported compressor next to them, refusals."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.artefacts import write_export
from support.stores import write_store

from tokconv.cli.main import main
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.evaluation.table import BOLD, PLAIN, figure_table, is_bold
from tokconv.exports.artefact import read_config
from tokconv.store.reader import TokenStore
from tokconv.system.files import write_json

MEASURED = tuple(name for name in BASELINES if name != "downsampled")
"""The store of these tests was made without images."""
LABELS = [BASELINES[name].label for name in MEASURED]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("stores") / "tiny")


def _export(folder: Path, store: TokenStore, *, grid: int = 2, **changes: object) -> Path:
    """Write an exported compressor for this store, with changes to its config.json."""
    write_export(folder, token_grid=store.token_grid, dim=store.dim, grid=grid)
    own = {"encoder": store.settings.encoder, "store_fingerprint": store.fingerprint, "protocol": PROTOCOL}
    write_json(folder / "config.json", {**read_config(folder), **own, **changes})
    return folder


def _refused(capsys: Capture, arguments: list[str], *expected: str) -> None:
    capsys.readouterr()
    assert main(["evaluate", *arguments]) == 2
    text = capsys.readouterr().err
    assert re.fullmatch(r"tokconv: [^\n]+\n", text), text
    for part in expected:
        assert part in text


# The baselines of a store


def test_the_table_has_every_baseline_at_every_grid(store: TokenStore, tmp_path: Path, capsys: Capture) -> None:
    plot = tmp_path / "new" / "plot.png"
    assert main(["evaluate", "--baselines", str(store.path), "--grids", "3,2", "--plot", str(plot)]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^(\d)x\d: 36 to", text, re.MULTILINE) == ["2", "3"]
    for title in LABELS:
        assert len(re.findall(rf"^{re.escape(title)}  ", text, re.MULTILINE)) == 2
    assert f"{baseline_figures(store, 3)['tome']['val/fvu']:.4f}" in text
    assert f"evaluation protocol {PROTOCOL}" in text
    assert text.count("window PCA: exact") == 2
    assert text.count("no baseline of downsampled images: ") == 1
    with Image.open(plot) as picture:
        assert picture.format == "PNG"


def test_grids_and_plot_have_defaults_that_fit(store: TokenStore, capsys: Capture) -> None:
    assert main(["evaluate", "--baselines", str(store.path)]) == 0
    # With 6 x 6 tokens, only the first of 4, 6, 8 and 12 compresses.
    assert re.findall(r"^(\d+)x\d+: 36 to", capsys.readouterr().out, re.MULTILINE) == ["4"]
    assert (store.derived_dir / "rate_distortion.png").is_file()


def test_every_baseline_is_measured(store: TokenStore) -> None:
    assert tuple(baseline_figures(store, 2)) == MEASURED


@pytest.mark.parametrize("grids", ["", "4,", "4;6", "four"])
def test_grids_that_are_not_numbers_are_refused(store: TokenStore, grids: str, capsys: Capture) -> None:
    _refused(capsys, ["--baselines", str(store.path), "--grids", grids], f"--grids: got {grids!r}", "as in 4,6,8,12")


def test_unusable_stores_and_grids_are_refused(store: TokenStore, tmp_path: Path, capsys: Capture) -> None:
    _refused(capsys, ["--baselines", str(store.path), "--grids", "2,7"], "--grids: got 7; must be between 1 and", "6")
    _refused(capsys, ["--baselines", str(tmp_path / "nowhere")], "there is no token store")
    _refused(capsys, ["--baselines", str(store.path), "--plot", str(tmp_path)], "is a folder")
    _refused(capsys, ["--baselines", str(store.path), "--device", "frog"], "device 'frog' is not available")


def test_downsampled_images_are_encoded_on_the_device_that_is_named(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[object] = []

    def on(*_: object, device: object, **__: object) -> str:
        used.append(device)
        return "no images"

    monkeypatch.setattr("tokconv.training.baselines.add_downsampled", on)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    words = ["evaluate", "--baselines", str(store.path), "--grids", "2", "--plot", str(tmp_path / "plot.png")]
    assert main([*words, "--device", "cpu"]) == 0
    assert used == ["cpu"]


# An exported compressor


def test_a_compressor_is_shown_with_the_baselines_of_its_grid(
    store: TokenStore, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["evaluate", str(_export(tmp_path / "own", store)), str(store.path)]) == 0
    text = capsys.readouterr().out
    assert "2x2: 36 to 4 tokens, 9x fewer" in text
    for title in ("this compressor", *LABELS):
        assert re.search(rf"^{re.escape(title)}  ", text, re.MULTILINE)
    # Its weights are random, so every baseline is better.
    assert re.search(
        r"^fidelity: fvu [\d.]+ does not beat the best closed form, .*; use .* as it is, or train", text, re.MULTILINE
    )
    assert "plug-in: unfit, fvu" in text
    assert "note:" not in text


def test_the_store_of_a_compressor_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    write_store(Path("runs/stores/another"), seed=1)
    own = write_store(Path("runs/stores/own"))
    assert main(["evaluate", str(_export(tmp_path / "own", own))]) == 0
    assert "runs/stores/own: held-out figures" in capsys.readouterr().out
    _refused(capsys, [str(_export(tmp_path / "lost", own, store_fingerprint="0"))], "name a store of the same encoder")


def test_figures_of_another_protocol_or_store_are_noted(store: TokenStore, tmp_path: Path, capsys: Capture) -> None:
    changed = _export(tmp_path / "old", store, protocol=PROTOCOL + 1, store_fingerprint="0")
    assert main(["evaluate", str(changed), str(store.path)]) == 0
    text = capsys.readouterr().out
    assert f"are of evaluation protocol {PROTOCOL + 1}, those above of {PROTOCOL}; the two do not compare" in text
    assert "trained on another store of this encoder" in text


def test_a_store_of_another_encoder_is_refused(store: TokenStore, tmp_path: Path, capsys: Capture) -> None:
    other = _export(tmp_path / "other", store, encoder={"name": "another", "layer": 1})
    _refused(capsys, [str(other), str(store.path)], "another encoder", "name: 'another', not 'synthetic'")
    layer = _export(tmp_path / "layer", store, encoder={"name": "synthetic", "layer": 7})
    _refused(capsys, [str(layer), str(store.path)], "layer: 7, not 1")
    none = _export(tmp_path / "none", store, encoder=None)
    _refused(capsys, [str(none), str(store.path)], "it describes no encoder")


def test_arguments_that_contradict_each_other_are_refused(store: TokenStore, tmp_path: Path, capsys: Capture) -> None:
    folder, path = str(tmp_path), str(store.path)
    _refused(capsys, [], "name an exported compressor or --baselines STORE")
    _refused(capsys, [folder, "--baselines", path], "one of the two")
    _refused(capsys, [folder, path, "--grids", "4"], "--grids: goes with --baselines")
    _refused(capsys, [folder, path], "not an exported compressor")


# The table


ROWS = {
    "one": {"val/fvu": 0.1, "val/cosine": 0.9, "val/swd": 0.2, "val/swd_floor": 0.05},
    "two": {"val/fvu": 0.2, "val/cosine": 0.95, "val/swd": 0.2, "val/swd_floor": 0.05},
}


def test_the_best_of_each_column_is_bold_on_a_terminal_only() -> None:
    lines = figure_table(ROWS, bold=True).splitlines()
    assert f"{BOLD}0.1000{PLAIN}" in lines[1]
    assert f"{BOLD} 0.950{PLAIN}" in lines[2]
    # Equally good and the best, so both are bold.
    assert all(f"{BOLD}0.200{PLAIN}" in line for line in lines[1:3])
    assert BOLD not in lines[3]
    plain = figure_table(ROWS, bold=False)
    assert plain == "\n".join(lines).replace(BOLD, "").replace(PLAIN, "")
    assert plain.splitlines()[3].split() == ["real", "tokens", "0.050"]


def test_bold_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert is_bold(Terminal())
    assert not is_bold(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_bold(Terminal())


def test_columns_without_a_value_are_left_out() -> None:
    title = figure_table(ROWS, bold=False).splitlines()[0]
    assert title.split() == ["fvu", "swd", "cosine"]
