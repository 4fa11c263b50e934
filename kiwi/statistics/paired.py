"""Paired comparison of two editors on the same items: intervals, permutation tests, detectable differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isnan

import numpy as np
from scipy.stats import norm

from kiwi.errors import InputError
from kiwi.statistics.intervals import (
    Clusters,
    Interval,
    Strata,
    bootstrap_mean,
    bootstrap_means,
    compute_small_sample_factor,
    sum_clusters,
)

PERMUTATIONS = 10_000
"""Number of random sign patterns of the permutation test."""

MAX_EXACT = 13
"""Number of clusters up to which the permutation test enumerates all sign patterns instead."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean paired difference.

    Args:
        interval: mean difference, strata weighted equally, with its 95% interval.
        p: p value of a two-sided paired permutation test: share of random sign patterns with a difference as large.
        detectable: smallest difference that this number of items detects with power 0.8 at level 0.05; NaN if the items
            do not vary or their variance is unknown.
        items: number of items.
    """

    interval: Interval
    p: float
    detectable: float
    items: int


def estimate_difference(strata: Strata, clusters: Clusters | None = None) -> Difference:
    """Estimate the mean of per-item differences; deterministic.

    Items of one cluster are resampled together, and their signs are flipped together.

    Args:
        strata: differences (second score - first score) of the items in each stratum; one stratum for a plain mean.
        clusters: cluster of each item, such as its source video; by default every item is a cluster of its own.

    Raises:
        InputError: there is no stratum, a stratum is empty, or clusters and strata differ in shape.
    """
    rng = np.random.default_rng(0)
    bootstrap_std = float(np.std(bootstrap_means(strata, clusters, rng), ddof=1))
    standard_error = bootstrap_std * compute_small_sample_factor(strata, clusters)
    totals = sum_clusters(strata, clusters)
    contributions = (totals.sums_CS / totals.counts_CS.sum(axis=0)).mean(axis=1)  # each cluster's part of the mean
    return Difference(
        interval=bootstrap_mean(strata, clusters=clusters),
        p=_run_permutation_test(contributions, rng),
        detectable=float(norm.ppf(0.975) + norm.ppf(0.8)) * standard_error if standard_error > 0 else float("nan"),
        items=sum(len(stratum) for stratum in strata),
    )


def _run_permutation_test(contributions: np.ndarray, rng: np.random.Generator) -> float:
    """Share of sign patterns for which the sum is at least as far from 0 as observed."""
    observed, nonzero = abs(float(contributions.sum())), contributions[np.abs(contributions) > 0]
    if not len(nonzero):
        return 1.0
    threshold = observed - 1e-12 * float(np.abs(nonzero).sum())  # equal sums differ by rounding
    if len(nonzero) <= MAX_EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(nonzero))[:, None] >> np.arange(len(nonzero))) & 1)
        return float(np.mean(np.abs(signs @ nonzero) >= threshold))
    signs = rng.choice(np.array([-1, 1], np.int8), (PERMUTATIONS, len(nonzero)))
    # The observed signs count among the random ones, so that p is never 0 (Phipson and Smyth, 2010).
    return float((1 + np.sum(np.abs(signs @ nonzero) >= threshold)) / (1 + PERMUTATIONS))


def adjust_by_holm(ps: Sequence[float]) -> list[float]:
    """p values adjusted for the number of tests (Holm, Scandinavian Journal of Statistics, 1979)."""
    adjusted, minimum = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        minimum = max(minimum, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = minimum
    return adjusted


def count_items_needed(difference: Difference, target: float, items: int | None = None) -> int | None:
    """Number of items with which a study detects a difference of `target`, at the power of `Difference.detectable`.

    The detectable difference falls with the square root of the number of items.

    Args:
        difference: result of a study on similar items.
        target: difference to detect.
        items: number of items in that study, if `difference.items` counts an item more than once.

    Returns:
        The number; None if the variance of the items is unknown.
    """
    if target <= 0:
        raise InputError("the difference to detect must be above 0", code="out-of-range", got=target)
    if isnan(difference.detectable):
        return None
    return ceil((items or difference.items) * (difference.detectable / target) ** 2)


def repeat_std(repeats: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation of repeated answers to the same question, pooled over questions; None without repeats."""
    variances = [float(np.var(answers, ddof=1)) for answers in repeats if len(answers) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else None


def flip_rate(repeats: Sequence[Sequence[float]]) -> float | None:
    """Share of questions whose repeated answers differ; None without repeats."""
    differs = [len(set(answers)) > 1 for answers in repeats if len(answers) > 1]
    return float(np.mean(differs)) if differs else None
