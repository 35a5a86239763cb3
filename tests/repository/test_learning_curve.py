"""tools/learning_curve.py: arms are nested, judged by the same held-out images, and finished ones are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from support.photos import write_photos
from support.towers import write_tower

from tokconv.config.overrides import compose
from tokconv.encoding.pipeline import encode
from tokconv.errors import DataError
from tokconv.store.reader import TokenStore


@pytest.fixture
def tool(tools: Callable[[str], ModuleType]) -> Any:
    return tools("learning_curve")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("curve")
    return write_photos(folder / "photos", 24), write_tower(folder / "tower", image_size=24, dim=16)


def test_a_larger_arm_contains_the_smaller_ones(tool: Any, places: tuple[Path, Path], tmp_path: Path) -> None:
    photos, tower = places
    words = ["data=folder", f"data.root={photos}", f"model.clip.model_name={tower}", "data.views=3"]
    store = encode(compose([*words, "data.num_workers=0"]), device="cpu", stores=tmp_path / "stores")
    rows = {(n, views): {*tool.choose(store, n, views).tolist()} for n in (4, 8) for views in (1, 2)}
    held_out = {*store.val_indices.tolist()}
    for (n, views), own in rows.items():
        assert own >= held_out
        keys = [store.keys[row] for row in own - held_out]
        assert len(keys) == n * views
        assert len({key.partition("#")[0] for key in keys}) == n
    assert rows[4, 1] < rows[4, 2] < rows[8, 2]
    assert rows[4, 1] < rows[8, 1]
    chosen = tool.choose(store, 8, 2)
    part: TokenStore = tool.write_part(store, chosen, tmp_path / "part")
    assert torch.equal(part.tokens(torch.arange(part.num_images)), store.tokens(chosen))
    assert [part.keys[row] for row in part.val_indices] == [store.keys[row] for row in store.val_indices]
    with pytest.raises(DataError, match="100 images and 1 views: the store has"):
        tool.choose(store, 100, 1)


def test_photographs_that_are_numbered_with_a_hash_are_different_ones(tool: Any) -> None:
    keys = ("photo #1.jpg", "photo #1.jpg#view-1", "photo #2.jpg", "photo #2.jpg#view-1", "photo #3.jpg")
    settings = SimpleNamespace(source={"views": 2})
    store = SimpleNamespace(keys=keys, settings=settings, train_indices=torch.arange(4), val_indices=torch.tensor([4]))
    assert tool.choose(store, 2, 1).tolist() == [0, 2, 4]


def test_the_curve_is_a_table_and_finished_arms_are_kept(
    tool: Any,
    places: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    photos, tower = places
    words = ["--photos", str(photos), "--tower", str(tower), "--steps", "4", "--images", "4", "8", "--views", "1", "2"]
    words += ["model.compressor.output_grid_size=2", "training.batch_size=4", "data.num_workers=0"]
    assert tool.main(words) == 0
    table = capsys.readouterr().out.splitlines()[-4:]
    assert [row.split(" | ")[:2] for row in table] == [["| 4", "1"], ["| 4", "2"], ["| 8", "1"], ["| 8", "2"]]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "learning-curve").rglob("*.json")}
    assert len(before) == 4
    assert tool.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == table
    assert before == {path: path.stat().st_mtime_ns for path in before}
