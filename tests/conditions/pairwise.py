"""Few rows in which every two of several things are seen together in all four ways: both, one, the other, neither."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

Row = dict[str, bool]
Pair = tuple[str, bool, str, bool]


def pairs_of(row: Row, factors: Sequence[str]) -> set[Pair]:
    """The pairs that a row shows."""
    return {(a, row[a], b, row[b]) for a, b in combinations(factors, 2)}


def pairwise(factors: Sequence[str], tries: int = 60) -> list[Row]:
    """Rows that show all pairs of values of all pairs of factors; the same rows every time.

    Each row is the best of ``tries`` random ones: the one that shows most pairs that no earlier row has shown.
    The first row has everything and the second nothing.

    Args:
        factors: Names, all different.
        tries: Random rows to choose the next one from.
    """
    chance = random.Random(0)
    rows = [dict.fromkeys(factors, True), dict.fromkeys(factors, False)]
    missing = {(a, x, b, y) for a, b in combinations(factors, 2) for x in (True, False) for y in (True, False)}
    for row in rows:
        missing -= pairs_of(row, factors)
    while missing:
        a, x, b, y = min(missing)
        drawn = [{name: chance.random() < 0.5 for name in factors} | {a: x, b: y} for _ in range(tries)]
        best = max(drawn, key=lambda row: len(missing & pairs_of(row, factors)))
        missing -= pairs_of(best, factors)
        rows.append(best)
    return rows
