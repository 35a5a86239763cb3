"""tools/train_vlm.py: a small LLaVA of a tower and a language model is assembled and trained, and resumes exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.artefacts import write_export
from support.vlm_parts import PATCH, SIDE, write_parts

from tokconv.cli.main import main as cli
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.tasks import make_task
from tokconv.exports.artefact import read_config
from tokconv.system.files import write_json


@pytest.fixture
def tool(tools: Any) -> Any:
    return tools("train_vlm")


@pytest.fixture
def training(tools: Any) -> Any:
    """The module that trains, as the tool imports it."""
    return tools("vlm_training")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random DINOv2 for larger images than it is used at, a random Llama, and images."""
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder)
    return folder


def arguments(parts: Path, out: Path, *more: str) -> list[str]:
    return [*places(parts, out), "--steps", "12", "--batch-size", "3", "--save-every", "4", *more]


def places(parts: Path, out: Path) -> list[str]:
    where = ["--tower", str(parts / "tower"), "--language-model", str(parts / "language"), "--out", str(out)]
    return [
        *where,
        "--tasks",
        f"classes:{parts / 'images'}",
        "--image-size",
        str(SIDE),
        "--layer",
        "-2",
        "--device",
        "cpu",
    ]


@contextmanager
def stopped_after(steps: int, training: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every training within end after some steps, as one that is interrupted."""
    batches = training.batches
    with monkeypatch.context() as patch:
        patch.setattr(training, "batches", lambda *given: list(batches(*given))[:steps])
        yield


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a trained model in the precision of its file."""
    model = AnsweringModel(out / "model", torch.device("cpu"))
    return {name: value.to(model.precision) for name, value in model.model.state_dict().items()}


@pytest.mark.parametrize(
    "more",
    [[], ["--part-first", "0.7"], ["--lora-rank", "2"], ["--lora-rank", "2", "--precision", "bfloat16"]],
    ids=["all", "part-first", "lora", "bfloat16"],
)
def test_it_trains_what_it_says_and_resumes_to_the_same_weights(
    tool: Any,
    training: Any,
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
) -> None:
    read: list[int] = []
    loss_of = training.loss_of

    def counted(model: AnsweringModel, tokens: torch.Tensor, *given: Any) -> torch.Tensor:
        read.append(tokens.shape[1])
        return loss_of(model, tokens, *given)

    monkeypatch.setattr(training, "PART", 4)
    monkeypatch.setattr(training, "loss_of", counted)
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    assert tool.main(arguments(parts, whole, *more)) == 0
    assert read == ([4] * 8 + [16] * 4 if "--part-first" in more else [16] * 12)
    assert "s/step" in capsys.readouterr().out

    with stopped_after(6, training, monkeypatch):
        assert tool.main(arguments(parts, interrupted, *more)) == 0
    assert tool.main(arguments(parts, interrupted, *more)) == 0
    found, wanted = weights(interrupted), weights(whole)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)

    start = AnsweringModel(whole / "untrained", torch.device("cpu")).model.state_dict()
    rounded = {name: value.to(wanted[name].dtype) for name, value in start.items()}
    changed = {name for name in wanted if not torch.equal(wanted[name], rounded[name])}
    adapted = training.ADAPTED if "--lora-rank" in more else []
    assert changed == {
        name
        for name in wanted
        if "multi_modal_projector" in name or ("language_model" in name and any(layer in name for layer in adapted))
    }
    assert {value.dtype for value in wanted.values()} == {torch.bfloat16 if "bfloat16" in more else torch.float32}

    shutil.copytree(whole / "untrained", tmp_path / "copy" / "untrained")
    words = [*places(parts, tmp_path / "copy"), "--trained", str(whole / "trained.safetensors")]
    with pytest.raises(SystemExit):
        tool.main([*words, "--steps", "3", "--lora-rank", "2"])
    assert "nothing is trained; leave out --steps, --lora-rank" in capsys.readouterr().err
    assert not (tmp_path / "copy" / "model").exists()
    assert tool.main(words) == 0
    assert all(torch.equal(value, wanted[name]) for name, value in weights(tmp_path / "copy").items())
    assert not (tmp_path / "copy" / "checkpoint.pt").exists(), "nothing is trained for it"
    assert (tmp_path / "copy" / "store").is_dir(), "baselines are fitted on it"
    shutil.rmtree(tmp_path / "copy" / "model")
    (tmp_path / "copy" / "other").write_bytes(b"{}")
    assert tool.main([*words[:-1], str(tmp_path / "copy" / "other")]) == 1
    assert "not the trained part of a model" in capsys.readouterr().err
    words[words.index("--layer") + 1] = "1"
    assert tool.main(words) == 1
    assert "was trained on layer -2" in capsys.readouterr().err

    assert tool.main(arguments(parts, whole, *more, "--learning-rate", "0.5")) == 1
    assert "choose another --out" in capsys.readouterr().err


def test_a_trained_model_is_adapted_to_a_compressor_and_measured(
    tool: Any,
    training: Any,
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export = write_export(tmp_path / "mine", token_grid=SIDE // PATCH, dim=16, grid=2)
    write_json(export / "config.json", {**read_config(export), "encoder": {"name": "tower", "layer": 1}})
    out, again = tmp_path / "vlm", tmp_path / "again"
    more = ["--compressor", str(export), "--steps", "8"]
    assert tool.main(arguments(parts, out, *more)) == 1
    assert "there is no trained model" in capsys.readouterr().err
    assert tool.main(arguments(parts, out, "--steps", "3")) == 0
    shutil.copytree(out, again)
    assert tool.main(arguments(parts, out, *more)) == 0

    with stopped_after(5, training, monkeypatch):
        assert tool.main(arguments(parts, again, *more)) == 0
    assert tool.main(arguments(parts, again, *more)) == 0
    plain, adapted, resumed = out / "model", out / "adapted" / "mine-02", again / "adapted" / "mine-02"
    before, found, other = (load_file(place / "model.safetensors") for place in (plain, adapted, resumed))
    assert all(torch.equal(found[name], other[name]) for name in found)
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert changed == {name for name in found if "multi_modal_projector" in name}
    assert (adapted / "compressor" / "model.safetensors").read_bytes() == (export / "model.safetensors").read_bytes()

    capsys.readouterr()
    tasks = ["--tasks", f"classes:{parts / 'images'}", "--baselines", "none", "--max-tokens", "2", "--device", "cpu"]
    command = ["answers", str(plain), str(export), str(adapted), *tasks, "--out", str(tmp_path / "answers")]
    assert cli(command) == 0
    assert "mine-02 adapted" in capsys.readouterr().out
    figures = json.loads((tmp_path / "answers" / "answers.json").read_text())
    plugged, own = (figures[place]["tasks"]["classes"]["kl"] for place in (1, 2))
    assert plugged != own
    assert tool.main(arguments(parts, out, *more, "--part-first", "0.5")) == 1
    assert "--part-first: is for the first training" in capsys.readouterr().err


def test_an_adapted_model_has_the_precision_of_the_one_that_it_was(tool: Any, parts: Path, tmp_path: Path) -> None:
    export = write_export(tmp_path / "mine", token_grid=SIDE // PATCH, dim=16, grid=2)
    write_json(export / "config.json", {**read_config(export), "encoder": {"name": "tower", "layer": 1}})
    half, out = tmp_path / "half", tmp_path / "out"
    assert tool.main(arguments(parts, half, "--precision", "bfloat16")) == 0
    assert tool.main([*places(parts, out), "--trained", str(half / "trained.safetensors")]) == 0
    assert tool.main(arguments(parts, out, "--compressor", str(export))) == 0
    found = load_file(out / "adapted" / "mine-02" / "model.safetensors")
    assert {value.dtype for value in found.values()} == {torch.bfloat16}


def test_a_training_goes_on_from_what_another_one_wrote(
    tool: Any, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, still, further = tmp_path / "first", tmp_path / "still", tmp_path / "further"
    assert tool.main(arguments(parts, first, "--lora-rank", "2")) == 0
    start = ["--start", str(first / "trained.safetensors"), "--steps", "2"]
    assert tool.main(arguments(parts, still, "--lora-rank", "2", *start, "--learning-rate", "0")) == 0
    assert tool.main(arguments(parts, further, "--lora-rank", "2", *start)) == 0
    before, same, other = weights(first), weights(still), weights(further)
    assert all(torch.equal(same[name], before[name]) for name in before)
    changed = {name for name in before if not torch.equal(other[name], before[name])}
    assert any("language_model" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)

    assert tool.main(arguments(parts, tmp_path / "rank", "--lora-rank", "3", *start)) == 1
    assert "not the trained part of this model" in capsys.readouterr().err
    assert tool.main(arguments(parts, first, "--compressor", "mine", *start)) == 1
    assert "--compressor goes on from the trained model" in capsys.readouterr().err


def test_images_and_tokens_of_other_options_are_refused_before_anything_is_written(
    tool: Any, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the first command can be repeated after any other one."""
    out, other = tmp_path / "out", tmp_path / "other"
    first = arguments(parts, out, "--questions", "8", "--steps", "1")
    assert tool.main(first) == 0
    assert f"token store: {out / 'store'}" in capsys.readouterr().out
    trained = out / "trained.safetensors"
    assert tool.main(arguments(parts, other, "--steps", "1", "--seed", "1")) == 0
    shutil.copytree(parts / "images", tmp_path / "renamed", copy_function=lambda a, b: shutil.copy(a, f"{b}.png"))
    there = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    def refused(expected: str, *words: str) -> None:
        capsys.readouterr()
        assert tool.main(list(words)) == 1
        text = capsys.readouterr().err
        assert expected in text
        assert "another --out" in text
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == there

    same = [*places(parts, out), "--questions", "8"]
    refused("error: --questions: the images and tokens in", *arguments(parts, out, "--steps", "1"))
    refused("error: --precision: the images", *first, "--precision", "bfloat16")
    refused("error: --tasks: the images", *first, "--tasks", f"classes:{tmp_path / 'renamed'}")
    refused("was not made of", *same, "--trained", str(other / "trained.safetensors"))
    assert tool.main([*same, "--trained", str(trained)]) == 0
    assert tool.main(first) == 0


def test_the_loss_falls(tool: Any, parts: Path, tmp_path: Path) -> None:
    assert tool.main(arguments(parts, tmp_path, "--steps", "1")) == 0
    model = AnsweringModel(tmp_path / "untrained", torch.device("cpu"))
    store = tool.encode_once(parts / "tower", tmp_path / "images", tmp_path / "store", "cpu", -2, SIDE, "float32")
    examples = tool.make_examples(model, [make_task(f"classes:{parts / 'images'}", "train")], store)
    losses = tool.train(model, store, examples, tool.Settings(60, 6, 0.02, 0), tmp_path / "again", 60)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_another_tower_is_refused(tool: Any, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([*arguments(parts, tmp_path), "--tower", str(parts / "language")]) == 1
    assert "is of type 'llama'" in capsys.readouterr().err
    assert not (tmp_path / "untrained").exists()
