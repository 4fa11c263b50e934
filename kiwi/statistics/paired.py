"""Comparisons of two editors on the same items: differences with intervals, permutation tests, what could be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isnan

import numpy as np
from scipy.stats import norm

from kiwi.errors import InputError
from kiwi.statistics.intervals import Clusters, Groups, Interval, mean_of, parts_of, resampled_means, stretch_of

PERMUTATIONS = 10_000
EXACT = 13
"""Clusters up to which all signs are gone through."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two editors.

    Args:
        mean: of the differences, groups weighted alike, with its 95% interval.
        p: of a two-sided paired permutation test: how often signs drawn by chance give a difference as large.
        detectable: the smallest difference that a study of this size would find with probability 0.8 at level 0.05; NaN
            where the items say nothing of their spread.
        items: how many.
    """

    mean: Interval
    p: float
    detectable: float
    items: int


def paired_difference(groups: Groups, clusters: Clusters | None = None) -> Difference:
    """What is known of a difference from the differences on items; the same numbers give the same answer.

    Items of one cluster are resampled, and change their signs, together.

    Args:
        groups: the second's score less the first's, of the items of each category; one group for a plain mean.
        clusters: what each item belongs to, in the same shape, such as its source video; each by itself if not given.

    Raises:
        InputError: no groups, one without items, or clusters of another shape.
    """
    rng = np.random.default_rng(0)
    spread = float(np.std(resampled_means(groups, clusters, rng), ddof=1))
    error = spread * stretch_of(groups, clusters)
    parts = parts_of(groups, clusters)
    shares = (parts[:, :, 0] / parts[:, :, 1].sum(axis=0)).mean(axis=1)  # of each cluster in the mean
    return Difference(
        mean=mean_of(groups, clusters=clusters),
        p=_permutation(shares, rng),
        detectable=float(norm.ppf(0.975) + norm.ppf(0.8)) * error if error > 0 else float("nan"),
        items=sum(len(group) for group in groups),
    )


def _permutation(shares: np.ndarray, rng: np.random.Generator) -> float:
    """The share of signs, drawn by chance, under which the sum is as far from 0."""
    observed, differing = abs(float(shares.sum())), shares[np.abs(shares) > 0]
    if not len(differing):
        return 1.0
    limit = observed - 1e-12 * float(np.abs(differing).sum())  # equal sums differ by rounding
    if len(differing) <= EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(differing))[:, None] >> np.arange(len(differing))) & 1)
        return float(np.mean(np.abs(signs @ differing) >= limit))
    signs = rng.choice(np.array([-1, 1], np.int8), (PERMUTATIONS, len(differing)))
    # The observed signs are among those that chance could give: no p is 0.
    return float((1 + np.sum(np.abs(signs @ differing) >= limit)) / (1 + PERMUTATIONS))


def holm(ps: Sequence[float]) -> list[float]:
    """p values of several tests, so corrected that the chance of any false finding is that of one (Holm, 1979)."""
    corrected, least = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = least
    return corrected


def items_needed(difference: Difference, wanted: float, items: int | None = None) -> int | None:
    """How many items like these would find a difference of `wanted`: what can be found falls with their root.

    Args:
        difference: of a study that was made.
        wanted: to be found.
        items: of that study, if an item has several numbers.

    Returns:
        None where the items say nothing of their spread.
    """
    if wanted <= 0:
        raise InputError("a difference that is to be found must be above 0", got=wanted)
    if isnan(difference.detectable):
        return None
    return ceil((items or difference.items) * (difference.detectable / wanted) ** 2)


def within_item_spread(repeats: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation of repeated answers to the same question, pooled over questions; None without repeats."""
    several = [float(np.var(answers, ddof=1)) for answers in repeats if len(answers) > 1]
    return float(np.sqrt(np.mean(several))) if several else None


def flip_rate(repeats: Sequence[Sequence[float]]) -> float | None:
    """The share of questions whose repeated answers are not all alike; None without repeats."""
    several = [len(set(answers)) > 1 for answers in repeats if len(answers) > 1]
    return float(np.mean(several)) if several else None
