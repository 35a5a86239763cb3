"""When an answer is right, and the figures of answers against hand-computed ones."""

from __future__ import annotations

import math

import pytest

from tokconv.exports.answers.figures import summary_of
from tokconv.exports.answers.scoring import interval, is_same


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
