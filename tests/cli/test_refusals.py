"""Mistakes: one sentence on stderr, exit code 2, and nothing was started."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from support.commands import refused
from support.towers import write_tower

from tokconv.cli.main import main

pytestmark = pytest.mark.usefixtures("empty_directory")


def _spec(**extra: object) -> list[str]:
    # JSON is also YAML.
    Path("spec.yaml").write_text(json.dumps({"name": "mistake", "trials": 1, **extra}))
    return ["sweep", "spec.yaml"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.n_critc=1"], "training.n_critc: unknown; did you mean training.n_critic?"),
        (["training.epochs=many"], "training.epochs: got 'many'; must be a whole number"),
        (["training.epochs"], "write key=value"),
        (["model.compressor.output_grid_size=0"], "must be at least 1"),
        (["model.compressor.output_grid_size=25"], "got 25; must be between 1 and the token grid, 24"),
        (["loss.wgan.lambda_gp=-1"], "loss.wgan.lambda_gp: got -1.0; must be at least 0"),
        (["model.autoencoder.kind=mlp"], "model.autoencoder.kind: got 'mlp'; allowed: conv, attention, linear"),
        (["data.source=folder", "data.root=nowhere"], "there is no folder 'nowhere'"),
        (["data.source=folder", "data.root=."], "no images in '.'"),
        (["data.source=folder"], "data.root: missing"),
        (["model.clip.model_name=./nowhere"], "there is no directory './nowhere'; check the path"),
        (["--device", "frog"], "device 'frog' is not available; use cpu"),
        (["--resume"], "holds no run of 'train' to resume"),
        (["--name", "../escape"], "--name: got '../escape'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_refuses(overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["train", *overrides], expected)


def test_train_refuses_a_store_of_another_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    tower = write_tower(Path("tower"), image_size=96)
    few = ["data.subset=4", "data.store=store", "data.num_workers=0"]
    assert main(["encode", *few, f"model.clip.model_name={tower.resolve()}"]) == 0
    refused(capsys, ["train", *few], "store was made with", "encoder.name: stored 'tower', wanted 'digits-tower'")


def test_an_unreachable_model_is_reported_within_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A proxy address where nothing listens simulates a machine without a network.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    started = time.monotonic()
    refused(
        capsys,
        ["train", "model.clip.model_name=nobody/no-such-tower"],
        "'nobody/no-such-tower' is neither a local directory nor reachable",
        "give the directory of a downloaded copy, or try bundled:digits-tower, which ships with tokconv",
    )
    # A folder that is not there is told first: no tower helps without images.
    refused(
        capsys,
        ["train", "model.clip.model_name=nobody/no-such-tower", "data=folder", "data.root=/nope"],
        "data.root: there is no folder '/nope'; give the folder of the images",
    )
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"search": {"model.compressor.output_grid_size": {"choice": [4, 25]}}}, "the token grid, 24"),
        ({"search": {"model.compressor.output_grid_size": {"choice": [0, 4]}}}, "must be at least 1"),
        ({"search": {"loss.wgan.lambda_gp": {"log": [100, 0.1]}}}, "the lower end must come first"),
        ({"search": {"loss.wgan.lambda_gp": {"float": [-1, 1]}}}, "must be at least 0"),
        ({"search": {"training.n_critc": {"int": [1, 2]}}}, "did you mean training.n_critic?"),
        ({"objectives": [{"metric": "val/fvv", "mode": "min"}]}, "did you mean val/fvu?"),
        ({"base": ["training.epohcs=5"]}, "did you mean training.epochs?"),
        ({"trails": 1}, "trails: unknown; did you mean trials?"),
        ({"trials": 0}, "trials: got 0"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_sweep_refuses(extra: dict[str, object], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    refused(capsys, _spec(**extra), expected)


def test_sweep_refuses_a_file_that_is_not_a_spec(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["sweep", "nothing.yaml"], "nothing.yaml: no such spec file")
    Path("tags.yaml").write_text("name: !!python/object/apply:os.mkdir [hacked]\ntrials: 1\n")
    refused(capsys, ["sweep", "tags.yaml"], "tags.yaml: not plain YAML data")
    refused(capsys, [*_spec(), "trials"], "'trials': not an override")


def test_sweep_refuses_to_resume_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    refused(capsys, [*_spec(), "--resume"], "holds no run of 'mistake' to resume")
    # To go on, a sweep needs its store, and not the images that it was encoded from.
    elsewhere = ["data=folder", "data.root=moved"]
    refused(capsys, [*_spec(base=elsewhere), "--resume"], "holds no run of 'mistake' to resume")


def test_sweep_names_the_missing_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(capsys, _spec(), "ray is not installed; run: pip install 'tokconv[sweep]'")


def test_a_disk_that_cannot_be_written_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr("tokconv.cli.encode.run", full)
    assert main(["encode"]) == 2
    assert capsys.readouterr().err == "tokconv: runs/x: cannot be written or read (No space left on device)\n"
