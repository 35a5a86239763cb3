"""`tokconv answers`: the model's own answers, figures against hand-computed ones, resuming, refusals."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.artefacts import write_export
from support.llavas import TOWER, make_llava, make_processor
from support.stores import write_store
from torch import Tensor

from tokconv.cli.answers import _sweep_of
from tokconv.cli.main import main
from tokconv.errors import ConfigError, DataError
from tokconv.exports.answers.figures import summary_of
from tokconv.exports.answers.identity import identity_of
from tokconv.exports.answers.measure import TaskTokens, measure, refer
from tokconv.exports.answers.methods import AllTokens, Batch, Exported, Method
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.scoring import interval, is_same
from tokconv.exports.answers.seen import count_seen
from tokconv.exports.answers.tasks import make_task, split_of
from tokconv.exports.artefact import read_config
from tokconv.integrations.llava import attach
from tokconv.store.reader import TokenStore
from tokconv.system.files import write_json

CPU = torch.device("cpu")
GRID = 5
LIMIT = 4
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with the bundled tower and a random language model, as transformers saves it."""
    folder = tmp_path_factory.mktemp("answers") / "llava"
    make_llava(width=32).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> AnsweringModel:
    return AnsweringModel(folder, CPU)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes, each with training and test images."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(12):
        path = root / ("train" if number < 6 else "test") / ("a" if number % 2 else "b") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        color = (20 * number, 250 - 20 * number, 90)
        Image.effect_noise((40, 30), 80).convert("RGB").point(lambda v: v // 2).save(path)
        Image.blend(Image.open(path), Image.new("RGB", (40, 30), color), 0.6).save(path)
    return root


@pytest.fixture(scope="module")
def compressor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported compressor of the bundled tower's tokens, with random weights."""
    folder = write_export(tmp_path_factory.mktemp("exports") / "mine", token_grid=24, dim=64, grid=GRID)
    write_json(folder / "config.json", {**read_config(folder), "encoder": {"name": "tiny", "layer": 3}})
    return folder


@pytest.fixture(scope="module")
def tokens(model: AnsweringModel, photos: Path) -> TaskTokens:
    task = make_task(f"classes:{photos}")
    images = [task.load(number) for number in range(task.num_images)]
    count = len(images)
    return TaskTokens(task, model.tower_tokens(images).numpy(), [model.size_of(images[0])] * count, [1] * count)


class Copied(AllTokens):
    """Every token, by other operations than all tokens themselves."""

    def compress(self, batch: Batch) -> Tensor:
        return batch.tokens.clone() * 1.0


class Noise(Method):
    """Tokens that have nothing to do with the image."""

    def compress(self, batch: Batch) -> Tensor:
        shape = (len(batch.tokens), self.grid**2, batch.tokens.shape[2])
        return 20 * torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def identity(self) -> dict[str, object]:
        return {}


def silent(*_: object) -> None:
    pass


# Against the model's own forward pass and generate


def test_the_answers_are_those_of_generate(model: AnsweringModel, tokens: TaskTokens) -> None:
    reference = refer(model, tokens, AllTokens(24), 4, LIMIT, silent)
    question = tokens.task.questions[1]
    text = f"USER: <image>\n{question.text} ASSISTANT:"
    inputs = model.processor(images=tokens.task.load(1), text=text, return_tensors="pt")
    generated = model.model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False)
    assert reference.answers[1] == generated[0, inputs["input_ids"].shape[1] :].tolist()


def test_a_compressor_is_read_as_an_attached_one(model: AnsweringModel, tokens: TaskTokens, compressor: Path) -> None:
    method = Exported(model, compressor, "mine")
    text = tokens.task.questions[0].text
    found = model.logits(model.prefill(method.compress(tokens.batch([0])), model.prompt(text)).hidden)
    with attach(model.model, compressor, model.processor):
        prompt = f"USER: <image>\n{text} ASSISTANT:"
        inputs = model.processor(images=tokens.task.load(0), text=prompt, return_tensors="pt")
        with torch.inference_mode():
            wanted = model.model(**inputs).logits[:, -1]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_the_divergence_is_that_of_the_whole_distributions(model: AnsweringModel, tokens: TaskTokens) -> None:
    reference = refer(model, tokens, AllTokens(24), 3, 1, silent)
    [answer, *_] = measure(model, tokens, Noise("noise", 3), reference, 3, 1, silent)
    prompt = model.prompt(tokens.task.questions[0].text)
    one = tokens.batch([0])
    both = (model.logits(model.prefill(of, prompt).hidden) for of in (one.tokens, Noise("", 3).compress(one)))
    theirs, mine = (torch.log_softmax(logits[0].double(), -1) for logits in both)
    wanted = sum(math.exp(p) * (p - q) for p, q in zip(theirs.tolist(), mine.tolist(), strict=True))
    assert answer.kl == pytest.approx(wanted, rel=1e-4)
    assert answer.kl > 1e-4
    assert answer.nll == pytest.approx(-float(mine[reference.answers[0][0]]), rel=1e-4)


# Which model it is


def test_a_model_with_one_retrained_tensor_is_another_one(tmp_path: Path) -> None:
    """Also a small tensor among large ones, as a projector is; a copy of the files is the same model."""
    shapes = {f"{kind}.{layer}": size for layer in range(4) for kind, size in (("large", 2**20), ("small", 2**12))}
    weights = {name: torch.zeros(size) for name, size in shapes.items()}
    write_json(tmp_path / "model" / "config.json", {"model_type": "llava"})
    save_file(weights, tmp_path / "model" / "model.safetensors")
    found = {identity_of(tmp_path / "model")}
    shutil.copytree(tmp_path / "model", tmp_path / "again")
    assert identity_of(tmp_path / "again") in found
    for name in ("small.0", "small.2", "large.3"):
        noise = torch.randn(shapes[name], generator=torch.Generator().manual_seed(0))
        save_file({**weights, name: weights[name] + noise}, tmp_path / "again" / "model.safetensors")
        found.add(identity_of(tmp_path / "again"))
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "again")
    (tmp_path / "again" / "tokenizer.json").write_text("{}")
    assert identity_of(tmp_path / "again") not in found
    assert len(found) == 4


# Properties of the figures


def test_all_tokens_agree_with_themselves(model: AnsweringModel, tokens: TaskTokens) -> None:
    reference = refer(model, tokens, AllTokens(24), 4, LIMIT, silent)
    for method in (AllTokens(24), Copied(24)):
        answers = measure(model, tokens, method, reference, 4, LIMIT, silent)
        assert [answer.kl for answer in answers] == pytest.approx([0.0] * len(answers), abs=1e-6)
        assert all(answer.agrees for answer in answers)
    assert summary_of([vars(a) for a in answers], [vars(a) for a in answers])["agreement"] == 1


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    # Wilson (1927) by hand: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.959964.
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (150, 300, 0.4437, 0.5563)],
)
def test_intervals_are_those_of_wilson(successes: int, count: int, low: float, high: float) -> None:
    assert interval(successes, count) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("answer", "wanted", "same"),
    [
        ("3 7", "3, 7.", True),
        ("37", "3 7", True),
        ("Top left.", "top left", True),
        ("7 3", "3 7", False),
        ("", "1", False),
    ],
)
def test_answers_are_compared_word_by_word(answer: str, wanted: str, same: bool) -> None:
    assert is_same(answer, wanted) is same


def test_shares_are_those_counted_by_hand() -> None:
    def answers(correct: str, agrees: str) -> list[dict[str, object]]:
        return [
            {"correct": c == "y", "agrees": a == "y", "kl": 0.5, "nll": math.log(3)}
            for c, a in zip(correct, agrees, strict=True)
        ]

    figures = summary_of(answers("ynny", "ynyy"), answers("yyyn", "yyyy"))
    assert (figures["accuracy"], figures["kept"], figures["agreement"]) == (0.5, pytest.approx(2 / 3), 0.75)
    assert (figures["kl"], figures["perplexity"]) == (0.5, pytest.approx(3))
    without = [{**answer, "correct": None} for answer in answers("yy", "yn")]
    assert (summary_of(without, without)["accuracy"], summary_of(without, without)["kept"]) == (None, None)


# The command


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


def test_another_class_of_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a model of type 'clip_vision_model'; allowed: llava, llava_next"):
        AnsweringModel(TOWER, CPU)


def test_a_template_without_an_image_is_refused(model: AnsweringModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.processor, "chat_template", "{{ messages[0]['content'][1]['text'] }}")
    with pytest.raises(DataError, match="writes 0 image tokens"):
        model.prompt("what is this ?")


# Tasks


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_are_what_the_answers_say(split: str) -> None:
    pytest.importorskip("skimage")
    from tokconv.exports.answers.reading import SIDE, Scenes

    scenes, again = (Scenes(None, split) for _ in range(2))  # type: ignore[arg-type]
    for image in range(8):
        placed = scenes.placed(image)
        assert placed == again.placed(image)
        assert scenes.load(image).tobytes() == again.load(image).tobytes()
        assert scenes.load(image).size == (SIDE, SIDE)
        assert len({one.value for one in placed}) == len(placed) == 1 + image % 4
        assert all(a.left + a.size <= b.left for a, b in itertools.pairwise(placed))


def test_train_and_test_share_no_digit_and_no_photograph() -> None:
    pytest.importorskip("skimage")
    from tokconv.exports.answers.reading import Scenes

    train, test = (Scenes(None, split) for split in ("train", "test"))  # type: ignore[arg-type]
    used = [{one.digit for image in range(60) for one in scenes.placed(image)} for scenes in (train, test)]
    assert not used[0] & used[1]
    stems = [
        {scenes.photographs._source.items[number].key.split("/")[0] for number in scenes.photographs._chosen}
        for scenes in (train, test)
    ]
    assert stems[0]
    assert stems[1]
    assert not stems[0] & stems[1]


def test_questions_of_reading_have_exact_answers() -> None:
    pytest.importorskip("skimage")
    task = make_task("reading")
    assert task.has_answers
    assert {question.kind for question in task.questions} == {"which", "where", "how many"}
    assert len({question.image for question in task.questions}) == len(task.questions), "one question per test image"
    assert make_task("reading").questions == task.questions


def test_a_folder_declares_its_split(photos: Path) -> None:
    train, test = (make_task(f"classes:{photos}", split) for split in ("train", "test"))  # type: ignore[arg-type]
    assert len(train.questions) == len(test.questions) == 6
    assert {question.answer for question in test.questions} == {"a", "b"}
    assert "a or b" in test.questions[0].text


@pytest.mark.parametrize("task", ["classes", "captions"])
def test_a_limit_leaves_images_of_all_classes(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"tokconv.exports.answers.{task}")
    monkeypatch.setattr(module, "TEST_QUESTIONS" if task == "classes" else "IMAGES", 20)
    for number in range(120):
        name, color = (("cat", "red"), ("dog", "blue"))[number % 2]
        path = tmp_path / "test" / name / f"{name}.{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), color).save(path)
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), color).save(tmp_path / "train" / name / "one.png")
    asked = make_task(f"{task}:{tmp_path}")
    assert asked.num_images == 20
    colors = [asked.load(image).getpixel((0, 0)) for image in range(20)]
    assert 5 <= colors.count((255, 0, 0)) <= 15
    assert len(set(colors[:6])) == 2, "also the first few, which --questions takes"
    again = make_task(f"{task}:{tmp_path}")
    assert [again.load(image).getpixel((0, 0)) for image in range(20)] == colors


def test_textiles_have_their_own_classes(photos: Path) -> None:
    with pytest.raises(ConfigError, match="has the classes a, b; write classes:"):
        make_task(f"textile:{photos}")
