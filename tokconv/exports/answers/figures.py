"""Figures of a run: answers of every method as shares with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.exports.answers.paired import against_the_best
from tokconv.exports.answers.scoring import interval
from tokconv.exports.answers.tasks import Task

ALL = "all tokens"
"""The series of what every method is compared with."""
COSTS = ("series", "title", "grid", "tokens", "ratio", "compress_s", "prefill_s", "cache_bytes")
Figures = dict[str, Any]


def figures_of(records: Sequence[Mapping[str, Any]], tasks: Sequence[Task]) -> list[Figures]:
    """Return the figures of every method.

    Args:
        records: as `AnswersRun.run` returns them; the first is all tokens.

    Returns:
        For each record its names and costs, and under `tasks` the figures of each task; those of a task with questions
        of several kinds have the same figures of each kind under `kinds`. Those of a compressor also have `against`,
        its comparison with the best baseline at its grid, as `against_the_best` gives it.
    """
    return [
        {
            **{key: record[key] for key in COSTS},
            "tasks": {
                task.name: _of_task(task, record["answers"][task.name], records[0]["answers"][task.name])
                | _against(task, record, records)
                for task in tasks
            },
        }
        for record in records
    ]


def _against(task: Task, record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Figures:
    if record["series"] in (ALL, *BASELINES):
        return {}
    free = [other for other in records if other["series"] in BASELINES and other["grid"] == record["grid"]]
    others = {other["title"]: other["answers"][task.name] for other in free}
    return {"against": against_the_best(record["answers"][task.name], others)}


def summary_of(answers: Sequence[Mapping[str, Any]], of_all: Sequence[Mapping[str, Any]]) -> Figures:
    """Return the figures of some answers.

    Args:
        of_all: the answers from all tokens to the same questions.

    Returns:
        `accuracy` and `agreement` with their 95 % intervals as `*_low` and `*_high`; `kept`, the accuracy over that of
        all tokens (None if that is 0); `kl` in nats; `perplexity` of the answer from all tokens. Accuracy and kept are
        None without exact answers.
    """
    found: Figures = {"questions": len(answers), "accuracy": None, "accuracy_low": None, "accuracy_high": None}
    found["kept"] = None
    if all(answer["correct"] is not None for answer in answers):
        found |= _share("accuracy", sum(answer["correct"] for answer in answers), len(answers))
        right = sum(answer["correct"] for answer in of_all)
        found["kept"] = found["accuracy"] * len(of_all) / right if right else None
    found |= _share("agreement", sum(answer["agrees"] for answer in answers), len(answers))
    found["kl"] = sum(answer["kl"] for answer in answers) / len(answers)
    found["perplexity"] = math.exp(sum(answer["nll"] for answer in answers) / len(answers))
    return found


def _of_task(task: Task, answers: Sequence[Mapping[str, Any]], of_all: Sequence[Mapping[str, Any]]) -> Figures:
    places: dict[str, list[int]] = {}
    for place, question in enumerate(task.questions):
        places.setdefault(question.kind, []).append(place)
    found = summary_of(answers, of_all)
    if len(places) > 1:
        found["kinds"] = {
            kind: summary_of([answers[place] for place in own], [of_all[place] for place in own])
            for kind, own in places.items()
        }
    return found


def _share(name: str, successes: int, count: int) -> Figures:
    low, high = interval(successes, count)
    return {name: successes / count, f"{name}_low": low, f"{name}_high": high}
