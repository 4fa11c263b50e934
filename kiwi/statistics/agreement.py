"""Agreement between raters of the same items: judges with each other, or with people."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan

import numpy as np
from scipy.stats import rankdata, spearmanr

from kiwi.errors import InputError


def krippendorff_alpha(ratings: Sequence[Sequence[float]], level: str = "interval") -> float:
    """Krippendorff's alpha: 1 if raters agree always, 0 if as by chance (Krippendorff, Content Analysis, 2004).

    Args:
        ratings: of each rater, of each item; NaN where a rater gave none.
        level: "interval" (a difference counts by its square), "ordinal" (by how many ratings lie between) or "nominal"
            (any difference counts alike).

    Returns:
        NaN if no item has two ratings, or all ratings are the same.

    Raises:
        InputError: raters of different numbers of items, or another level.
    """
    table = _table(ratings)
    columns = [column[~np.isnan(column)] for column in table.T]
    units = [column for column in columns if len(column) > 1]
    if not units:
        return nan
    values, counts = np.unique(np.concatenate(units), return_counts=True)
    distance = _distances(values, counts, level)
    number = int(counts.sum())
    coincidences = np.zeros_like(distance)
    for unit in units:
        held = np.array([np.sum(unit == value) for value in values], float)
        coincidences += (np.outer(held, held) - np.diag(held)) / (len(unit) - 1)
    observed = float((coincidences * distance).sum()) / number
    expected = float((np.outer(counts, counts) * distance).sum()) / (number * (number - 1))
    return 1 - observed / expected if expected > 0 else nan


def weighted_kappa(one: Sequence[float], other: Sequence[float]) -> float:
    """Cohen's kappa with quadratic weights, of two raters of the same items; NaN if a rater gives one rating only.

    Written with the ratings themselves: 1 - sum (a - b)^2 over what ratings drawn apart would give, so that ratings
    need not be whole. Items without both ratings (NaN) are left out.

    Raises:
        InputError: other numbers of items.
    """
    a, b = _both(one, other)
    if not len(a):
        return nan
    by_chance = float(np.mean((a[:, None] - b[None, :]) ** 2))
    return 1 - float(np.mean((a - b) ** 2)) / by_chance if by_chance > 0 else nan


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation of two raters; NaN if a rater gives one rating only, or less than two items."""
    a, b = _both(one, other)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return nan
    found = float(spearmanr(a, b).statistic)
    assert not isnan(found)
    return found


def _table(ratings: Sequence[Sequence[float]]) -> np.ndarray:
    if len({len(rater) for rater in ratings}) > 1:
        raise InputError(
            "Raters must rate the same items", got=[len(rater) for rater in ratings], wanted="NaN for none"
        )
    return np.asarray(ratings, float).reshape(len(ratings), -1)


def _both(one: Sequence[float], other: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    table = _table([one, other])
    kept = table[:, ~np.isnan(table).any(axis=0)]
    return kept[0], kept[1]


def _distances(values: np.ndarray, counts: np.ndarray, level: str) -> np.ndarray:
    if level == "nominal":
        return (values[:, None] != values[None, :]).astype(float)
    if level == "interval":
        return (values[:, None] - values[None, :]) ** 2
    if level == "ordinal":
        middle = rankdata(np.repeat(values, counts), method="average")  # ties share the middle of their ranks
        ranks = middle[np.concatenate([[0], np.cumsum(counts)[:-1]])]
        return (ranks[:, None] - ranks[None, :]) ** 2
    raise InputError("there is no such level of measurement", got=level, wanted="interval, ordinal or nominal")
