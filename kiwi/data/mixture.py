"""The mixture: how often each data source and each category of edits is drawn, and in what order.

Orders are endless and deterministic: functions of a key, never of what ran before. Weighted round robin rather than
random draws, so that the shares hold at every moment of a run, and in every arm of an ablation.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import TypeVar

import torch

from kiwi.errors import InputError
from kiwi.keyed import key, uniform

T = TypeVar("T")

Stratum = tuple[int, str]
"""Samples of equal weight: the index of their data source, and their category."""


def sampling_probabilities(
    strata: Sequence[Stratum], source_weights: Sequence[float | None], category_weights: Mapping[str, float]
) -> list[float]:
    """The share of each sample among all samples that are drawn.

    Args:
        strata: the stratum of each sample.
        source_weights: weight of each data source, relative to the sum of all; None for every source draws them in
            proportion to their sizes.
        category_weights: weight of each category within a data source, 1 if it is not listed; 0 excludes it.

    Raises:
        InputError: weights for some sources only, negative ones, an unknown category, or nothing left to draw.
    """
    known = sorted({category for _, category in strata})
    if unknown := sorted(set(category_weights) - set(known)):
        problem = "data.categories lists categories that no training sample has"
        raise InputError(problem, code="unknown-category", got=unknown, expected=f"some of {known}")
    weights = [*category_weights.values(), *(weight for weight in source_weights if weight is not None)]
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        got = f"{list(source_weights)} and {dict(category_weights)}"
        problem = "weights of data sources and categories must be finite and not negative"
        raise InputError(problem, code="out-of-range", got=got)
    if None in source_weights and any(weight is not None for weight in source_weights):
        problem = "data.train mixes sources with and without a weight"
        fix = "give all of them a weight, or none"
        raise InputError(problem, code="missing-weight", got=list(source_weights), fix=fix)
    within = [category_weights.get(category, 1.0) for _, category in strata]
    totals: Counter[int] = Counter()
    for (source, _), weight in zip(strata, within, strict=True):
        totals[source] += weight  # type: ignore[assignment]
    scale = {
        source: 1.0 if source_weights[source] is None else float(source_weights[source] or 0.0) / total
        for source, total in totals.items()
        if total > 0
    }
    unscaled = [scale.get(source, 0.0) * weight for (source, _), weight in zip(strata, within, strict=True)]
    if (total := sum(unscaled)) <= 0:
        raise InputError("the weights of data.train and data.categories leave nothing to train on", code="no-samples")
    return [weight / total for weight in unscaled]


def weighted_round_robin(weights: Mapping[T, float], *where: str | int) -> Iterator[T]:
    """Endlessly the next name: of the first n each has its share, give or take one (stride scheduling).

    Args:
        weights: of the names, above 0.
        where: key of the order.
    """
    names = list(weights)
    due = [(uniform(*where, index) / weights[name], index) for index, name in enumerate(names)]
    heapq.heapify(due)
    while True:
        time, index = due[0]
        yield names[index]
        heapq.heapreplace(due, (time + 1.0 / weights[names[index]], index))


def shuffled_epochs(members: Sequence[T], *where: str | int) -> Iterator[T]:
    """All members, endlessly, in a new order in each epoch: a function of the epoch's number and the key."""
    for number in count():
        generator = torch.Generator().manual_seed(key(*where, number))
        for index in torch.randperm(len(members), generator=generator).tolist():
            yield members[index]
