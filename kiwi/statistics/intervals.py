"""Means with how sure they are: intervals by the bootstrap, groups of items (categories) resampled each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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
        """The same with another number of digits behind the point."""
        return f"{self.mean:.{digits}f} ± {(self.high - self.low) / 2:.{digits}f}"


def mean_of(groups: Groups, confidence: float = 0.95, clusters: Clusters | None = None) -> Interval:
    """The mean over groups of the means over their items, which is how benchmarks weigh categories.

    The interval is the percentile bootstrap's, items (or clusters of them) drawn anew within each group; the same
    numbers give the same interval. A single item, or items that are all alike, have no width.

    Args:
        groups: numbers of the items of each group; one group for a plain mean.
        confidence: of the interval.
        clusters: items that are not independent, such as edits of one video, are drawn together.

    Raises:
        InputError: no groups, one without items, or clusters of another shape.
    """
    drawn = resampled_means(groups, clusters, np.random.default_rng(0))
    mean = float(np.mean([np.mean(group) for group in groups]))
    low, high = np.percentile(drawn, [50 * (1 - confidence), 50 * (1 + confidence)])
    if np.ptp(drawn) < 1e-12:
        return Interval(mean, mean, mean)
    return Interval(mean, float(low), float(high))


def resampled_means(groups: Groups, clusters: Clusters | None, rng: np.random.Generator) -> np.ndarray:
    """RESAMPLES means over groups, of samples of clusters with replacement.

    A cluster is exchanged for one that has items in the same groups, so that no group is ever empty.

    Raises:
        InputError: as `mean_of`.
    """
    parts = parts_of(groups, clusters)
    kinds: dict[bytes, list[int]] = {}
    for index, held in enumerate(parts[:, :, 1] > 0):
        kinds.setdefault(held.tobytes(), []).append(index)
    drawn = np.zeros((RESAMPLES, *parts.shape[1:]))
    for members in kinds.values():
        counts = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=RESAMPLES)
        drawn += np.tensordot(counts, parts[members], axes=1)
    means: np.ndarray = (drawn[:, :, 0] / drawn[:, :, 1]).mean(axis=1)
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
