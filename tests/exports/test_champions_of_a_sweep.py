"""`load_compressor` finds a champion by sweep, grid and purpose, and says what there is if it cannot."""

from __future__ import annotations

import importlib
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
from tokconv.system.files import write_json

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
        # Of several purposes, fidelity is the default, as `champion` in the model registry.
        assert fvu(place, grid=6) == 1
        assert fvu(f"{place}:6") == 1
        assert fvu(f"{place}:6:plug-in") == 2
        assert fvu(f"{place}:6", purpose="plug-in") == 2
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
        ("demo-001", {}, f"several champions; give grid as well, as in demo-001:4:fidelity: {HAS}"),
        ("demo-001", {"purpose": "fidelity"}, "as in demo-001:4:fidelity: grid 4: fidelity; grid 6: fidelity"),
        ("demo:6", {"grid": 4}, "demo:6: names grid 6, and grid=4 was given; leave one out"),
        ("demo:6:fidelity", {"purpose": "plug-in"}, "names purpose fidelity, and purpose='plug-in' was given"),
        ("demo:8", {}, f"no champion with grid=8; it has {HAS}"),
        ("other:6", {}, "other: not an exported compressor"),
        ("demo-001", {"grid": 8}, f"no champion with grid=8; it has {HAS}"),
        ("demo-001", {"grid": 4, "purpose": "plug-in"}, f"no champion with grid=4 and purpose='plug-in'; it has {HAS}"),
        ("demo-001", {"purpose": "plugin"}, f"got 'plugin'; runs/sweeps/demo-001 has {HAS}; did you mean plug-in?"),
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


def refusal(**chosen: object) -> str:
    with pytest.raises(CheckpointError) as error:
        tokconv.load_compressor("demo-001", **chosen)  # type: ignore[arg-type]
    return str(error.value)


def test_the_report_says_why_there_is_no_such_champion(sweep: Path) -> None:
    awards = {
        "fidelity": {"finding": "", "evidence": {"summary": "proven"}, "export": "champions/grid-04/fidelity"},
        "plug-in": {"finding": "matched PCA is at least as good", "evidence": {"summary": "unproven"}, "export": None},
    }
    pending = {"fidelity": {"finding": "", "evidence": {"summary": "pending 1/3"}, "export": None}}
    left_out = ["adapted: left out, there is no val/adapted_kept"]
    report = {"4": {"champions": awards, "left_out": left_out}, "12": {"champions": pending, "left_out": left_out}}
    write_json(sweep / "report" / "champions.json", report)
    assert refusal(grid=4, purpose="plug-in") == (
        "runs/sweeps/demo-001: no champion with grid=4 and purpose='plug-in' (plug-in at 4x4: matched PCA is at least "
        f"as good); it has {HAS}"
    )
    assert f"with purpose='adapted' ({left_out[0]}); it has" in refusal(purpose="adapted")
    assert "with grid=12 (fidelity at 12x12: pending 1/3); it has" in refusal(grid=12)
    assert "with grid=8 (its grids are 4, 12); it has" in refusal(grid=8)
    # Of a version that knew one purpose, and damaged.
    write_json(sweep / "report" / "champions.json", {"8": {"evidence": {"summary": "unproven, 3 seeds"}}})
    assert "(fidelity at 8x8: unproven, 3 seeds); it has" in refusal(grid=8)
    write_json(sweep / "report" / "champions.json", {"8": 1})
    assert refusal(grid=8).endswith(f"no champion with grid=8; it has {HAS}; tokconv report demo-001 shows why")


def test_a_sweep_without_champions_says_where_the_reasons_are(sweep: Path) -> None:
    shutil.rmtree(sweep / "champions")
    expected = "no champion; it has exported none; tokconv report demo-001 shows why"
    assert refusal() == f"runs/sweeps/demo-001: {expected}"
    assert "no champion with grid=6; it has exported none" in refusal(grid=6)


def test_the_commands_choose_in_the_same_way(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "demo-001", "--grid", "6", "--purpose", "plug-in", "--out", "copy"]) == 0
    assert fvu("copy") == 2
    assert find_champion("copy", 6, "plug-in") == Path("copy")
    assert main(["export", "demo:4", "--out", "small"]) == 0
    assert fvu("small") == 0
    assert main(["export", "demo"]) == 2
    assert "has 3 champions; give --out DIR to copy all of them, or name one, as demo:4:fidelity" in (
        capsys.readouterr().err
    )
    assert main(["export", "demo", "--out", "all"]) == 0
    assert fvu("all", grid=6, purpose="plug-in") == 2
    assert [fvu(f"all:{grid}") for grid in (4, 6)] == [0, 1]
    assert main(["evaluate", "--baselines", "nowhere", "--grid", "6"]) == 2
    assert "--grid: goes with a compressor" in capsys.readouterr().err


def test_a_folder_whose_name_has_a_colon_is_that_folder(sweep: Path) -> None:
    write_export(Path("odd:6"), 12, 8, 4)
    assert find_champion("odd:6") == Path("odd:6")


def test_evaluate_takes_all_champions_of_a_sweep_each_once(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The champion for plug-in at 6 x 6 is given the weights of the one for fidelity, as if one trial had won twice."""
    shutil.copy(
        sweep / "champions/grid-06/fidelity/model.safetensors", sweep / "champions/grid-06/plug-in/model.safetensors"
    )
    taken: list[Path] = []
    command = importlib.import_module("tokconv.cli.evaluate")
    monkeypatch.setattr(command, "_evaluate_compressor", lambda folder, *_, **__: taken.append(folder))
    assert main(["evaluate", "demo"]) == 0
    assert taken == [sweep / "champions/grid-04/fidelity", sweep / "champions/grid-06/fidelity"]
    assert "grid-06/fidelity is also grid-06/plug-in" in capsys.readouterr().out
    taken.clear()
    assert main(["evaluate", "demo:6:plug-in"]) == 0
    assert taken == [sweep / "champions/grid-06/plug-in"]
