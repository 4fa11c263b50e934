"""Means over items and training seeds, by a two-way random-effects analysis of variance.

Two things are random: which items were measured, and how training went. An interval over items alone holds for these
trained models on other items. Models trained again would differ, and such intervals are significant without any
difference in up to half of all studies (`tests/unit/statistics/test_seeds.py` has the rates). Here both factors are
random effects, with Satterthwaite's degrees of freedom (Biometrics Bulletin, 1946). Categories are fixed and have equal
weight; items of one cluster, such as edits of one video, count together. Arrays: S seeds, I items, K categories,
C clusters.
"""

from __future__ import annotations

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
"""A value for each item."""


@dataclass(frozen=True, kw_only=True)
class RandomEffectsMean:
    """A mean over items and seeds; an effect, if the values are differences of paired runs.

    Args:
        mean: with its 95% interval for other seeds and other items; NaN for one seed, and if there are no more items
            (or clusters) than categories.
        p: two-sided, of a mean of 0; NaN where the interval is.
        seed_std: standard deviation between seeds of the mean over items, as observed; NaN for one seed.
        seeds, items: their numbers.
        seed_variance: variance component of training, in one seed's mean over items.
        item_variance: variance component of items, in the mean over all seeds.
        residual_variance: variance component of the interaction of items and seeds, in one seed's mean over items.
        item_df: degrees of freedom of the items.
    """

    mean: Interval
    p: float
    seed_std: float
    seeds: int
    items: int
    seed_variance: float
    item_variance: float
    residual_variance: float
    item_df: float

    def detectable_difference(self, seeds: int, seed_variance: float | None = None, level: float = 0.05) -> float:
        """The smallest mean that a study of so many seeds on as many items detects with power 0.8.

        Args:
            seeds: their number. NaN for fewer than two, where the interval is NaN, and if all values are equal.
            seed_variance: if it is known better than from these seeds (`pooled_seed_variance`).
            level: of the two-sided test.
        """
        if isnan(self.p) or seeds < 2:
            return nan
        seed_variance = self.seed_variance if seed_variance is None else seed_variance
        error, df = _standard_error(seed_variance, self.item_variance, self.residual_variance, seeds, self.item_df)
        if error == 0:
            return nan  # all values are equal, such as where every edit fails, and say nothing about their variance
        critical = float(student.ppf(1 - level / 2, df))
        return float(brentq(lambda noncentrality: nct.sf(critical, df, noncentrality) - 0.8, 0.0, 5 * critical)) * error


def random_effects_mean(
    runs: Sequence[ItemValues],
    categories: Mapping[str, str] | None = None,
    clusters: Mapping[str, Hashable] | None = None,
) -> RandomEffectsMean:
    """Estimate a mean over seeds and items.

    Args:
        runs: values of the run of each seed, all on the same items. A single item is a value of the run itself, such as
            its validation loss, for which training is the only random effect.
        categories: of the items, with equal weight; one for all by default.
        clusters: of items that are not independent; by default each item is one.

    Raises:
        InputError: no seeds or items, seeds with different items, or values that are not finite.
    """
    names = sorted(runs[0]) if runs else []
    if not names or any(sorted(run) != names for run in runs):
        sizes = ", ".join(str(len(run)) for run in runs) or "no seeds"
        raise InputError("a mean over seeds needs the same items for each", code="item-mismatch", got=f"{sizes} items")
    values_SI = np.array([[run[name] for name in names] for run in runs], dtype=float)
    if not np.isfinite(values_SI).all():
        got = values_SI[~np.isfinite(values_SI)][0]
        raise InputError("a mean over seeds needs finite values", code="not-finite", got=got)
    category_I = _label_indices([categories[name] if categories else "" for name in names])
    cluster_I = _label_indices([clusters[name] if clusters else name for name in names])
    size_K = np.bincount(category_I)
    weight_I = 1 / (len(size_K) * size_K[category_I])
    mean_S = values_SI @ weight_I
    mean_SK = np.stack([np.bincount(category_I, row) for row in values_SI]) / size_K
    effect_SC, item_df = _cluster_effects(values_SI - mean_SK[:, category_I], weight_I, category_I, cluster_I)
    seeds = len(values_SI)
    # Sum of squares of the clusters' effects on the mean: of items, and of items within a seed.
    between_items = float(np.sum(effect_SC.mean(axis=0) ** 2))
    residual = float(np.sum((effect_SC - effect_SC.mean(axis=0)) ** 2)) / (seeds - 1) if seeds > 1 else nan
    if len(names) == 1:
        between_items, residual, item_df = 0.0, 0.0, 0.0  # a value of the run itself
    mean = float(mean_S.mean())
    if seeds == 1 or isnan(between_items):
        return RandomEffectsMean(
            mean=Interval(mean, nan, nan), p=nan, seed_std=float(np.std(mean_S, ddof=1)) if seeds > 1 else nan,
            seeds=seeds, items=len(names), seed_variance=nan, item_variance=between_items, residual_variance=residual,
            item_df=item_df,
        )  # fmt: skip
    observed = float(np.var(mean_S, ddof=1))
    seed_variance, item_variance = max(observed - residual, 0.0), max(between_items - residual / seeds, 0.0)
    error, df = _standard_error(seed_variance, item_variance, residual, seeds, item_df)
    half_width = float(student.ppf(0.975, df)) * error
    return RandomEffectsMean(
        mean=Interval(mean, mean - half_width, mean + half_width),
        p=float(2 * student.sf(abs(mean) / error, df)) if error > 0 else float(mean == 0),
        seed_std=sqrt(observed),
        seeds=seeds,
        items=len(names),
        seed_variance=seed_variance,
        item_variance=item_variance,
        residual_variance=residual,
        item_df=item_df,
    )


def pooled_seed_variance(effects: Sequence[RandomEffectsMean]) -> float:
    """The seed variance of the median arm of a study; NaN if no arm has two seeds.

    Two or three seeds of one arm hardly determine it. All arms together do better, though not as well as their number
    suggests, since they share the base's runs (ten arms of two seeds: three degrees of freedom). The median ignores
    arms that train differently, such as one that collapses for one of its seeds.
    """
    known = [effect for effect in effects if effect.seeds > 1 and not isnan(effect.residual_variance)]
    if not known:
        return nan
    # A sample variance's median is below its mean, the more so the fewer seeds it is from.
    unbiased = [e.seed_std**2 * (e.seeds - 1) / float(chi2.ppf(0.5, e.seeds - 1)) for e in known]
    return max(0.0, float(np.median(unbiased) - np.median([effect.residual_variance for effect in known])))


def _standard_error(
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


def _cluster_effects(
    deviation_SI: np.ndarray, weight_I: np.ndarray, category_I: np.ndarray, cluster_I: np.ndarray
) -> tuple[np.ndarray, float]:
    """Each cluster's contribution to the deviation of the mean, (S, C), and the degrees of freedom of their squares.

    A cluster is part of the category's mean from which it deviates, the more so the larger its share; each is scaled so
    that its square is unbiased if clusters differ by chance alone (for shares h: 1 - 2 h + sum h^2). NaN if a category
    has one cluster. Degrees of freedom: clusters that share categories, less one; fewer where some weigh more than
    others, and where groups of clusters contribute unequal parts (Satterthwaite).
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
    for group in _connected_clusters(weight_KC > 0):
        weights = weight_KC[:, group].sum(axis=0) ** 2
        dfs.append(max(weights.sum() ** 2 / (weights**2).sum() - 1, 1.0))
        variances.append(square_C[group].sum())
    sum_of_squares = sum(variance**2 / df for variance, df in zip(variances, dfs, strict=True))
    df = float(sum(variances) ** 2 / sum_of_squares) if sum_of_squares > 0 else float(sum(dfs))
    return effect_SC, df


def _connected_clusters(is_member_KC: np.ndarray) -> list[np.ndarray]:
    """Groups of clusters that share categories, directly or through others."""
    label_C = np.arange(is_member_KC.shape[1])
    for _ in range(is_member_KC.shape[0]):
        for row in is_member_KC:
            label_C[np.isin(label_C, label_C[row])] = label_C[row].min()
    return [np.flatnonzero(label_C == label) for label in np.unique(label_C)]


def _label_indices(labels: Sequence[Hashable]) -> np.ndarray:
    index = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.array([index[label] for label in labels])
