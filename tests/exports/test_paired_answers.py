"""Answers of two methods to the same questions: the exact test, and what `tokconv answers` says of it."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from scipy.stats import binomtest

from tokconv.exports.answers.figures import COSTS, figures_of
from tokconv.exports.answers.paired import against_the_best, sign_test
from tokconv.exports.answers.table import answers_text
from tokconv.exports.answers.tasks import Question, Task


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 3), (17, 2), (2, 17), (14, 7), (60, 41)])
def test_the_sign_test_is_that_of_scipy(wins: int, losses: int) -> None:
    wanted = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(wanted)


def answers(agrees: str, correct: str | None = None) -> list[dict[str, Any]]:
    return [
        {"agrees": a == "y", "correct": None if correct is None else correct[place] == "y", "kl": 0.1, "nll": 0.1}
        for place, a in enumerate(agrees)
    ]


def test_a_method_is_compared_with_the_best_of_the_others() -> None:
    others = {"weak": answers("nnnnn", "nnnny"), "strong": answers("ynnyn", "nnnnn")}
    found = against_the_best(answers("yyynn", "ynnnn"), others)
    assert found["agrees"] == {"other": "strong", "wins": 2, "losses": 1, "p": sign_test(2, 1)}
    assert found["correct"] == {"other": "weak", "wins": 1, "losses": 1, "p": 1.0}
    assert against_the_best(answers("yy"), {"other": answers("yn")}).keys() == {"agrees"}
    assert against_the_best(answers("yy"), {}) == {}


def test_only_baselines_at_the_same_grid_count() -> None:
    def record(series: str, grid: int, agrees: str) -> dict[str, Any]:
        costs = {**dict.fromkeys(COSTS, 1), "series": series, "title": f"the {series}", "grid": grid}
        return {**costs, "answers": {"seen": answers(agrees)}}

    questions = tuple(Question(number, "?", None, "any") for number in range(4))
    task = Task("seen", questions, 4, lambda _: Image.new("L", (1, 1)), {})
    records = [
        record("all tokens", 24, "yyyy"),
        record("mine", 4, "yyyn"),
        record("pooling", 4, "nnny"),
        record("pooling", 6, "yyyy"),
    ]
    text = answers_text(figures_of(records, [task]), [task])
    line = "the mine 4x4 gives the answer from all tokens where the pooling does not: 3; the reverse: 1 (p 0.62)"
    assert text.count(" does not: ") == text.count(line) == 1
    assert "the reverse" not in answers_text(figures_of(records[:2], [task]), [task])
