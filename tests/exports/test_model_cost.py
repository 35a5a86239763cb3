"""What a vision-language model costs as a judge and as a teacher, against counts by hand and against real readings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.llavas import make_llava, make_processor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tokconv
from tokconv.errors import ConfigError
from tokconv.exports.answers.judge import VlmJudge
from tokconv.exports.answers.last_epoch import JudgeSettings
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.model_cost import ReadingMeter
from tokconv.exports.answers.teacher import VlmTeacher
from tokconv.models.windows import Windows
from tokconv.store.reader import TokenStore
from tokconv.training.networks import TokenShape

CPU = torch.device("cpu")
SHAPE = TokenShape(24, 64, torch.zeros(64))
WIDTH, LAYERS, VOCABULARY = 64, 2, 64
PROMPT = "what is this ?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reading") / "llava"
    make_llava(width=WIDTH, layers=LAYERS).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Tokens of digits, by the tower of the model."""
    place = tmp_path_factory.mktemp("reading") / "store"
    config = tokconv.compose(["data=digits", "data.subset=48", "data.num_workers=0", f"data.store={place}"])
    return tokconv.encode(config, device="cpu")


def meter(model: Path, *prompts: str, tokens: int = 4, timed: bool = False) -> ReadingMeter:
    return ReadingMeter(JudgeSettings(model, prompts or (PROMPT,), 8, tokens), SHAPE, [2, 6], device=CPU, timed=timed)


def by_hand(model: Path, visual: int, tokens: int) -> float:
    """Return the FLOPs of reading so many visual tokens, the prompt and an answer, and of the head, in closed form."""
    read = AnsweringModel(model, CPU)
    inner = read.model.model
    layers = sum(parameter.numel() for parameter in inner.language_model.layers.parameters() if parameter.dim() == 2)
    projector = sum(parameter.numel() for parameter in inner.multi_modal_projector.parameters() if parameter.dim() == 2)
    prompt = visual + len(read.token_ids(read.prompt(PROMPT))) - 576
    attention = 4 * WIDTH * LAYERS * (prompt**2 + (tokens - 1) * (prompt + tokens - 1))
    heads = 2 * 2 * tokens * VOCABULARY * WIDTH
    return 2 * layers * (prompt + tokens - 1) + 2 * projector * visual + attention + heads


def torchs_count(work: Callable[[], object]) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("grid", [2, 6])
def test_a_judgement_is_what_its_weights_and_its_attention_take(model: Path, grid: int) -> None:
    assert meter(model).judge(grid).flops == pytest.approx(by_hand(model, grid**2, 4), rel=0.02)


def test_a_teacher_takes_the_way_back_as_well(model: Path) -> None:
    # The weights are frozen: the way back is one more pass, but two for attention.
    found = meter(model).teacher(6, 8, 1).flops / meter(model).judge(6).flops
    assert 1.9 < found < 2.5


@pytest.mark.parametrize("prompts", [(PROMPT,), (PROMPT, "what is a b ?")])
def test_real_readings_take_as_much(store: TokenStore, model: Path, prompts: tuple[str, ...]) -> None:
    # With answers of one token, no greedy answer ends before the others.
    named = "\n".join(prompts)
    config = tokconv.compose(
        [f"loss.vlm.model={model}", f"loss.vlm.prompts='{named}'", "loss.vlm.tokens=1", "loss.weights.vlm=1"]
    )
    teacher = VlmTeacher(store, config, CPU)
    images = store.train_indices[:3]
    reads = meter(model, *prompts, tokens=1)
    everything = torchs_count(teacher.prepare)
    assert everything == pytest.approx(reads.all_tokens().flops * len(store.train_indices), rel=0.01)
    cells = Windows(24, 2).split(store.tokens(images).float()).mean(2).requires_grad_(True)
    taught = torchs_count(lambda: teacher(cells, images, torch.Generator()).backward())
    assert taught == pytest.approx(reads.teacher(2, 8, 4).flops * 3, rel=0.01)
    judge = VlmJudge(store, JudgeSettings(model, prompts, 5, 1), CPU)
    judge._said.prepare()
    judged = torchs_count(lambda: judge(lambda tokens: (Windows(24, 2).split(tokens).mean(2), tokens)))
    assert judged == pytest.approx(reads.judge(2).flops * 5, rel=0.01)


def test_longer_answers_and_prompts_take_more_and_several_share_the_image(model: Path) -> None:
    short, long = "a", "what is this ? a b c d a b c d"
    assert meter(model, tokens=8).judge(2).flops > meter(model, tokens=1).judge(2).flops
    assert meter(model, tokens=8).all_tokens().flops > meter(model, tokens=1).all_tokens().flops
    middle = meter(model, PROMPT).judge(2).flops
    assert meter(model, long).judge(2).flops > middle > meter(model, short).judge(2).flops
    assert middle < meter(model, short, long, PROMPT).judge(2).flops < 3 * middle
    # Of which a step asks one, it is the one in the middle.
    assert meter(model, short, long, PROMPT).teacher(2, 8, 1).flops == meter(model, PROMPT).teacher(2, 8, 1).flops
    assert meter(model, long, PROMPT).all_tokens().flops < 1.2 * meter(model, long).all_tokens().flops


def test_seconds_are_timed_if_they_are_wanted(model: Path) -> None:
    assert meter(model).judge(2).seconds is None
    timed = meter(model, timed=True)
    for found in (timed.judge(2), timed.teacher(2, 4, 4), timed.all_tokens()):
        assert found.seconds is not None
        assert found.seconds > 0


def test_tokens_that_the_projector_does_not_read_are_refused(model: Path) -> None:
    settings = JudgeSettings(model, (PROMPT,), 8, 4)
    for shape, message in ((TokenShape(24, 32, torch.zeros(32)), "width"), (TokenShape(12, 64, SHAPE.mean), "grid")):
        with pytest.raises(ConfigError, match=f"the .*{message} of its tower is"):
            ReadingMeter(settings, shape, [2], device=CPU, timed=False)
