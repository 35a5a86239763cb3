"""The command line from a user's side: help, mistakes, and the way from images to compressed tokens."""

from __future__ import annotations

import argparse
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support.networks import PUBLISHED
from support.photos import write_photos
from support.towers import write_tower

from tokconv import __version__
from tokconv.cli.arguments import make_parser
from tokconv.cli.main import COMMANDS as FUNCTIONS
from tokconv.cli.main import main
from tokconv.config.keys import flatten
from tokconv.config.overrides import compose

COMMANDS = ("doctor", "encode", "train", "sweep", "status", "stop", "report", "replay", "evaluate", "models", "export")
COMMANDS += ("dynamic", "compress", "stores", "answers", "fit", "merge", "ui")
ONE_EPOCH = "training.epochs=1"
TINY = (*PUBLISHED, "training.n_critic=1", "model.compressor.hidden_dim=8", "model.autoencoder.hidden_dim=8")
SHORT = (ONE_EPOCH, *TINY)
ROOT = Path(__file__).parents[2]

PUBLISHED = (
    "model.compressor.output_grid_size=8",
    "data.use_subset=true data.subset_size=1000 training.epochs=5",
    "training.batch_size=16",
    "training.n_critic=10",
    "loss.wgan.lambda_gp=20.0",
    "loss.weights.ae=2.0",
)
"""Override lines of the published documentation, verbatim."""


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a store of 48 digits, encoded once for all tests of this file."""
    path = tmp_path_factory.mktemp("stores") / "digits"
    assert main(["encode", *_digits(path), "data.num_workers=0"]) == 0
    return str(path)


@pytest.fixture(scope="module")
def artefact(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported compressor."""
    folder = tmp_path_factory.mktemp("artefact")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "--no-mlflow", *SHORT, *_digits(store)]) == 0
        assert main(["export", "runs/train/train-001", "--out", "compressor"]) == 0
    return folder / "compressor"


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Five image files whose sizes and modes differ from those of the digits."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, mode in enumerate(("RGB", "L", "RGBA", "P", "CMYK")):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (20 + number, 30), 40 * number).save(folder / f"{number}.{suffix}")
    return sorted(map(str, folder.iterdir()))


def _digits(store: Path | str) -> list[str]:
    return ["data.subset=48", f"data.store='{store}'"]


def _start(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tokconv.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})},
        # A shell that runs the tests in the background makes its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_holds_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert re.search(rf"example:\n  tokconv {command}\b", capsys.readouterr().out)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^ +{command} +\w", text, re.MULTILINE)


def test_every_command_has_its_function() -> None:
    [commands] = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert set(commands.choices) == set(FUNCTIONS) == {*COMMANDS, "completion"}
    assert all(callable(pkgutil.resolve_name(name)) for name in FUNCTIONS.values())


def test_a_bare_command_is_the_tour(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("a tour:")
    named = re.findall(r"^  tokconv (\w+)", shown, re.MULTILINE)
    assert {"doctor", "sweep", "train", "compress"} <= set(named) <= set(FUNCTIONS)


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("trian", "did you mean train?"),
        ("evalute", "did you mean evaluate?"),
        ("frog", "allowed: "),
    ],
)
def test_a_command_that_is_none_is_answered_with_the_nearest_one(
    word: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _refused(capsys, [word, "--help"], f"there is no command '{word}'; {answer}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"tokconv {__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tokconv.cli.main import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'ray', 'hydra', 'numpy', 'transformers', 'mlflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.splitlines()[-1] == "[]"


# Mistakes: one sentence on stderr, exit code 2, and nothing was started


def _refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *expected: str) -> None:
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert re.fullmatch(r"tokconv: [^\n]+\n", text), text
    for part in expected:
        assert part in text
    assert sorted(Path.cwd().rglob("*")) == before


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
    _refused(capsys, ["train", *overrides], expected)


def test_train_refuses_a_store_of_another_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    tower = write_tower(Path("tower"), image_size=96)
    few = ["data.subset=4", "data.store=store", "data.num_workers=0"]
    assert main(["encode", *few, f"model.clip.model_name={tower.resolve()}"]) == 0
    _refused(capsys, ["train", *few], "store was made with", "encoder.name: stored 'tower', wanted 'digits-tower'")


def test_an_unreachable_model_is_reported_within_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A proxy address where nothing listens simulates a machine without a network.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    started = time.monotonic()
    _refused(
        capsys,
        ["train", "model.clip.model_name=nobody/no-such-tower"],
        "'nobody/no-such-tower' is neither a local directory nor reachable",
        "give the directory of a downloaded copy, or try bundled:digits-tower, which ships with tokconv",
    )
    # A folder that is not there is told first: no tower helps without images.
    _refused(
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
    _refused(capsys, _spec(**extra), expected)


def test_sweep_refuses_a_file_that_is_not_a_spec(capsys: pytest.CaptureFixture[str]) -> None:
    _refused(capsys, ["sweep", "nothing.yaml"], "nothing.yaml: no such spec file")
    Path("tags.yaml").write_text("name: !!python/object/apply:os.mkdir [hacked]\ntrials: 1\n")
    _refused(capsys, ["sweep", "tags.yaml"], "tags.yaml: not plain YAML data")
    _refused(capsys, [*_spec(), "trials"], "'trials': not an override")


def test_sweep_refuses_to_resume_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    _refused(capsys, [*_spec(), "--resume"], "holds no run of 'mistake' to resume")
    # To go on, a sweep needs its store, and not the images that it was encoded from.
    elsewhere = ["data=folder", "data.root=moved"]
    _refused(capsys, [*_spec(base=elsewhere), "--resume"], "holds no run of 'mistake' to resume")


def test_sweep_names_the_missing_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    _refused(capsys, _spec(), "ray is not installed; run: pip install 'tokconv[sweep]'")


def test_export_refuses(capsys: pytest.CaptureFixture[str], artefact: Path) -> None:
    Path("notes").mkdir()
    Path("notes/config.json").write_text("{}")
    _refused(
        capsys,
        ["export", "notes", "--out", "x"],
        "notes: neither a checkpoint, nor a train run with one, nor an exported folder",
    )
    run = str(artefact.parent / "runs/train/train-001")
    for kept in ("notes", run):
        _refused(capsys, ["export", run, "--out", kept], "exists and is no exported compressor")


def test_a_train_run_in_place_of_an_export_is_named(capsys: pytest.CaptureFixture[str], artefact: Path) -> None:
    run = str(artefact.parent / "runs/train/train-001")
    expected = f"train-001: a train run, and no exported compressor; export it first: tokconv export {run} --out FOLDER"
    _refused(capsys, ["evaluate", run], expected)
    _refused(capsys, ["compress", "--tokens", "x", "--compressor", run, "--out", "y"], "x: there is no such file")
    Path("x").touch()
    _refused(capsys, ["compress", "--tokens", "x", "--compressor", run, "--out", "y"], expected)
    _refused(capsys, ["merge", "llava", run, "--out", "y"], expected)


def test_compress_refuses(capsys: pytest.CaptureFixture[str], artefact: Path, images: list[str]) -> None:
    to = ["--compressor", str(artefact), "--out", "out.safetensors"]
    _refused(capsys, ["compress", "cat.jpg", *to], "cat.jpg: there is no such image")
    Path("empty").mkdir()
    _refused(capsys, ["compress", "empty", *to], "empty: holds no images; give a folder of images")
    Path("empty/notes.txt").touch()
    _refused(capsys, ["compress", "empty", *to], "empty: holds no images, only 1 .txt; give a folder of images")
    _refused(capsys, ["compress", *images, *to[:2], "--out", "images"], "images: is a folder; name the file to write")
    _refused(capsys, ["compress", *images, "--compressor", "none", "--out", "x"], "none: not an exported compressor")
    _refused(capsys, ["compress", *images, *to, "--batch-size", "0"], "--batch-size: got 0; must be at least 1")
    _refused(capsys, ["compress", *images, *to, "--device", "frog"], "device 'frog' is not available")
    for same in (["--out", images[0]], ["--out", "x", "--picture", "x"], ["--out", "x", "--picture", images[1]]):
        _refused(capsys, ["compress", *images, *to[:2], *same], "is named twice")
    _refused(capsys, ["compress", *images, *to[:2], "--out", f"{images[0]}/x"], "cannot be written or read")
    _refused(capsys, ["compress", "x" * 300, *to], "cannot be written or read (File name too long)")
    Path("broken.png").write_bytes(b"no image")
    _refused(capsys, ["compress", *images, "broken.png", *to], "broken.png: cannot be read as an image")
    tower = write_tower(Path("tower"), image_size=96)
    _refused(capsys, ["compress", *images, *to, "--encoder", str(tower)], "was trained on tokens of")
    damaged = Path(shutil.copytree(artefact, "damaged"))
    description = json.loads((damaged / "config.json").read_text())
    for key in ("clip", "encoder"):
        rest = {name: value for name, value in description.items() if name != key}
        (damaged / "config.json").write_text(json.dumps(rest))
        _refused(capsys, ["compress", *images, "--compressor", "damaged", "--out", "x"], "it describes no encoder")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--training.epochs=5"], "write overrides without dashes"),
        (["doctor", "now"], "unexpected 'now'"),
        (["compress", "a.png", "--out", "x"], "--compressor"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_a_disk_that_cannot_be_written_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr("tokconv.cli.encode.run", full)
    assert main(["encode"]) == 2
    assert capsys.readouterr().err == "tokconv: runs/x: cannot be written or read (No space left on device)\n"


# Work


def test_published_overrides_train(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for line in PUBLISHED for word in line.split()]
    # A later override wins over an earlier one of the same name, so the subset goes by its published name.
    short = {"training.epochs": "1", "data.subset_size": "48"}
    given = [f"{key}={value}" for key, value in {**short, "data.store": f"'{store}'"}.items()]
    assert main(["train", "--no-mlflow", *TINY, *words, *given]) == 0
    text = capsys.readouterr().out
    assert "48 images" in text
    assert re.search(r"^epoch 1/1 +\d", text, re.MULTILINE)
    saved = flatten(json.loads(Path("runs/train/train-001/config.json").read_text()))
    assert saved["data.subset"] == 48
    for word in words:
        key, value = word.split("=")
        if not key.startswith(("data.use_subset", "data.subset_size")):
            assert saved[key] == float(short.get(key, value)), word
    for line in PUBLISHED:
        compose(line.split())  # alone, as it was published


def test_the_published_subset_has_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    line = PUBLISHED[1].split()
    assert main(["encode", "--plan", *line]) == 0
    assert "1000 images x 576 tokens" in capsys.readouterr().out
    assert not list(Path.cwd().iterdir())
    assert compose(line).training.epochs == 5


def test_overrides_may_stand_on_both_sides_of_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "data.subset=7", "--plan", "data.dtype=int8"]) == 0
    text = capsys.readouterr().out
    assert "7 images" in text
    assert "274 kB in" in text


def test_compress_writes_tokens_and_a_picture(
    artefact: Path, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    whole = ["compress", *images, "--compressor", str(artefact)]
    assert main([*whole, "--out", "whole.safetensors", "--picture", "picture.png"]) == 0
    assert "tokens [5, 36, 64], 16x fewer" in capsys.readouterr().out
    assert main([*whole, "--out", "parts.safetensors", "--batch-size", "2"]) == 0
    tokens = load_file("whole.safetensors")["tokens"]
    assert tokens.shape == (5, 36, 64)
    assert torch.isfinite(tokens).all()
    torch.testing.assert_close(load_file("parts.safetensors")["tokens"], tokens, rtol=1e-4, atol=1e-4)
    with safe_open("whole.safetensors", "pt") as file:
        assert json.loads(file.metadata()["images"]) == images
    # A folder stands for the images below it.
    assert main(["compress", "images", *whole[-2:], "--out", "folder.safetensors"]) == 0
    assert torch.equal(load_file("folder.safetensors")["tokens"], tokens)
    with Image.open("picture.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_images_that_cannot_be_read_are_counted_and_listed(
    images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images/broken.png").write_bytes(b"no image")
    Path("images/empty.jpg").touch()
    folder = ["data.source=folder", "data.root=images", "data.num_workers=0"]
    assert main(["encode", *folder]) == 0
    text = capsys.readouterr().out
    assert "5 images" in text
    assert "2 images could not be read" in text
    assert re.search(r"^ +broken\.png: UnidentifiedImageError", text, re.MULTILINE)
    assert re.search(r"^ +empty\.jpg: ", text, re.MULTILINE)
    assert main(["encode", *folder, "--verify"]) == 0
    assert "every shard has the hash" in capsys.readouterr().out


def test_resume_of_a_finished_run_reports_that_it_is_finished(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--no-mlflow", *SHORT, *_digits(store)]) == 0
    assert re.search(r"^epoch 0/1 +\d", capsys.readouterr().out, re.MULTILINE)
    assert main(["train", "--resume"]) == 0
    text = capsys.readouterr().out
    assert "runs/train/train-001: finished already" in text
    assert re.search(r"^epoch 1/1 +\d", text, re.MULTILINE)
    assert re.search(r"^best epoch: [01] of 1", text, re.MULTILINE)
    verdict = re.search(r"^fidelity: fvu [\d.]+ (beats|does not beat) the best closed form, .*$", text, re.MULTILINE)
    assert verdict is not None
    assert main(["export", "runs/train/train-001", "--out", "out"]) == 0
    assert f"of 1, {verdict[0]}\n" in capsys.readouterr().out
    assert "tokconv export runs/train/train-001" in text
    wider = ["model.compressor.hidden_dim=16"]
    _refused(capsys, ["train", "--resume", *wider], "was started with model.compressor.hidden_dim=8, not 16")
    saved = Path("runs/train/train-001/config.json")
    text = saved.read_text()
    for damaged in ("[]", "{"):
        saved.write_text(damaged)
        _refused(capsys, ["train", "--resume"], "config.json: missing or damaged; start a new run")
    saved.write_text(text)
    # Another copy of the same data is the same experiment.
    assert main(["train", "--resume", "data.num_workers=0", "data=digits"]) == 0
    assert "note:" not in capsys.readouterr().out
    _judge_by_protocol_1(Path("runs/train/train-001"))
    assert main(["train", "--resume"]) == 0
    assert "figures are of evaluation protocol 1" in capsys.readouterr().out


def test_a_run_goes_on_without_its_images_unless_it_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(figures: dict[str, float], _: object) -> str:
        if figures["epoch"] == 1:
            raise KeyboardInterrupt
        return ""

    photos = write_photos(tmp_path / "photos", 8)
    given = ["data=folder", "data.root=photos", f"model.clip.model_name={write_tower(tmp_path / 'tower')}"]
    grid = "model.compressor.output_grid_size=2"
    with monkeypatch.context() as patched:
        patched.setattr("tokconv.cli.train._epoch_row", stop)
        assert main(["train", "--no-mlflow", *TINY, "training.epochs=2", *given, grid, "data.num_workers=0"]) == 130
    shutil.rmtree(photos)
    with FileLock("runs/train/train-001/.lock"):
        _refused(capsys, ["train", "--resume"], "train-001: another process trains this run")
    assert main(["train", "--no-mlflow", "--resume"]) == 0
    assert "\n2," in Path("runs/train/train-001/curve.csv").read_text()


@pytest.mark.slow
def test_an_interrupted_run_can_be_resumed(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _start("train", "--no-mlflow", *TINY, "training.epochs=15", "--name", "long", *_digits(store))
    _wait_for(lambda: any(tmp_path.glob("runs/train/long-001/checkpoints/epoch-*")), run)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 130, err
    assert out.splitlines()[-1] == "stopped; go on with: tokconv train --resume --name long"
    assert err == "tokconv: interrupted\n"
    (newest,) = tmp_path.glob("runs/train/long-001/checkpoints/epoch-*")
    done = int(newest.name.split("-")[1])
    capsys.readouterr()
    assert main(["train", "--resume", "--name", "long"]) == 0
    # The newest figures are shown once more, then the remaining epochs.
    shown = re.findall(r"^epoch +(\d+)/15 +\d", capsys.readouterr().out, re.MULTILINE)
    assert list(map(int, shown)) == list(range(done, 16))


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_unfinished_run_of_another_protocol_is_not_resumed(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--no-mlflow", *SHORT, *_digits(store)]) == 0
    run = Path("runs/train/train-001")
    config = json.loads((run / "config.json").read_text())
    config["training"]["epochs"] = 2
    (run / "config.json").write_text(json.dumps(config))
    _judge_by_protocol_1(run)
    assert main(["train", "--resume"]) == 2
    assert "evaluation protocol 1" in capsys.readouterr().err


def _judge_by_protocol_1(run: Path) -> None:
    [path] = run.glob("checkpoints/*/state.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "protocol": 1}))
