"""Two methods that were asked the same questions, compared where they differ.

The intervals of two shares overlap long before chance explains their difference, because both methods find the same
questions hard. What decides are the questions on which only one of the two succeeds: without a difference each is a
fair coin (the exact test of McNemar, 1947).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

OUTCOMES = ("agrees", "correct")
"""What can differ between two answers: the words of the answer from all tokens, and being right."""


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of so many wins and losses under a fair coin; 1 without any.

    Example:
        >>> round(sign_test(17, 2), 5)
        0.00073
    """
    count = wins + losses
    tail = sum(math.comb(count, few) for few in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**count)


def against_the_best(
    own: Sequence[Mapping[str, Any]], others: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """Compare a method with the best of others, which is another one for each outcome.

    Args:
        own: its answers.
        others: the answers of each other method to the same questions, by its title.

    Returns:
        For every outcome that the answers have: `other`, the title; `wins` and `losses`, the questions on which only
        this method, or only the other, succeeds; `p`. Empty without others.
    """
    found = {}
    for outcome in OUTCOMES:
        if not others or own[0][outcome] is None:
            continue
        mine = [answer[outcome] for answer in own]
        successes = {title: [answer[outcome] for answer in answers] for title, answers in others.items()}
        title = max(successes, key=lambda title: sum(successes[title]))
        pairs = list(zip(mine, successes[title], strict=True))
        wins, losses = (sum(pair == wanted for pair in pairs) for wanted in ((True, False), (False, True)))
        found[outcome] = {"other": title, "wins": wins, "losses": losses, "p": sign_test(wins, losses)}
    return found
