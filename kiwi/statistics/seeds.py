"""What a number is worth that was measured on items, of models that were trained from several seeds.

Two things are left to chance: which items were measured, and how training went. An interval over items alone says what
these trained models do on other items. Trained again they would differ, and such intervals find differences where there
are none in up to half of all studies (`tests/unit/statistics/test_seeds.py` has the rates). Here both count: a two-way
random-effects analysis with Satterthwaite's degrees of freedom (1946). Categories are weighted alike and not left to
chance; items of one cluster, such as edits of one video, count together.
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

Numbers = Mapping[str, float]
"""A number an item."""


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """A mean over items and seeds; a difference if the numbers were differences of paired runs.

    Args:
        mean: with its 95% interval for training and measuring again; not known, and NaN, of one seed, and where items
            (or clusters) are no more than the categories.
        p: two-sided, of a mean of 0; NaN where the interval is.
        spread: standard deviation from seed to seed of the mean over items, as observed; NaN of one seed.
        seeds, items: how many.
        training, items_part, rest: variances that one seed's mean has through training, that the mean of all seeds has
            through the items, and that one seed's mean has through how items fare from run to run.
        freedom: degrees of freedom of the items.
    """

    mean: Interval
    p: float
    spread: float
    seeds: int
    items: int
    training: float
    items_part: float
    rest: float
    freedom: float

    def detectable(self, seeds: int, training: float | None = None, level: float = 0.05) -> float:
        """The smallest mean that so many seeds on as many items would tell from 0 with probability 0.8.

        Args:
            seeds: how many. NaN for less than two, where the interval is, and where all numbers are alike.
            training: variance through training, where more is known of it than these seeds tell (`pooled_training`).
            level: of the test, two-sided.
        """
        if isnan(self.p) or seeds < 2:
            return nan
        adds = self.training if training is None else training
        error, freedom = _error(adds, self.items_part, self.rest, seeds, self.freedom)
        if error == 0:
            return nan  # all alike, as where every edit fails: nothing tells what could be seen
        critical = float(student.ppf(1 - level / 2, freedom))
        return float(brentq(lambda mean: nct.sf(critical, freedom, mean) - 0.8, 0.0, 5 * critical)) * error


def seeded_mean(
    numbers: Sequence[Numbers],
    categories: Mapping[str, str] | None = None,
    clusters: Mapping[str, Hashable] | None = None,
) -> Seeded:
    """What is known of a mean.

    Args:
        numbers: a mapping a seed, all of the same items; a single item is a number of the run itself, such as its
            validation loss, of which only training is left to chance.
        categories: of items, which are weighted alike; one for all if not given.
        clusters: what items belong to that are not independent; each by itself if not given.

    Raises:
        InputError: no seeds or items, other items under one seed than under another, or numbers that are not finite.
    """
    names = sorted(numbers[0]) if numbers else []
    if not names or any(sorted(one) != names for one in numbers):
        got = ", ".join(str(len(one)) for one in numbers) or "no seeds"
        raise InputError("a mean over seeds needs the same items under each", got=f"{got} items")
    table_SI = np.array([[one[name] for name in names] for one in numbers], dtype=float)
    if not np.isfinite(table_SI).all():
        raise InputError("a mean over seeds needs numbers that are finite", got=table_SI[~np.isfinite(table_SI)][0])
    kind = _places([categories[name] if categories else "" for name in names])
    owner = _places([clusters[name] if clusters else name for name in names])
    sizes = np.bincount(kind)
    weights_I = 1 / (len(sizes) * sizes[kind])
    by_seed = table_SI @ weights_I
    by_category_SK = np.stack([np.bincount(kind, row) for row in table_SI]) / sizes
    parts_SO, freedom = _by_owner(table_SI - by_category_SK[:, kind], weights_I, kind, owner)
    seeds = len(table_SI)
    items_part = float(np.sum(parts_SO.mean(axis=0) ** 2))
    rest = float(np.sum((parts_SO - parts_SO.mean(axis=0)) ** 2)) / (seeds - 1) if seeds > 1 else nan
    if len(names) == 1:
        items_part, rest, freedom = 0.0, 0.0, 0.0  # a number of the run itself
    mean = float(by_seed.mean())
    if seeds == 1 or isnan(items_part):
        return Seeded(
            mean=Interval(mean, nan, nan), p=nan, spread=float(np.std(by_seed, ddof=1)) if seeds > 1 else nan,
            seeds=seeds, items=len(names), training=nan, items_part=items_part, rest=rest, freedom=freedom,
        )  # fmt: skip
    observed = float(np.var(by_seed, ddof=1))
    training, between = max(observed - rest, 0.0), max(items_part - rest / seeds, 0.0)
    error, degrees = _error(training, between, rest, seeds, freedom)
    half = float(student.ppf(0.975, degrees)) * error
    return Seeded(
        mean=Interval(mean, mean - half, mean + half),
        p=float(2 * student.sf(abs(mean) / error, degrees)) if error > 0 else float(mean == 0),
        spread=sqrt(observed),
        seeds=seeds,
        items=len(names),
        training=training,
        items_part=between,
        rest=rest,
        freedom=freedom,
    )


def pooled_training(found: Sequence[Seeded]) -> float:
    """Variance of one seed's mean through training, as the median arm of a study has it; NaN if none has two seeds.

    Two or three seeds of one arm say next to nothing of it; all arms say more, if not as much as their number promises,
    since they share the base's runs (ten arms of two seeds: three degrees of freedom). The median leaves out arms
    that train otherwise, such as one that collapses under one of its seeds.
    """
    known = [one for one in found if one.seeds > 1 and not isnan(one.rest)]
    if not known:
        return nan
    # The median of a variance lies below its mean, the more the fewer seeds it is from.
    observed = [one.spread**2 * (one.seeds - 1) / float(chi2.ppf(0.5, one.seeds - 1)) for one in known]
    return max(0.0, float(np.median(observed) - np.median([one.rest for one in known])))


def _error(training: float, between: float, rest: float, seeds: int, freedom: float) -> tuple[float, float]:
    """Standard error of a mean over seeds and items, and its degrees of freedom (Satterthwaite)."""
    variance = training / seeds + between + rest / seeds
    by_seed, by_item, both = (training + rest) / seeds, between + rest / seeds, rest / seeds
    parts = by_seed**2 / (seeds - 1)
    if freedom > 0:
        parts += by_item**2 / freedom + both**2 / (freedom * (seeds - 1))
    return sqrt(variance), max(1.0, variance**2 / parts) if parts > 0 else 1.0


def _by_owner(
    deviations_SI: np.ndarray, weights_I: np.ndarray, kind: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, float]:
    """What each owner adds to the deviation of a mean, (seeds, owners), and the degrees of freedom of their squares.

    An owner is in the mean that its deviation is from, the more the larger its share; each is scaled so that its square
    is right where owners differ by chance alone (shares h: 1 - 2 h + sum h^2). NaN where a category has one owner.
    Freedom: owners less one, of owners that share categories; smaller where some weigh more than others, and where
    groups of owners add unequal parts (Satterthwaite).
    """
    owners, kinds = int(owner.max()) + 1, int(kind.max()) + 1
    weight_KO = np.zeros((kinds, owners))
    np.add.at(weight_KO, (kind, owner), weights_I)
    share_KO = weight_KO / weight_KO.sum(axis=1, keepdims=True)
    left_KO = 1 - 2 * share_KO + (share_KO**2).sum(axis=1, keepdims=True)
    scale_KO = 1 / np.sqrt(np.where(left_KO > 1e-9, left_KO, nan))
    scaled_SI = deviations_SI * weights_I * scale_KO[kind, owner]
    parts_SO = np.stack([np.bincount(owner, row, minlength=owners) for row in scaled_SI])
    of_owner = parts_SO.mean(axis=0) ** 2
    variances, degrees = [], []
    for group in _connected(weight_KO > 0):
        weights = weight_KO[:, group].sum(axis=0) ** 2
        degrees.append(max(weights.sum() ** 2 / (weights**2).sum() - 1, 1.0))
        variances.append(of_owner[group].sum())
    squares = sum(variance**2 / degree for variance, degree in zip(variances, degrees, strict=True))
    return parts_SO, float(sum(variances) ** 2 / squares) if squares > 0 else float(sum(degrees))


def _connected(there_KO: np.ndarray) -> list[np.ndarray]:
    """Owners in groups that share categories, directly or through others."""
    label = np.arange(there_KO.shape[1])
    for _ in range(there_KO.shape[0]):
        for row in there_KO:
            label[np.isin(label, label[row])] = label[row].min()
    return [np.flatnonzero(label == one) for one in np.unique(label)]


def _places(names: Sequence[Hashable]) -> np.ndarray:
    place = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] for name in names])
