"""`load_compressor` finds a champion by sweep, grid and purpose, and says what there is if it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.artefacts import write_export
from support.champions_folders import change_config

import tokconv
from tokconv.cli.main import main
from tokconv.errors import CheckpointError
from tokconv.exports.champions import find_champion

HAS = "grid 4: fidelity; grid 6: fidelity, plug-in"


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the relative path of a sweep with three champions, of which each has its own weights."""
    monkeypatch.chdir(tmp_path)
    place = Path("runs/sweeps/demo-001")
    for number, (grid, purpose) in enumerate(((4, "fidelity"), (6, "fidelity"), (6, "plug-in"))):
        path = write_export(place / "champions" / f"grid-{grid:02d}" / purpose, 12, 8, grid)
        change_config(path, evidence={"purpose": purpose}, figures={"val/fvu": float(number), "compression_ratio": 4.0})
    (place / "events.jsonl").touch()
    return place


def fvu(*args: object, **chosen: object) -> float:
    description = tokconv.load_compressor(*args, **chosen).description  # type: ignore[arg-type]
    assert description is not None
    return float(description["figures"]["val/fvu"])


def test_a_champion_is_found_by_sweep_grid_and_purpose(sweep: Path) -> None:
    for place in (sweep, str(sweep), "demo-001", "demo", sweep.resolve(), sweep / "champions"):
        assert fvu(place, grid=6, purpose="plug-in") == 2
        assert fvu(place, grid=4) == 0
        assert fvu(place, purpose="plug-in") == 2
    assert fvu(sweep / "champions" / "grid-04") == 0
    assert fvu(sweep / "champions" / "grid-06", purpose="fidelity") == 1
    assert fvu(sweep / "champions" / "grid-06" / "plug-in", grid=6, purpose="plug-in") == 2
    decoder = tokconv.load_decoder(sweep, grid=6, purpose="plug-in")
    assert decoder(torch.zeros(1, 36, 8)).shape == (1, 144, 8)


def test_a_champion_of_a_version_with_one_purpose_still_loads(sweep: Path) -> None:
    old = sweep / "champions" / "grid-06"
    shutil.copytree(old / "fidelity", "moved")
    shutil.rmtree(old)
    shutil.move("moved", old)
    assert fvu(old) == 1
    assert fvu(sweep, grid=6, purpose="fidelity") == 1


@pytest.mark.parametrize(
    ("place", "chosen", "message"),
    [
        ("demo-001", {}, f"several champions; give grid and purpose as well: {HAS}"),
        ("demo-001", {"grid": 6}, "several champions with grid=6; give purpose as well: grid 6: fidelity, plug-in"),
        ("demo-001", {"purpose": "fidelity"}, "give grid as well: grid 4: fidelity; grid 6: fidelity"),
        ("demo-001", {"grid": 8}, f"no champion with grid=8; it has {HAS}"),
        ("demo-001", {"grid": 4, "purpose": "plug-in"}, f"no champion with grid=4 and purpose='plug-in'; it has {HAS}"),
        ("demo-001", {"purpose": "plugin"}, f"purpose: got 'plugin'; runs/sweeps/demo-001 has {HAS}"),
        ("demo-002", {}, "demo-002: not an exported compressor"),
        ("runs/sweeps", {}, "runs/sweeps: not an exported compressor"),
        ("runs/sweeps/demo-001/champions/grid-06/plug-in", {"grid": 4}, "is one compressor, with grid=6, not 4"),
        ("runs/sweeps/demo-001/champions/grid-06/plug-in", {"purpose": "adapted"}, "with purpose='plug-in', not"),
    ],
)
def test_a_wrong_choice_lists_what_there_is(sweep: Path, place: str, chosen: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        tokconv.load_compressor(place, **chosen)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_a_sweep_without_champions_says_where_the_reasons_are(sweep: Path) -> None:
    shutil.rmtree(sweep / "champions")
    with pytest.raises(CheckpointError, match="has no exported champion; tokconv report demo-001 shows why"):
        tokconv.load_compressor("demo-001", grid=6)


def test_the_commands_choose_in_the_same_way(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "demo-001", "--grid", "6", "--purpose", "plug-in", "--out", "copy"]) == 0
    assert fvu("copy") == 2
    assert find_champion("copy", 6, "plug-in") == Path("copy")
    assert main(["export", str(sweep), "--grid", "6", "--out", "other"]) == 2
    assert "give purpose as well" in capsys.readouterr().err
    assert main(["evaluate", "--baselines", "nowhere", "--grid", "6"]) == 2
    assert "--grid: goes with a compressor" in capsys.readouterr().err
