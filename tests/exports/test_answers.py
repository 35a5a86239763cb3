"""A vision-language model answers from visual tokens: against its own forward pass and generate."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support.llavas import TOWER
from torch import Tensor

from tokconv.errors import DataError
from tokconv.exports.answers.figures import summary_of
from tokconv.exports.answers.measure import TaskTokens, answers_from_all, measure, refer
from tokconv.exports.answers.methods import AllTokens, Batch, Exported, Method
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.tasks import make_task
from tokconv.integrations.llava import attach

CPU = torch.device("cpu")
LIMIT = 4


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


@pytest.fixture(scope="module")
def model(folder: Path) -> AnsweringModel:
    return AnsweringModel(folder, CPU)


@pytest.fixture(scope="module")
def tokens(model: AnsweringModel, photos: Path) -> TaskTokens:
    task = make_task(f"classes:{photos}")
    images = [task.load(number) for number in range(task.num_images)]
    count = len(images)
    return TaskTokens(task, model.tower_tokens(images).numpy(), [model.size_of(images[0])] * count, [1] * count)


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


def test_all_tokens_agree_with_themselves(model: AnsweringModel, tokens: TaskTokens) -> None:
    reference = refer(model, tokens, AllTokens(24), 4, LIMIT, silent)
    for method in (AllTokens(24), Copied(24)):
        answers = measure(model, tokens, method, reference, 4, LIMIT, silent)
        assert [answer.kl for answer in answers] == pytest.approx([0.0] * len(answers), abs=1e-6)
        assert all(answer.agrees for answer in answers)
    assert summary_of([vars(a) for a in answers], [vars(a) for a in answers])["agreement"] == 1


def test_the_reference_holds_what_a_second_reading_finds(model: AnsweringModel, tokens: TaskTokens) -> None:
    reference = refer(model, tokens, AllTokens(24), 4, LIMIT, silent)
    known = answers_from_all(model, tokens.task, reference)
    for one, again in zip(known, measure(model, tokens, Copied(24), reference, 4, LIMIT, silent), strict=True):
        assert (one.text, one.correct, one.agrees) == (again.text, again.correct, again.agrees)
        assert (one.kl, one.nll) == (0, pytest.approx(again.nll, rel=1e-4))


def test_another_class_of_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a model of type 'clip_vision_model'; allowed: llava, llava_next"):
        AnsweringModel(TOWER, CPU)


def test_a_template_without_an_image_is_refused(model: AnsweringModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.processor, "chat_template", "{{ messages[0]['content'][1]['text'] }}")
    with pytest.raises(DataError, match="writes 0 image tokens"):
        model.prompt("what is this ?")
