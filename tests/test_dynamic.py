"""A grid per image: fitted, written, loaded, refused where it does not fit, and used from the command line."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from champions_folders import change_config, write_champions
from PIL import Image
from safetensors.torch import load_file, save_file
from stores import write_store

import tokconv
from tokconv.cli import main
from tokconv.dynamic.compressor import DynamicCompressor, load_dynamic, read_champions
from tokconv.dynamic.fit import DynamicReport, fit_dynamic, halves, measure
from tokconv.dynamic.predictor import choose
from tokconv.dynamic.ragged import load_ragged, save_ragged
from tokconv.dynamic.spectrum import Spectrum
from tokconv.errors import CheckpointError, ConfigError, DataError, StoreError
from tokconv.evaluate import Evaluator, codec_of
from tokconv.export import load_compressor, load_decoder
from tokconv.store import TokenStore

GRIDS = (2, 3, 6)
HEAVY = ("ray", "mlflow", "transformers", "hydra", "omegaconf", "optuna", "pandas", "matplotlib", "sklearn")
Fitted = tuple[Path, TokenStore, DynamicReport]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Shared, and changed by no test."""
    folder = tmp_path_factory.mktemp("fitted")
    store = write_store(folder / "store", num_images=320)
    champions = write_champions(folder / "champions", store, GRIDS)
    return champions, store, fit_dynamic(champions, store, device="cpu")


@pytest.fixture
def copy(fitted: Fitted, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted[0], tmp_path / "copy"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def middle_target(fitted: Fitted) -> float:
    """A target at which some images need another grid than others."""
    return min(fitted[2].dynamic, key=lambda row: abs(row.tokens - 6)).target


# Fitting


def test_errors_are_those_of_the_evaluation_protocol(fitted: Fitted) -> None:
    folder, store, _ = fitted
    spectrum = Spectrum(store.mean, torch.eye(store.dim), torch.tensor(store.scale))
    champions = read_champions(folder)
    errors = measure(champions, spectrum, store, device="cpu").errors
    assert errors.shape == (len(store.val_indices), len(GRIDS))
    for number, champion in enumerate(champions):
        codec = codec_of(champion.compressor, load_decoder(champion.path))
        figures = Evaluator(store, champion.grid).evaluate(codec)
        assert float(errors[:, number].mean()) == pytest.approx(figures["val/fvu"], rel=1e-5)


def test_the_report_is_about_images_that_were_not_fitted_on(fitted: Fitted) -> None:
    _, store, report = fitted
    assert report.grids == GRIDS
    assert report.fitted_on + report.judged_on == len(store.val_indices)
    assert min(report.spearman[:2]) > 0.5
    for row, best in zip(report.dynamic, report.oracle, strict=True):
        assert row.target == best.target
        assert 4 <= row.tokens <= 36
        assert row.low <= row.saving <= row.high
        assert row.tokens <= row.mixed_tokens / (1 - row.high) + 1e-6
        assert row.mixed_tokens <= row.fixed_tokens + 1e-9
        assert best.met + best.unmet == pytest.approx(1)
    tokens = [row.tokens for row in report.dynamic]
    assert tokens == sorted(tokens, reverse=True)


def test_halves_depend_on_the_keys_alone() -> None:
    keys = [f"image-{number}" for number in range(101)]
    first, second = halves(keys)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(101))
    order = torch.randperm(101, generator=torch.Generator().manual_seed(1)).tolist()
    again, _ = halves([keys[number] for number in order])
    assert {keys[order[number]] for number in again.tolist()} == {keys[number] for number in first.tolist()}


def test_fitting_again_writes_the_same_bytes(fitted: Fitted, copy: Path) -> None:
    (copy / "dynamic" / "leftover").write_text("of the older one")
    fit_dynamic(copy, fitted[1], device="cpu")
    again, before = files_of(copy), files_of(fitted[0])
    assert set(again) == set(before)
    for name in before:
        assert name.endswith(".png") or again[name] == before[name]
    with Image.open(copy / "dynamic" / "tokens_vs_fvu.png") as picture:
        assert picture.format == "PNG"


def test_fit_refuses(fitted: Fitted, copy: Path, tmp_path: Path) -> None:
    store = fitted[1]
    before = files_of(copy)
    with pytest.raises(CheckpointError, match=r"were not trained on .*other"):
        fit_dynamic(copy, write_store(tmp_path / "other", num_images=100, seed=1))
    few = write_store(tmp_path / "few", num_images=40)
    with pytest.raises(StoreError, match="has 10 held-out images; a predictor needs at least 20"):
        fit_dynamic(write_champions(tmp_path / "of-few", few, (2, 3)), few)
    with pytest.raises(CheckpointError, match="holds 1 exported compressors; a choice needs at least two"):
        fit_dynamic(write_champions(tmp_path / "one", store, (2,)), store)
    assert files_of(copy) == before
    (copy / "grid-03" / "decoder.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"decoder\.safetensors"):
        fit_dynamic(copy, store)
    assert {name for name in files_of(copy) if name.startswith("dynamic")} == {n for n in before if "dynamic" in n}


# Loading and choosing


def test_every_image_gets_what_its_grid_gives(fitted: Fitted) -> None:
    folder, store, _ = fitted
    target = middle_target(fitted)
    dynamic = tokconv.load_dynamic(folder, target_fvu=target)
    assert not dynamic.training
    tokens = store.tokens(store.val_indices)
    with torch.no_grad():
        parts, grids = dynamic(tokens)
        assert len(set(grids.tolist())) > 1
        compressed = {grid: load_compressor(folder / f"grid-{grid:02d}")(tokens) for grid in GRIDS}
        predicted = dynamic.predictor(tokens)
    for number, (part, grid) in enumerate(zip(parts, grids.tolist(), strict=True)):
        assert part.shape == (grid**2, store.dim)
        torch.testing.assert_close(part, compressed[grid][number], rtol=1e-5, atol=1e-5)
    index, meets = dynamic.choose(tokens)
    assert torch.equal(torch.tensor(GRIDS)[index], grids)
    # At the default confidence the bound is the prediction, moved by the median residual, which is small.
    same = torch.tensor(GRIDS)[choose(predicted, target)[0]] == grids
    assert float(same.double().mean()) > 0.8
    assert meets.any()


def test_loading_is_bit_identical_and_deterministic(fitted: Fitted) -> None:
    folder, store, _ = fitted
    tokens = store.tokens(store.val_indices[:20])
    first, second = (load_dynamic(str(folder), target_fvu=middle_target(fitted)) for _ in range(2))
    written = load_file(folder / "dynamic" / "predictor.safetensors")
    assert {name: value.shape for name, value in first.predictor.state_dict().items()} == {
        name: value.shape for name, value in written.items()
    }
    assert all(torch.equal(value, written[name]) for name, value in first.predictor.state_dict().items())
    with torch.no_grad():
        (parts, grids), (again, same) = first(tokens), second(tokens)
    assert torch.equal(grids, same)
    assert all(torch.equal(part, other) for part, other in zip(parts, again, strict=True))


def test_targets_and_confidence_move_the_choice_one_way(fitted: Fitted) -> None:
    folder, store, report = fitted
    tokens = store.tokens(store.val_indices)

    def grids(target: float, confidence: float = 0.5) -> torch.Tensor:
        with torch.no_grad():
            return torch.as_tensor(load_dynamic(folder, target_fvu=target, confidence=confidence)(tokens)[1])

    assert set(grids(1e-12).tolist()) == {6}
    assert set(grids(1e12).tolist()) == {2}
    targets = [row.target for row in report.dynamic]
    chosen = torch.stack([grids(target) for target in targets])
    assert (chosen.diff(dim=0) <= 0).all()
    assert (grids(middle_target(fitted), 0.9) >= grids(middle_target(fitted), 0.3)).all()


def test_no_images_are_no_tokens(fitted: Fitted) -> None:
    parts, grids = load_dynamic(fitted[0], target_fvu=0.1)(torch.zeros(0, 36, 8))
    assert parts == []
    assert grids.shape == (0,)


@pytest.mark.parametrize("target", [0.0, -0.1, math.nan, math.inf])
def test_a_target_that_is_none_is_refused(fitted: Fitted, target: float) -> None:
    with pytest.raises(ConfigError, match=r"target_fvu: got .*; must be a positive number"):
        load_dynamic(fitted[0], target_fvu=target)


def test_other_tokens_and_confidences_are_refused(fitted: Fitted) -> None:
    with pytest.raises(ConfigError, match=r"confidence: got 1\.0"):
        load_dynamic(fitted[0], target_fvu=0.1, confidence=1.0)
    dynamic: DynamicCompressor = load_dynamic(fitted[0], target_fvu=0.1)
    for shape in ((2, 35, 8), (2, 36, 7), (36, 8)):
        with pytest.raises(ConfigError, match=r"these compressors need \[batch, 36, 8\]"):
            dynamic(torch.zeros(shape))


def _replaced(path: Path) -> None:
    weights = load_file(path / "grid-03" / "model.safetensors")
    weights["projection.bias"] += 1e-3
    save_file(weights, path / "grid-03" / "model.safetensors")


def _tensors_of_two_grids(path: Path) -> None:
    file = path / "dynamic" / "predictor.safetensors"
    tensors = load_file(file)
    for name in ("weight", "residuals"):
        tensors[name] = tensors[name][:, :2].contiguous()
    save_file(tensors | {"bias": tensors["bias"][:2].contiguous()}, file)


FIT_IT = "run: tokconv dynamic "


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: change_config(path / "grid-03", encoder={"name": "another"}), "grid-03 has another encoder than"),
        (lambda path: change_config(path / "grid-06", store_fingerprint="0"), "grid-06 has another token store than"),
        (lambda path: shutil.copytree(path / "grid-03", path / "x"), "grid-03 and x have the same grid, 3 x 3"),
        (lambda path: [shutil.rmtree(path / f"grid-{k:02d}") for k in GRIDS[1:]], "holds 1 exported compressors"),
        (shutil.rmtree, "holds 0 exported compressors"),
        (
            lambda path: shutil.rmtree(path / "dynamic"),
            f"was fitted for these compressors yet; {FIT_IT}",
        ),
        (_replaced, f"grid-03: is not what the predictor was fitted for; {FIT_IT}"),
        (
            lambda path: (path / "grid-03").rename(path / "x"),
            "x: is not what the predictor was fitted for; run: ",
        ),
        (lambda path: shutil.rmtree(path / "grid-03"), f"that the predictor was fitted for is gone; {FIT_IT}"),
        (lambda path: (path / "dynamic" / "dynamic.json").write_text("[1]"), f"dynamic.json: damaged; {FIT_IT}"),
        (lambda path: (path / "dynamic" / "dynamic.json").write_text('{"format": 9}'), "of another format"),
        (lambda path: (path / "dynamic" / "dynamic.json").write_text('{"format": 1}'), "is not what the predictor"),
        (lambda path: (path / "dynamic" / "predictor.safetensors").write_bytes(b"torn"), "missing or damaged"),
        (lambda path: (path / "dynamic" / "predictor.safetensors").unlink(), "missing or damaged"),
        (_tensors_of_two_grids, "predicts 2 grids, not 3"),
    ],
)
def test_what_does_not_belong_together_is_refused(copy: Path, damage: Callable[[Path], object], expected: str) -> None:
    damage(copy)
    with pytest.raises(CheckpointError) as error:
        load_dynamic(copy, target_fvu=0.1)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_compressors_of_other_sizes_are_refused(fitted: Fitted, copy: Path, tmp_path: Path) -> None:
    wide = write_champions(tmp_path / "wide", write_store(tmp_path / "store", dim=4, num_images=100), (3,))
    shutil.rmtree(copy / "grid-03")
    shutil.move(wide / "grid-03", copy / "grid-03")
    change_config(copy / "grid-03", encoder=fitted[1].settings.encoder)
    with pytest.raises(CheckpointError, match="grid-03 has another number of channels than grid-02"):
        load_dynamic(copy, target_fvu=0.1)


def test_what_an_interrupted_export_left_is_no_compressor(copy: Path) -> None:
    shutil.copytree(copy / "grid-03", copy / ".grid-03.0a1b2c3d.tmp")
    assert load_dynamic(copy, target_fvu=0.1).grids.tolist() == list(GRIDS)


def test_shipped_without_decoders_it_still_loads(copy: Path) -> None:
    for grid in GRIDS:
        (copy / f"grid-{grid:02d}" / "decoder.safetensors").unlink()
    assert load_dynamic(copy, target_fvu=0.1).grids.tolist() == list(GRIDS)


def test_a_fresh_interpreter_needs_torch_and_safetensors_alone(fitted: Fitted) -> None:
    code = (
        "import json, sys\nimport tokconv\n"
        "assert 'torch' not in sys.modules\n"
        "tokconv.load_dynamic(sys.argv[1], target_fvu=0.1), tokconv.load_ragged\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(fitted[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    assert set(json.loads(done.stdout)).isdisjoint(HEAVY)


# The file


def test_a_ragged_file_gives_back_what_was_written(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(k * k, 5, generator=generator) for k in (3, 1, 4, 3)]
    names = ["a.png", "dir/b c.png", "u\u00e9.png", "a.png"]
    read = tokconv.load_ragged(save_ragged(tmp_path / "sub" / "tokens.safetensors", parts, names))
    assert len(read) == 4
    assert read.images == tuple(names)
    assert read.grids.tolist() == [3, 1, 4, 3]
    assert read.offsets.tolist() == [0, 9, 10, 26, 35]
    assert all(torch.equal(part, again) for part, again in zip(parts, read, strict=True))
    assert torch.equal(read[-2], parts[2])
    for number in (4, -5):
        with pytest.raises(IndexError):
            read[number]


def test_what_is_no_ragged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    with pytest.raises(DataError, match="there is no such file"):
        load_ragged(path)
    for parts, names in ([], []), ([torch.zeros(4, 2)], []), ([torch.zeros(3, 2)], ["a"]):
        with pytest.raises(DataError, match=r"tokens\.safetensors"):
            save_ragged(path, parts, names)
    assert not list(tmp_path.iterdir())
    save_file({"tokens": torch.zeros(1, 4, 2)}, path)
    with pytest.raises(DataError, match="holds no tokens of mixed grids"):
        load_ragged(path)
    save_ragged(path, [torch.zeros(4, 2), torch.zeros(9, 2)], ["a", "b"])
    whole, good = path.read_bytes(), load_file(path)
    metadata = {"tokconv_ragged": "1", "images": '["a", "b"]'}
    path.write_bytes(whole[:-10])
    with pytest.raises(DataError, match="damaged"):
        load_ragged(path)
    wrong: tuple[tuple[dict[str, torch.Tensor], dict[str, str]], ...] = (
        ({"grids": torch.tensor([3, 2])}, {}),
        ({"grids": torch.tensor([-2, 3])}, {}),
        ({"offsets": torch.tensor([0, 4])}, {}),
        ({"tokens": torch.zeros(12, 2)}, {}),
        ({"tokens": torch.zeros(13)}, {}),
        ({}, {"images": '["a"]'}),
        ({}, {"images": "a, b"}),
    )
    for tensors, texts in wrong:
        save_file(good | tensors, path, metadata | texts)
        with pytest.raises(DataError, match="damaged"):
            load_ragged(path)


# The command line


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store of 120 digits, champions at two grids fitted for it, and some images."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["encode", "data.subset=120", "data.num_workers=0"]) == 0
        (path,) = Path("runs/stores").iterdir()
        write_champions(Path("champions"), TokenStore.open(path), (8, 12))
        assert main(["dynamic", "champions", "--device", "cpu"]) == 0
    for number in range(6):
        # Blank ones and ones full of noise: some easy, some hard.
        noise = torch.randint(0, 256, (24, 24), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        pixels = noise.numpy() if number % 2 else (0 * noise).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def here(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may change, as the current directory."""
    shutil.copytree(digits, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


IMAGES = [f"{number}.png" for number in range(6)]


def test_compress_by_target(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    champions = ["compress", *IMAGES, "--compressors", "champions"]
    target = _between(IMAGES)
    assert main([*champions, "--target-fvu", str(target), "--out", "t.safetensors", "--picture", "p.png"]) == 0
    text = capsys.readouterr().out
    ragged = load_ragged("t.safetensors")
    assert ragged.images == tuple(IMAGES)
    assert set(ragged.grids.tolist()) == {8, 12}
    assert all(part.shape == (int(grid) ** 2, 64) for part, grid in zip(ragged, ragged.grids, strict=True))
    assert f"{len(ragged.tokens) / 6:.1f} tokens an image on average" in text
    for grid in (8, 12):
        assert f"{grid} x {grid}: {int((ragged.grids == grid).sum())} image" in text
    with Image.open("p.png") as picture:
        assert picture.format == "PNG"
    # Batches change nothing, and one grid alone gives what that grid's compressor gives.
    assert main([*champions, "--target-fvu", str(target), "--out", "b.safetensors", "--batch-size", "4"]) == 0
    again = load_ragged("b.safetensors")
    assert torch.equal(again.grids, ragged.grids)
    torch.testing.assert_close(again.tokens, ragged.tokens, rtol=1e-4, atol=1e-4)
    capsys.readouterr()
    assert main([*champions, "--target-fvu", "1e-9", "--out", "all.safetensors"]) == 0
    assert "6 of the 6 images are not expected to meet the target at any grid" in capsys.readouterr().out
    assert main(["compress", *IMAGES, "--compressor", "champions/grid-12", "--out", "fixed.safetensors"]) == 0
    fixed = load_file("fixed.safetensors")["tokens"]
    torch.testing.assert_close(load_ragged("all.safetensors").tokens, fixed.flatten(0, 1), rtol=1e-4, atol=1e-4)


def _between(images: list[str]) -> float:
    """A target that some of these images are predicted to meet at the smallest grid, and some are not."""
    from tokconv.encoder import VisionTower
    from tokconv.overrides import compose

    tower = VisionTower(compose([]).model.clip, torch.device("cpu"))
    tokens = tower.encode(torch.cat([tower.preprocess([Image.open(name).convert("RGB")]) for name in images]))
    dynamic = load_dynamic("champions", target_fvu=1)
    with torch.no_grad():
        bounds = dynamic.predictor.upper(tokens, 0.5)[:, 0].sort().values
    return math.sqrt(float(bounds[2] * bounds[3]))


def test_the_command_reports_and_leaves_the_figures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("champions/dynamic")
    (store,) = Path("runs/stores").iterdir()
    for command in (["dynamic", "champions"], ["dynamic", "champions", str(store)]):
        assert main(command) == 0
        text = capsys.readouterr().out
        for part in ("R2 of the log error", "rank correlation", "saving", "oracle", "--target-fvu"):
            assert part in text
        report = json.loads(Path("champions/dynamic/dynamic.json").read_text())["report"]
        assert report["grids"] == [8, 12]
        assert {"target", "tokens", "fvu", "mixed_tokens", "low", "high"} <= set(report["dynamic"][0])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--compressors", "champions"], "--compressors: needs --target-fvu"),
        (["--compressors", "champions", "--target-fvu", "0"], "--target-fvu: got 0.0; must be a positive number"),
        (["--compressors", "champions", "--target-fvu", "nan"], "--target-fvu: got nan; must be a positive number"),
        (["--compressors", "champions", "--target-fvu", "1", "--confidence", "1"], "confidence: got 1.0"),
        (["--compressors", "nowhere", "--target-fvu", "1"], "nowhere: holds 0 exported compressors"),
        (["--compressor", "champions/grid-08", "--target-fvu", "1"], "--target-fvu: chooses among --compressors"),
        (["--compressor", "champions/grid-08", "--confidence", "0.9"], "--confidence: chooses among --compressors"),
    ],
)
def test_compress_refuses(here: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(here)
    assert main(["compress", *IMAGES, *arguments, "--out", "x"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("tokconv: ")
    assert text.count("\n") == 1
    assert expected in text
    assert files_of(here) == before


def test_the_command_refuses_a_store_of_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(here / "other", num_images=100)
    assert main(["dynamic", "champions", "other"]) == 2
    assert "were not trained on other" in capsys.readouterr().err
    shutil.rmtree("runs")
    assert main(["dynamic", "champions"]) == 2
    assert "holds no token store that champions was trained on" in capsys.readouterr().err


def test_one_compressor_or_a_choice_not_both(here: Path) -> None:
    for which in ([], ["--compressor", "a", "--compressors", "b"]):
        with pytest.raises(SystemExit) as left:
            main(["compress", *IMAGES, *which, "--out", "x"])
        assert left.value.code == 2
