"""A grid per image: the predictor is fitted, written, loaded, and refused if it does not fit."""

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
from PIL import Image
from safetensors.torch import load_file, save_file
from support.champions_folders import change_config, files_of, write_champions
from support.stores import write_store

import tokconv
from tokconv.errors import CheckpointError, ConfigError, StoreError
from tokconv.evaluation.codecs import codec_of
from tokconv.evaluation.evaluator import Evaluator
from tokconv.exports.artefact import load_compressor, load_decoder
from tokconv.exports.dynamic.compressor import DynamicCompressor, load_dynamic, read_champions
from tokconv.exports.dynamic.fit import DynamicReport, fit_dynamic, halves, measure
from tokconv.exports.dynamic.predictor import choose
from tokconv.exports.dynamic.spectrum import Spectrum
from tokconv.store.reader import TokenStore

GRIDS = (2, 3, 6)
HEAVY = ("ray", "mlflow", "transformers", "hydra", "omegaconf", "optuna", "pandas", "matplotlib", "sklearn")
Fitted = tuple[Path, TokenStore, DynamicReport]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A folder of champions with its predictor that all tests share and none changes."""
    folder = tmp_path_factory.mktemp("fitted")
    store = write_store(folder / "store", num_images=320)
    champions = write_champions(folder / "champions", store, GRIDS)
    return champions, store, fit_dynamic(champions, store, device="cpu")


@pytest.fixture
def copy(fitted: Fitted, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted[0], tmp_path / "copy"))


def middle_target(fitted: Fitted) -> float:
    """Return a target at which images get different grids."""
    return min(fitted[2].dynamic, key=lambda row: abs(row.tokens - 6)).target


# Fitting


def test_errors_are_those_of_the_evaluation_protocol(fitted: Fitted) -> None:
    folder, store, _ = fitted
    spectrum = Spectrum(store.mean, torch.eye(store.dim), torch.tensor(store.scale))
    champions = read_champions(folder)
    _, errors = measure(champions, spectrum, store, device="cpu")
    assert errors.shape == (len(store.val_indices), len(GRIDS))
    for number, champion in enumerate(champions):
        codec = codec_of(champion.compressor, load_decoder(champion.path))
        figures = Evaluator(store, champion.grid).evaluate(codec)
        assert float(errors[:, number].mean()) == pytest.approx(figures["val/fvu"], rel=1e-5)


def test_the_report_is_about_images_that_were_not_fitted_on(fitted: Fitted) -> None:
    _, store, report = fitted
    assert report.grids == GRIDS
    assert report.fitted_on + report.judged_on == len(store.val_indices)
    assert min(report.rank_correlation[:2]) > 0.5
    for row, best in zip(report.dynamic, report.oracle, strict=True):
        assert row.target == best.target
        assert 4 <= row.tokens <= 36
        assert row.low <= row.saving <= row.high
        assert row.tokens <= row.mixed_tokens / (1 - row.high) + 1e-6
        assert row.mixed_tokens <= row.fixed_tokens + 1e-9
        assert best.met + best.unmet == pytest.approx(1)
    tokens = [row.tokens for row in report.dynamic]
    assert tokens == sorted(tokens, reverse=True)


def test_halves_depend_only_on_the_keys() -> None:
    keys = [f"image-{number}" for number in range(101)]
    first, second = halves(keys)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(101))
    order = torch.randperm(101, generator=torch.Generator().manual_seed(1)).tolist()
    again, _ = halves([keys[number] for number in order])
    assert {keys[order[number]] for number in again.tolist()} == {keys[number] for number in first.tolist()}


def test_fitting_again_writes_the_same_bytes(fitted: Fitted, copy: Path) -> None:
    (copy / "dynamic" / "leftover").write_text("from the older one")
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
    # At the default confidence the bound is the prediction plus the median residual, which is small.
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


def test_no_images_give_no_tokens(fitted: Fitted) -> None:
    parts, grids = load_dynamic(fitted[0], target_fvu=0.1)(torch.zeros(0, 36, 8))
    assert parts == []
    assert grids.shape == (0,)


@pytest.mark.parametrize("target", [0.0, -0.1, math.nan, math.inf])
def test_a_target_that_is_not_positive_and_finite_is_refused(fitted: Fitted, target: float) -> None:
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
            f"has been fitted for these compressors; {FIT_IT}",
        ),
        (_replaced, f"grid-03: is not the compressor that the predictor was fitted for; {FIT_IT}"),
        (
            lambda path: (path / "grid-03").rename(path / "x"),
            "x: is not the compressor that the predictor was fitted for; run: ",
        ),
        (lambda path: shutil.rmtree(path / "grid-03"), f"that the predictor was fitted for is gone; {FIT_IT}"),
        (lambda path: (path / "dynamic" / "dynamic.json").write_text("[1]"), f"dynamic.json: damaged; {FIT_IT}"),
        (lambda path: (path / "dynamic" / "dynamic.json").write_text('{"format": 9}'), "has another format"),
        (
            lambda path: (path / "dynamic" / "dynamic.json").write_text('{"format": 1}'),
            "is not the compressor that the predictor",
        ),
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


def test_what_an_interrupted_export_left_is_ignored(copy: Path) -> None:
    shutil.copytree(copy / "grid-03", copy / ".grid-03.0a1b2c3d.tmp")
    assert load_dynamic(copy, target_fvu=0.1).grids.tolist() == list(GRIDS)


def test_shipped_without_decoders_it_still_loads(copy: Path) -> None:
    for grid in GRIDS:
        (copy / f"grid-{grid:02d}" / "decoder.safetensors").unlink()
    assert load_dynamic(copy, target_fvu=0.1).grids.tolist() == list(GRIDS)


def test_a_fresh_interpreter_needs_only_torch_and_safetensors(fitted: Fitted) -> None:
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
