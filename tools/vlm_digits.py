"""Where the digits of the task `reading` are among the tokens of their images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tokconv.exports.answers.reading import SIDE, Placed, Scenes
from tokconv.exports.answers.tasks import Task

NO_DIGIT = -1


def scenes_of(task: Task) -> Scenes | None:
    """Return the images of a task `reading`, None for another task."""
    drawn = task.load.args[0] if isinstance(task.load, partial) else None
    return drawn if isinstance(drawn, Scenes) else None


def square_of(digit: Placed, grid: int) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of patches, [G] bool each, whose centres lie in the square of a digit."""
    centres = (torch.arange(grid) + 0.5) * SIDE / grid
    rows, columns = ((centres >= start) & (centres < start + digit.size) for start in (digit.top, digit.left))
    return rows, columns


def values_of(digits: Sequence[Placed], grid: int) -> Tensor:
    """Return the value of the digit that each patch shows, NO_DIGIT for the others, [G * G] int64."""
    values = torch.full((grid, grid), NO_DIGIT)
    for digit in digits:
        rows, columns = square_of(digit, grid)
        values[rows[:, None] & columns] = digit.value
    return values.flatten()
