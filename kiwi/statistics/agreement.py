"""Agreement between raters (judges or human raters) of the same items."""

from collections.abc import Sequence
from math import isnan, nan

import numpy as np
from scipy.stats import rankdata, spearmanr

from kiwi.errors import InputError


def krippendorff_alpha(ratings: Sequence[Sequence[float]], level: str = "interval") -> float:
    """Krippendorff's alpha (Content Analysis, 2004): 1 for perfect agreement, 0 for agreement by chance.

    Args:
        ratings: ratings by rater and item; NaN for a missing rating.
        level: level of measurement: "interval" (distance: squared difference of ratings), "ordinal" (squared difference
            of ranks) or "nominal" (1 for any difference).

    Returns:
        Alpha; NaN if no item has two ratings, or all ratings are equal.

    Raises:
        InputError: raters have different numbers of items, or the level is unknown.
    """
    units = [column[~np.isnan(column)] for column in _stack_ratings(ratings).T]
    units = [unit for unit in units if len(unit) > 1]
    if not units:
        return nan
    values, counts = np.unique(np.concatenate(units), return_counts=True)
    distance = _compute_distances(values, counts, level)
    total = int(counts.sum())
    coincidences = np.zeros_like(distance)
    for unit in units:
        unit_counts = np.array([np.sum(unit == value) for value in values], float)
        coincidences += (np.outer(unit_counts, unit_counts) - np.diag(unit_counts)) / (len(unit) - 1)
    observed = float((coincidences * distance).sum()) / total
    expected = float((np.outer(counts, counts) * distance).sum()) / (total * (total - 1))
    return 1 - observed / expected if expected > 0 else nan


def weighted_kappa(a: Sequence[float], b: Sequence[float]) -> float:
    """Cohen's kappa with quadratic weights (Psychological Bulletin, 1968) of two raters of the same items.

    1 - mean((a - b)^2) / (its expectation for independent ratings); ratings need not be integers. Items with a missing
    rating (NaN) are left out. NaN if all ratings of both raters are equal.

    Raises:
        InputError: the raters have different numbers of items.
    """
    x, y = _select_complete_pairs(a, b)
    if not len(x):
        return nan
    expected = float(np.mean((x[:, None] - y[None, :]) ** 2))
    return 1 - float(np.mean((x - y) ** 2)) / expected if expected > 0 else nan


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation of two raters; NaN if one gives a single rating throughout, or below two items."""
    x, y = _select_complete_pairs(a, b)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return nan
    correlation = float(spearmanr(x, y).statistic)
    assert not isnan(correlation)
    return correlation


def _stack_ratings(ratings: Sequence[Sequence[float]]) -> np.ndarray:
    if len({len(rater) for rater in ratings}) > 1:
        got, expected = [len(rater) for rater in ratings], "equal numbers, with NaN for a missing rating"
        problem = "raters have different numbers of items"
        raise InputError(problem, code="mismatched-lengths", got=got, expected=expected)
    return np.asarray(ratings, float).reshape(len(ratings), -1)


def _select_complete_pairs(a: Sequence[float], b: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    table = _stack_ratings([a, b])
    complete = table[:, ~np.isnan(table).any(axis=0)]
    return complete[0], complete[1]


def _compute_distances(values: np.ndarray, counts: np.ndarray, level: str) -> np.ndarray:
    if level == "nominal":
        return (values[:, None] != values[None, :]).astype(float)
    if level == "interval":
        return (values[:, None] - values[None, :]) ** 2
    if level == "ordinal":
        by_rating = rankdata(np.repeat(values, counts), method="average")  # ties share the mean of their ranks
        ranks = by_rating[np.concatenate([[0], np.cumsum(counts)[:-1]])]
        return (ranks[:, None] - ranks[None, :]) ** 2
    expected = "interval, ordinal or nominal"
    raise InputError("unknown level of measurement", code="unknown-choice", got=level, expected=expected)
