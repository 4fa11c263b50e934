"""The mixture: how often each data source and each edit category is sampled, and in what order.

Orders are infinite and deterministic functions of a key, and do not depend on earlier draws. Weighted round robin
replaces random draws, so that the proportions hold at every moment of a run and in every arm of an ablation.
"""

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
"""The data source's index and the category of a group of samples; samples of one stratum have equal probabilities."""


def sampling_probabilities(
    strata: Sequence[Stratum], source_weights: Sequence[float | None], category_weights: Mapping[str, float]
) -> list[float]:
    """The probability of each sample; all probabilities sum to 1.

    Args:
        strata: stratum of each sample.
        source_weights: weight of each data source, relative to the sum of all weights. If all are None, data sources
            are sampled in proportion to their sizes.
        category_weights: weight of each category within a data source; 1 if not listed, and 0 excludes the category.

    Raises:
        InputError: only some sources have weights, a weight is negative or not finite, a category is unknown, or no
            samples are left.
    """
    known = sorted({category for _, category in strata})
    if unknown := sorted(set(category_weights) - set(known)):
        message = "data.categories lists categories that no training sample has"
        raise InputError(message, code="unknown-category", got=unknown, expected=f"categories from {known}")
    weights = [*category_weights.values(), *(weight for weight in source_weights if weight is not None)]
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        got = f"{list(source_weights)} and {dict(category_weights)}"
        message = "weights of data sources and categories must be finite and not negative"
        raise InputError(message, code="out-of-range", got=got)
    if None in source_weights and any(weight is not None for weight in source_weights):
        message = "data.train mixes sources with and without a weight"
        fix = "give all of them a weight, or none"
        raise InputError(message, code="missing-source-weight", got=list(source_weights), fix=fix)
    weights_in_source = [category_weights.get(category, 1.0) for _, category in strata]
    totals: Counter[int] = Counter()
    for (index, _), weight in zip(strata, weights_in_source, strict=True):
        totals[index] += weight  # type: ignore[assignment]
    scale = {
        index: 1.0 if source_weights[index] is None else float(source_weights[index] or 0.0) / total
        for index, total in totals.items()
        if total > 0
    }
    unscaled = [scale.get(index, 0.0) * weight for (index, _), weight in zip(strata, weights_in_source, strict=True)]
    if (total := sum(unscaled)) <= 0:
        raise InputError(
            "the weights of data.train and data.categories leave no samples to train on", code="no-samples"
        )
    return [weight / total for weight in unscaled]


def weighted_round_robin(weights: Mapping[T, float], *key_parts: str | int) -> Iterator[T]:
    """An infinite sequence of names in proportion to their weights (stride scheduling).

    In the first n names, the count of each differs from its expected count by at most the number of names.

    Args:
        weights: weight of each name, above 0.
        key_parts: key of the order.
    """
    names = list(weights)
    due = [(uniform(*key_parts, index) / weights[name], index) for index, name in enumerate(names)]
    heapq.heapify(due)
    while True:
        time, index = due[0]
        yield names[index]
        heapq.heapreplace(due, (time + 1.0 / weights[names[index]], index))


def shuffled_epochs(members: Sequence[T], *key_parts: str | int) -> Iterator[T]:
    """An infinite sequence of epochs, each with all members in an order that depends on the key and the epoch."""
    for epoch in count():
        generator = torch.Generator().manual_seed(key(*key_parts, epoch))
        for index in torch.randperm(len(members), generator=generator).tolist():
            yield members[index]
