"""`tokconv answers`: resuming, baselines, images that were learned from, refusals."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from support.artefacts import write_export
from support.stores import write_store

from tokconv.cli.answers import _sweep_of
from tokconv.cli.main import main
from tokconv.exports.answers.methods import Exported
from tokconv.exports.answers.seen import count_seen
from tokconv.exports.answers.tasks import make_task, split_of
from tokconv.exports.artefact import read_config
from tokconv.store.reader import TokenStore
from tokconv.system.files import write_json

GRID = 5
"""The grid of the compressor in conftest.py."""
Capture = pytest.CaptureFixture[str]


def arguments(folder: Path, compressor: Path, photos: Path, out: Path, *more: str) -> list[str]:
    tasks = ["--tasks", f"classes:{photos}", f"captions:{photos}"]
    options = ["--baselines", "downsampled", "--max-tokens", "2", "--device", "cpu", "--out", str(out)]
    return ["answers", str(folder), str(compressor), *tasks, *options, *more]


def without_times(out: Path) -> list[dict[str, object]]:
    figures = json.loads((out / "answers.json").read_text())
    return [
        {key: value for key, value in method.items() if key not in ("prefill_s", "compress_s")} for method in figures
    ]


def test_the_command_resumes_to_the_same_result(
    folder: Path, compressor: Path, photos: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(arguments(folder, compressor, photos, whole)) == 0
    text = capsys.readouterr().out
    assert re.search(r"^all tokens +576 +1x ", text, re.MULTILINE)
    assert re.search(rf"^mine +{GRID**2} +23x ", text, re.MULTILINE)
    assert re.search(rf"^small image +{GRID**2} +23x ", text, re.MULTILINE)
    assert (whole / "answers.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((whole / "answers.json").read_text())
    assert figures[0]["tasks"]["classes"]["kl"] == pytest.approx(0, abs=1e-6)
    assert figures[0]["tasks"]["captions"]["accuracy"] is None
    # Keys and values of 2 layers, 4 heads of 8, float32, for every position.
    assert figures[0]["cache_bytes"] - figures[1]["cache_bytes"] == 2 * 2 * 32 * 4 * (576 - GRID**2)

    with monkeypatch.context() as patch:
        patch.setattr(Exported, "compress", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(arguments(folder, compressor, photos, parts)) == 130
    there = {path: path.stat().st_mtime_ns for path in parts.rglob("*") if path.is_file() and path.name != "run.json"}
    assert there
    assert main(arguments(folder, compressor, photos, parts)) == 0
    assert {path: path.stat().st_mtime_ns for path in there} == there, "what was done is not done again"
    assert without_times(parts) == without_times(whole)

    capsys.readouterr()
    assert main(arguments(folder, compressor, photos, parts, "--questions", "2")) == 2
    assert "holds answers with another tasks" in capsys.readouterr().err


def test_baselines_are_fitted_on_a_store_of_the_tower(
    folder: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    encode = ["data=folder", f"data.root={photos}", "model.clip.model_name=bundled:digits-tower"]
    assert main(["encode", *encode, f"data.store={tmp_path / 'store'}", "data.num_workers=0", "--device", "cpu"]) == 0
    baselines = ["--baselines", "pooling,random,tome", "--grids", "6", "--store", str(tmp_path / "store")]
    command = ["answers", str(folder), "--tasks", f"classes:{photos}", *baselines]
    assert main([*command, "--max-tokens", "1", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^(pooling|random|ToMe\*) +36 +16x", text, re.MULTILINE) == ["pooling", "random", "ToMe*"]
    assert "training images of" not in text, "the folder has a split of its own"


def test_images_that_were_learned_from_are_counted_and_told(
    folder: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A folder without splits is split by the store in one way, and by the task in another."""
    flat = tmp_path / "flat"
    for number, path in enumerate(sorted(photos.rglob("*.png")) * 2):
        place = flat / path.parent.name / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).crop((0, 0, 39 - number, 30)).save(place)
    encode = ["data=folder", f"data.root={flat}", "data.views=2", "model.clip.model_name=bundled:digits-tower"]
    assert main(["encode", *encode, f"data.store={tmp_path / 'store'}", "data.num_workers=0", "--device", "cpu"]) == 0
    store = TokenStore.open(tmp_path / "store")
    learned = {store.keys[image] for image in store.train_indices.tolist()}
    keys = [path.relative_to(flat).as_posix() for path in flat.rglob("*.png")]
    test = [key for key in keys if split_of(key) == "test"]
    seen = len(learned.intersection(test))
    assert seen > 0
    for name in ("classes", "captions"):
        task = make_task(f"{name}:{flat}")
        assert (task.num_images, count_seen(task, store)) == (len(test), seen)
    assert count_seen(make_task(f"classes:{photos}"), store) == 0
    assert count_seen(make_task("reading", "train"), store) == 0, "its images are drawn"
    capsys.readouterr()
    few = ["--baselines", "pooling", "--grids", "6", "--store", str(store.path), "--max-tokens", "1"]
    assert main(["answers", str(folder), "--tasks", f"captions:{flat}", *few, "--out", str(tmp_path / "out")]) == 0
    told = f"captions: {seen} of its {len(test)} images are training images of {store.path}"
    assert told in capsys.readouterr().out
    assert told in (tmp_path / "out" / "answers.txt").read_text()


def test_bad_input_is_refused_before_any_work(
    folder: Path, compressor: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"

    def refused(expected: str, *words: str) -> None:
        capsys.readouterr()
        assert main(["answers", *words, "--out", str(out), "--device", "cpu"]) == 2
        text = capsys.readouterr().err
        assert re.fullmatch(r"tokconv: [^\n]+\n", text), text
        assert expected in text
        assert not out.exists()

    task = ("--tasks", f"classes:{photos}")
    none = ("--baselines", "none")
    refused("no model directory", str(tmp_path), *task)
    refused("did you mean reading?", str(folder), "--tasks", "raeding", *none)
    refused("classes needs a folder", str(folder), "--tasks", "classes", *none)
    refused("did you mean pooling?", str(folder), *task, "--baselines", "poolling")
    refused("fitted on a token store", str(folder), *task)
    refused("--batch-size: got 0", str(folder), *task, "--batch-size", "0")
    refused("goes with the task captions", str(folder), *task, "--prompts", str(tmp_path))
    store = write_store(tmp_path / "store")
    refused("its width is 8, that of the model's tower is 64", str(folder), *task, "--store", str(store.path))
    write_export(tmp_path / "other", token_grid=24, dim=32, grid=4)
    refused("the compressor's width is 32", str(folder), str(tmp_path / "other"), *task, *none)
    described = read_config(compressor)
    encoder = {**described["encoder"], "preprocessing": {"image_mean": [0.1, 0.1, 0.1]}}
    shutil.copytree(compressor, tmp_path / "normalised")
    write_json(tmp_path / "normalised" / "config.json", {**described, "encoder": encoder})
    refused("whose image_mean is", str(folder), str(tmp_path / "normalised"), *task, *none)
    refused("two compressors are called mine", str(folder), str(compressor), str(compressor), *task, *none)


def test_an_export_at_the_root_of_a_disk_is_of_no_sweep() -> None:
    """Nothing is there, but resolving its path needs no file."""
    assert _sweep_of([Path("/compressor")]) is None
