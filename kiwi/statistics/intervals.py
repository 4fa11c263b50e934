"""Means with how sure they are: intervals by the bootstrap, groups of items (categories) resampled each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from kiwi.errors import InputError

RESAMPLES = 2000

Groups = Sequence[Sequence[float]]
"""Numbers of the items of each group."""

Clusters = Sequence[Sequence[object]]
"""What each item belongs to, in the shape of the groups."""


class Interval(NamedTuple):
    """A mean and the bounds of its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Mean and half of the interval's width, such as "3.52 ± 0.08"."""
        return self.rounded(2)

    def rounded(self, digits: int) -> str:
        """The same with another number of digits behind the point; "?" for a width that nobody knows."""
        if np.isnan(self.low):
            return f"{self.mean:.{digits}f} ± ?"
        return f"{self.mean:.{digits}f} ± {(self.high - self.low) / 2:.{digits}f}"


def mean_of(groups: Groups, confidence: float = 0.95, clusters: Clusters | None = None) -> Interval:
    """The mean over groups of the means over their items, which is how benchmarks weigh categories.

    The interval is the percentile bootstrap's, items (or clusters of them) drawn anew within each group, and stretched
    by what it lacks where items are few: sqrt(n / (n - 1)), and Student's quantile over the normal one (Hesterberg,
    2015); the same numbers give the same interval. Of a group of a single item (or cluster) it is not known, and NaN.

    Args:
        groups: numbers of the items of each group; one group for a plain mean.
        confidence: of the interval.
        clusters: items that are not independent, such as edits of one video, are drawn together.

    Raises:
        InputError: no groups, one without items, or clusters of another shape.
    """
    drawn = resampled_means(groups, clusters, np.random.default_rng(0))
    mean = float(np.mean([np.mean(group) for group in groups]))
    stretch = mean + stretch_of(groups, clusters, confidence) * (drawn - mean)
    low, high = np.percentile(stretch, [50 * (1 - confidence), 50 * (1 + confidence)])
    if np.ptp(stretch) < 1e-12:  # also where all items are alike; NaN is not
        return Interval(mean, mean, mean)
    return Interval(mean, float(low), float(high))


def stretch_of(groups: Groups, clusters: Clusters | None, confidence: float = 0.95) -> float:
    """By how much a bootstrap's deviations are too small, for so few items; NaN where a group has one alone.

    Groups count by their share in the variance of the mean; degrees of freedom as Satterthwaite (1946) adds them.
    """
    parts = parts_of(groups, clusters)
    sums, counts = parts[:, :, 0], parts[:, :, 1]
    owners = (counts > 0).sum(axis=0)
    if owners.min() < 2:
        return float("nan")
    rest = sums - counts * (sums.sum(axis=0) / counts.sum(axis=0))
    drawn = (rest**2).sum(axis=0) / counts.sum(axis=0) ** 2  # a group's variance, as the bootstrap has it
    if drawn.sum() == 0:
        return 1.0
    unbiased = drawn * owners / (owners - 1)
    freedom = unbiased.sum() ** 2 / (unbiased**2 / (owners - 1)).sum()
    quantile = (1 + confidence) / 2
    return float((unbiased.sum() / drawn.sum()) ** 0.5 * student.ppf(quantile, freedom) / norm.ppf(quantile))


def resampled_means(groups: Groups, clusters: Clusters | None, rng: np.random.Generator) -> np.ndarray:
    """RESAMPLES means over groups, of samples of clusters with replacement.

    A cluster is exchanged for one that has items in the same groups; those that are alone in that, among each other. A
    group that is empty in a sample then does not count in its mean.

    Raises:
        InputError: as `mean_of`.
    """
    parts = parts_of(groups, clusters)
    kinds: dict[bytes, list[int]] = {}
    for index, held in enumerate(parts[:, :, 1] > 0):
        kinds.setdefault(held.tobytes(), []).append(index)
    alone = [members[0] for members in kinds.values() if len(members) == 1]
    pools = [members for members in kinds.values() if len(members) > 1] + ([alone] if alone else [])
    drawn = np.zeros((RESAMPLES, *parts.shape[1:]))
    for members in pools:
        counts = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=RESAMPLES)
        drawn += np.tensordot(counts, parts[members], axes=1)
    there = drawn[:, :, 1] > 0
    by_group = np.divide(drawn[:, :, 0], drawn[:, :, 1], out=np.zeros(there.shape), where=there)
    means: np.ndarray = by_group.sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return means


def parts_of(groups: Groups, clusters: Clusters | None) -> np.ndarray:
    """Of each cluster in each group: the sum of its numbers, and how many; (clusters, groups, 2)."""
    if not groups or not all(len(group) for group in groups):
        raise InputError("A mean needs items in every group", got=[len(group) for group in groups])
    if clusters is None:
        clusters = [[(group, item) for item in range(len(values))] for group, values in enumerate(groups)]
    if (got := [len(group) for group in clusters]) != (wanted := [len(group) for group in groups]):
        raise InputError("Clusters and groups have other lengths", got=got, wanted=wanted)
    place = {name: index for index, name in enumerate(dict.fromkeys(name for group in clusters for name in group))}
    parts = np.zeros((len(place), len(groups), 2))
    for group, (values, owners) in enumerate(zip(groups, clusters, strict=True)):
        for value, owner in zip(values, owners, strict=True):
            parts[place[owner], group] += value, 1
    return parts
