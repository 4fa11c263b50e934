"""Means with how sure they are: intervals by the bootstrap, groups of items (categories) resampled each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

from kiwi.errors import InputError

RESAMPLES = 2000


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


def mean_of(groups: Sequence[Sequence[float]], confidence: float = 0.95) -> Interval:
    """The mean over groups of the means over their items, which is how benchmarks weigh categories.

    The interval is the percentile bootstrap's, items drawn anew within each group; the same numbers give the same
    interval. A single item, or items that are all alike, have no width.

    Args:
        groups: numbers of the items of each group; one group for a plain mean.
        confidence: of the interval.

    Raises:
        InputError: no groups, or one without items.
    """
    if not groups or not all(len(group) for group in groups):
        raise InputError("A mean needs items in every group", got=[len(group) for group in groups])
    samples = [np.asarray(group, float) for group in groups]
    mean = float(np.mean([sample.mean() for sample in samples]))
    varied = [sample for sample in samples if np.ptp(sample) > 0]
    if not varied:
        return Interval(mean, mean, mean)

    def over_groups(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return sum(sample.mean(axis=axis) for sample in drawn) / len(samples)  # type: ignore[return-value]

    found = bootstrap(
        varied, over_groups, n_resamples=RESAMPLES, confidence_level=confidence, method="percentile", vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    fixed = mean - sum(sample.mean() for sample in varied) / len(samples)
    return Interval(mean, float(found.low) + fixed, float(found.high) + fixed)
