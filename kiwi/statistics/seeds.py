"""Means over items and training seeds, by a two-way random-effects analysis of variance.

Results vary with the items measured and with the training seed. An interval over items alone says nothing about models
trained with other seeds: it is significant without any true difference in up to half of all studies (rates in
`tests/unit/statistics/test_seeds.py`). Here both factors are random effects, with Satterthwaite's degrees of freedom
(Biometrics Bulletin, 1946). Categories are fixed effects with equal weight; items of one cluster, such as edits of one
video, are dependent. Arrays: S seeds, I items, K categories, C clusters.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, nct
from scipy.stats import t as student

from kiwi.errors import InputError
from kiwi.statistics.intervals import Interval

ItemValues = Mapping[str, float]
"""Value of each item, by its id."""


@dataclass(frozen=True, kw_only=True)
class RandomEffectsMean:
    """A mean over items and seeds; an effect, if the values are differences of paired runs.

    Args:
        interval: mean with its 95% interval over seeds and items; the bounds are NaN for one seed, and if a category
            has a single item (or cluster).
        p: two-sided p value of the hypothesis that the mean is 0; NaN where the interval is.
        seed_std: observed standard deviation between seeds of the mean over items; NaN for one seed.
        seeds, items: number of seeds and of items.
        seed_variance: variance component of the seeds, in one seed's mean over items.
        item_variance: variance component of items, in the mean over all seeds.
        residual_variance: variance component of the interaction of items and seeds, in one seed's mean over items.
        item_df: degrees of freedom of the items.
    """

    interval: Interval
    p: float
    seed_std: float
    seeds: int
    items: int
    seed_variance: float
    item_variance: float
    residual_variance: float
    item_df: float

    def detectable_difference(self, seeds: int, seed_variance: float | None = None, level: float = 0.05) -> float:
        """The smallest mean that a study with `seeds` seeds on the same number of items detects with power 0.8.

        NaN for fewer than two seeds, if the interval is NaN, and if all values are equal.

        Args:
            seeds: number of seeds of the study.
            seed_variance: better estimate of the seed variance, such as `pool_seed_variance`.
            level: significance level of the two-sided test.
        """
        if isnan(self.p) or seeds < 2:
            return nan
        seed_variance = self.seed_variance if seed_variance is None else seed_variance
        error, df = _compute_standard_error(
            seed_variance, self.item_variance, self.residual_variance, seeds, self.item_df
        )
        if error == 0:
            return nan  # all values are equal, for example because every edit fails: the variance is unknown
        critical = float(student.ppf(1 - level / 2, df))
        return float(brentq(lambda noncentrality: nct.sf(critical, df, noncentrality) - 0.8, 0.0, 5 * critical)) * error


def estimate_mean(
    runs: Sequence[ItemValues],
    categories: Mapping[str, str] | None = None,
    clusters: Mapping[str, Hashable] | None = None,
) -> RandomEffectsMean:
    """Estimate a mean over seeds and items.

    Args:
        runs: values of each seed's run, all on the same items. A single item stands for a value of the run itself, such
            as its validation loss, for which the seed is the only random effect.
        categories: category of each item; by default all items are in one.
        clusters: cluster of each item; by default every item is a cluster of its own.

    Raises:
        InputError: there are no seeds or items, seeds have different items, or values are not finite.
    """
    names = sorted(runs[0]) if runs else []
    if not names or any(sorted(run) != names for run in runs):
        sizes = ", ".join(str(len(run)) for run in runs) or "no seeds"
        problem = "a mean over seeds needs the same items for each"
        raise InputError(problem, code="mismatched-items", got=f"{sizes} items")
    values_SI = np.array([[run[name] for name in names] for run in runs], dtype=float)
    if not np.isfinite(values_SI).all():
        got = values_SI[~np.isfinite(values_SI)][0]
        raise InputError("a mean over seeds needs finite values", code="not-finite", got=got)
    category_I = _index_labels([categories[name] if categories else "" for name in names])
    cluster_I = _index_labels([clusters[name] if clusters else name for name in names])
    size_K = np.bincount(category_I)
    weight_I = 1 / (len(size_K) * size_K[category_I])
    mean_S = values_SI @ weight_I
    mean_SK = np.stack([np.bincount(category_I, row) for row in values_SI]) / size_K
    effect_SC, item_df = _compute_cluster_effects(values_SI - mean_SK[:, category_I], weight_I, category_I, cluster_I)
    seeds = len(values_SI)
    # Sums of squares of the clusters' effects on the mean: between items, and between items within a seed.
    between_items = float(np.sum(effect_SC.mean(axis=0) ** 2))
    residual = float(np.sum((effect_SC - effect_SC.mean(axis=0)) ** 2)) / (seeds - 1) if seeds > 1 else nan
    if len(names) == 1:
        between_items, residual, item_df = 0.0, 0.0, 0.0  # a value of the run itself
    mean = float(mean_S.mean())
    if seeds == 1 or isnan(between_items):
        return RandomEffectsMean(
            interval=Interval(mean, nan, nan), p=nan, seed_std=float(np.std(mean_S, ddof=1)) if seeds > 1 else nan,
            seeds=seeds, items=len(names), seed_variance=nan, item_variance=between_items, residual_variance=residual,
            item_df=item_df,
        )  # fmt: skip
    observed = float(np.var(mean_S, ddof=1))
    seed_variance, item_variance = max(observed - residual, 0.0), max(between_items - residual / seeds, 0.0)
    error, df = _compute_standard_error(seed_variance, item_variance, residual, seeds, item_df)
    half_width = float(student.ppf(0.975, df)) * error
    return RandomEffectsMean(
        interval=Interval(mean, mean - half_width, mean + half_width),
        p=float(2 * student.sf(abs(mean) / error, df)) if error > 0 else float(mean == 0),
        seed_std=sqrt(observed),
        seeds=seeds,
        items=len(names),
        seed_variance=seed_variance,
        item_variance=item_variance,
        residual_variance=residual,
        item_df=item_df,
    )


def pool_seed_variance(effects: Sequence[RandomEffectsMean]) -> float:
    """Estimate the seed variance of a study by the median over its arms; NaN if no arm has two seeds.

    Two or three seeds of one arm hardly determine it. All arms together do better, but less than their number suggests,
    since all are compared with the runs of one base arm (ten arms of two seeds: three degrees of freedom). The median
    is robust against outliers, such as an arm that collapses for one of its seeds.
    """
    known = [effect for effect in effects if effect.seeds > 1 and not isnan(effect.residual_variance)]
    if not known:
        return nan
    # The median of a sample variance is below its mean, especially for few seeds.
    unbiased = [e.seed_std**2 * (e.seeds - 1) / float(chi2.ppf(0.5, e.seeds - 1)) for e in known]
    return max(0.0, float(np.median(unbiased) - np.median([effect.residual_variance for effect in known])))


def _compute_standard_error(
    seed_variance: float, item_variance: float, residual_variance: float, seeds: int, item_df: float
) -> tuple[float, float]:
    """Standard error of a mean over seeds and items, and its degrees of freedom (Satterthwaite)."""
    variance = seed_variance / seeds + item_variance + residual_variance / seeds
    residual = residual_variance / seeds
    seed_square, item_square = (seed_variance + residual_variance) / seeds, item_variance + residual
    sum_of_squares = seed_square**2 / (seeds - 1)
    if item_df > 0:
        sum_of_squares += item_square**2 / item_df + residual**2 / (item_df * (seeds - 1))
    return sqrt(variance), max(1.0, variance**2 / sum_of_squares) if sum_of_squares > 0 else 1.0


def _compute_cluster_effects(
    deviation_SI: np.ndarray, weight_I: np.ndarray, category_I: np.ndarray, cluster_I: np.ndarray
) -> tuple[np.ndarray, float]:
    """Compute each cluster's contribution to the mean's deviation, (S, C), and the degrees of freedom of their squares.

    A cluster is part of the category mean that it deviates from, so its deviation is too small; it is scaled so that
    its square is unbiased if clusters differ by chance alone (for shares h: 1 - 2 h + sum h^2). NaN if a category has
    one cluster. Degrees of freedom: for each group of clusters that share categories its size less one; fewer if
    clusters have unequal weight or groups have unequal variance (Satterthwaite).
    """
    clusters, categories = int(cluster_I.max()) + 1, int(category_I.max()) + 1
    weight_KC = np.zeros((categories, clusters))
    np.add.at(weight_KC, (category_I, cluster_I), weight_I)
    share_KC = weight_KC / weight_KC.sum(axis=1, keepdims=True)
    retained_KC = 1 - 2 * share_KC + (share_KC**2).sum(axis=1, keepdims=True)
    scale_KC = 1 / np.sqrt(np.where(retained_KC > 1e-9, retained_KC, nan))
    scaled_SI = deviation_SI * weight_I * scale_KC[category_I, cluster_I]
    effect_SC = np.stack([np.bincount(cluster_I, row, minlength=clusters) for row in scaled_SI])
    square_C = effect_SC.mean(axis=0) ** 2
    variances, dfs = [], []
    for group in _group_connected_clusters(weight_KC > 0):
        weights = weight_KC[:, group].sum(axis=0) ** 2
        dfs.append(max(weights.sum() ** 2 / (weights**2).sum() - 1, 1.0))
        variances.append(square_C[group].sum())
    sum_of_squares = sum(variance**2 / df for variance, df in zip(variances, dfs, strict=True))
    df = float(sum(variances) ** 2 / sum_of_squares) if sum_of_squares > 0 else float(sum(dfs))
    return effect_SC, df


def _group_connected_clusters(is_member_KC: np.ndarray) -> list[np.ndarray]:
    """Group the clusters that share categories, directly or through other clusters."""
    label_C = np.arange(is_member_KC.shape[1])
    for _ in range(is_member_KC.shape[0]):
        for row in is_member_KC:
            label_C[np.isin(label_C, label_C[row])] = label_C[row].min()
    return [np.flatnonzero(label_C == label) for label in np.unique(label_C)]


def _index_labels(labels: Sequence[Hashable]) -> np.ndarray:
    """Number labels from 0 in the order of their first occurrence."""
    index = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.array([index[label] for label in labels])
