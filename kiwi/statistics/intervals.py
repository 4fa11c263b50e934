"""Bootstrap confidence intervals of means, with strata (such as categories) and clusters (such as source videos)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from kiwi.errors import InputError

RESAMPLES = 2000
"""Number of bootstrap replicates."""

Strata = Sequence[Sequence[float]]
"""Values of the items in each stratum, such as a category; strata have equal weight."""

Clusters = Sequence[Sequence[object]]
"""Cluster of each item, such as its source video, in the same shape as `Strata`."""


class Interval(NamedTuple):
    """A mean with the bounds of its confidence interval, which are NaN if unknown."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Mean and half the width of the interval, such as "3.52 ± 0.08"."""
        return self.rounded(2)

    def rounded(self, digits: int) -> str:
        """Format with a number of decimal places; "?" for an unknown width."""
        if np.isnan(self.low):
            return f"{self.mean:.{digits}f} ± ?"
        return f"{self.mean:.{digits}f} ± {(self.high - self.low) / 2:.{digits}f}"


def bootstrap_mean(strata: Strata, confidence: float = 0.95, clusters: Clusters | None = None) -> Interval:
    """Average the strata's means with equal weight, with a bootstrap confidence interval.

    The interval is that of the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993),
    which resamples clusters, widened by `compute_small_sample_factor`. It is deterministic, and NaN if a stratum has a
    single cluster.

    Args:
        strata: values of the items in each stratum; one stratum for a plain mean.
        confidence: confidence level of the interval.
        clusters: cluster of each item; items of one cluster are dependent and resampled together. By default every item
            is a cluster of its own.

    Raises:
        InputError: there is no stratum, a stratum is empty, or clusters and strata differ in shape.
    """
    replicates = bootstrap_means(strata, clusters, np.random.default_rng(0))
    mean = float(np.mean([np.mean(stratum) for stratum in strata]))
    widened = mean + compute_small_sample_factor(strata, clusters, confidence) * (replicates - mean)
    low, high = np.percentile(widened, [50 * (1 - confidence), 50 * (1 + confidence)])
    if np.ptp(widened) < 1e-12:  # all items are equal; not for NaN
        return Interval(mean, mean, mean)
    return Interval(mean, float(low), float(high))


def describe_single_items(counts: Mapping[str, int]) -> str:
    """Say in a sentence which categories have only one item, given the number of items of each; empty if none has."""
    if not (names := [name for name, count in counts.items() if count == 1]):
        return ""
    categories, have = ("category", "has") if len(names) == 1 else ("categories", "have")
    return (
        f"The {categories} {', '.join(names)} {have} only one item: intervals of their means are unknown (?), "
        "because they need at least two items in a category."
    )


def compute_small_sample_factor(strata: Strata, clusters: Clusters | None, confidence: float = 0.95) -> float:
    """Compute the factor by which the percentile bootstrap interval is too narrow for few items.

    The factor is sqrt(n / (n - 1)) times the ratio of Student's quantile to the normal one (Hesterberg, What Teachers
    Should Know About the Bootstrap, The American Statistician, 2015). Strata are weighted by their share in the
    variance of the mean, and their degrees of freedom combined as by Satterthwaite (Biometrics Bulletin, 1946). NaN if
    a stratum has a single cluster.
    """
    sums, counts = sum_clusters(strata, clusters)
    sizes = (counts > 0).sum(axis=0)  # number of clusters in each stratum
    if sizes.min() < 2:
        return float("nan")
    residuals = sums - counts * (sums.sum(axis=0) / counts.sum(axis=0))
    plug_in = (residuals**2).sum(axis=0) / counts.sum(axis=0) ** 2  # variance of each stratum's mean in the bootstrap
    if plug_in.sum() == 0:
        return 1.0
    unbiased = plug_in * sizes / (sizes - 1)
    df = unbiased.sum() ** 2 / (unbiased**2 / (sizes - 1)).sum()
    quantile = (1 + confidence) / 2
    return float((unbiased.sum() / plug_in.sum()) ** 0.5 * student.ppf(quantile, df) / norm.ppf(quantile))


def bootstrap_means(strata: Strata, clusters: Clusters | None, rng: np.random.Generator) -> np.ndarray:
    """Draw RESAMPLES bootstrap replicates of the mean over strata, resampling clusters with replacement.

    Clusters are resampled among those with items in the same strata; those that share their strata with no other
    cluster form one more group. Strata that are empty in a replicate are left out of its mean.

    Raises:
        InputError: as `bootstrap_mean`.
    """
    totals = sum_clusters(strata, clusters)
    by_pattern: dict[bytes, list[int]] = {}
    for index, is_present in enumerate(totals.counts_CS > 0):
        by_pattern.setdefault(is_present.tobytes(), []).append(index)
    singletons = [members[0] for members in by_pattern.values() if len(members) == 1]
    pools = [members for members in by_pattern.values() if len(members) > 1] + ([singletons] if singletons else [])
    stacked = np.stack(totals, axis=-1)
    resampled = np.zeros((RESAMPLES, *stacked.shape[1:]))
    for members in pools:
        draws = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=RESAMPLES)
        resampled += np.tensordot(draws, stacked[members], axes=1)
    sums, counts = np.moveaxis(resampled, -1, 0)
    stratum_means = np.divide(sums, counts, out=np.zeros(counts.shape), where=counts > 0)
    means: np.ndarray = stratum_means.sum(axis=1) / np.maximum((counts > 0).sum(axis=1), 1)
    return means


class ClusterTotals(NamedTuple):
    """Sum and number of the values of each cluster (C) in each stratum (S)."""

    sums_CS: np.ndarray
    counts_CS: np.ndarray


def sum_clusters(strata: Strata, clusters: Clusters | None) -> ClusterTotals:
    """Sum and count the values of each cluster in each stratum. Raises InputError as `bootstrap_mean`."""
    if not strata or not all(len(stratum) for stratum in strata):
        raise InputError(
            "a mean needs items in every stratum", code="no-items", got=[len(stratum) for stratum in strata]
        )
    if clusters is None:
        clusters = [[(stratum, item) for item in range(len(values))] for stratum, values in enumerate(strata)]
    if (got := [len(labels) for labels in clusters]) != (expected := [len(stratum) for stratum in strata]):
        raise InputError(
            "clusters and strata have different lengths", code="mismatched-lengths", got=got, expected=expected
        )
    index = {label: number for number, label in enumerate(dict.fromkeys(c for labels in clusters for c in labels))}
    totals = ClusterTotals(*(np.zeros((len(index), len(strata))) for _ in ClusterTotals._fields))
    for stratum, (values, labels) in enumerate(zip(strata, clusters, strict=True)):
        for value, label in zip(values, labels, strict=True):
            totals.sums_CS[index[label], stratum] += value
            totals.counts_CS[index[label], stratum] += 1
    return totals
