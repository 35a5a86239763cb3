"""The figures of a run as text: a table per task, one row per method."""

from __future__ import annotations

from collections.abc import Sequence

from tokconv.exports.answers.figures import Figures
from tokconv.exports.answers.tasks import Task
from tokconv.system.terminal import data_size

TEXT, PLOT = "answers.txt", "answers.png"
"""The tables and the plot of a run as files in its folder."""
HEADS = (
    *("", "tokens", "ratio", "accuracy", "95 %", "kept", "agreement", "95 %", "KL", "perplexity"),
    *("compress", "prefill", "cache"),
)
OUTCOMES = {"agrees": "gives the answer from all tokens", "correct": "is right"}
LEGEND = (
    ("accuracy", "share of the answers that are exact, with its 95 % interval"),
    ("kept", "the accuracy over that of all tokens"),
    ("agreement", "share of the answers with the words of the answer from all tokens, with its 95 % interval"),
    ("KL", "divergence of the next-token distribution from that of all tokens, nats"),
    ("perplexity", "of the answer from all tokens"),
    ("compress", "making the tokens of one image of those of the tower; of small images, the tower on it"),
    ("prefill", "projecting and reading one image and question"),
    ("cache", "keys and values of one image and question"),
)


def answers_table(figures: Sequence[Figures], task: str) -> str:
    """Return the figures of every method on one task; columns that no method has are left out."""
    rows = [_cells(method, method["tasks"][task]) for method in figures]
    shown = [column for column in range(len(HEADS)) if any(row[column] for row in rows)]
    lines = [[HEADS[column] for column in shown], *([row[column] for column in shown] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(shown))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def answers_text(figures: Sequence[Figures], tasks: Sequence[Task]) -> str:
    """Return the legend and the table of every task."""
    parts = [legend()]
    for task in tasks:
        heading = f"{task.name}: {len(task.questions)} questions, {task.num_images} images"
        parts.append(f"{heading}\n{answers_table(figures, task.name)}")
        if comparison := _comparison(figures, task.name):
            parts.append(comparison)
    return "\n\n".join(parts)


def _comparison(figures: Sequence[Figures], task: str) -> str:
    """Return a line per compressor and outcome about the best baseline at its grid; empty without baselines."""
    lines = [
        f"  {method['title']} {method['grid']}x{method['grid']} {OUTCOMES[outcome]} where {found['other']} does not: "
        f"{found['wins']}; the reverse: {found['losses']} (p {found['p']:.2g})"
        for method in figures
        for outcome, found in method["tasks"][task].get("against", {}).items()
    ]
    heading = "Against the best baseline at the same grid, question by question (exact sign test, each line by itself):"
    return "\n".join([heading, *lines]) if lines else ""


def legend() -> str:
    """Return what the columns mean, one line each."""
    return "\n".join(f"  {name:<10}  {meaning}" for name, meaning in LEGEND)


def _cells(method: Figures, task: Figures) -> list[str]:
    return [
        method["title"],
        str(method["tokens"]),
        f"{method['ratio']:.3g}x",
        _percent(task["accuracy"]),
        _range(task, "accuracy"),
        _percent(task["kept"]),
        _percent(task["agreement"]),
        _range(task, "agreement"),
        f"{task['kl']:.4f}",
        f"{task['perplexity']:.3f}",
        f"{1000 * method['compress_s']:.0f} ms",
        f"{1000 * method['prefill_s']:.0f} ms",
        data_size(method["cache_bytes"]),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _range(task: Figures, name: str) -> str:
    low, high = task[f"{name}_low"], task[f"{name}_high"]
    return "" if low is None else f"{100 * low:.0f} to {100 * high:.0f}"
