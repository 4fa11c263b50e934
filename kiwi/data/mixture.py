"""The mixture: how often each data set and each category of edits is drawn, and in what order.

Orders are endless and deterministic: functions of a key, never of what ran before. Turns are dealt out, not drawn
by lot, so that shares hold at every moment of a run and no arm of an ablation is luckier than another.
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

Cell = tuple[int, str]
"""What samples of equal weight share: the number of their data set, and their category."""


def shares(cells: Sequence[Cell], sets: Sequence[float | None], categories: Mapping[str, float]) -> list[float]:
    """How often each sample is drawn, as shares of all draws.

    Args:
        cells: of each sample.
        sets: weight of each data set, its share of draws over the sum of all weights; None for all sets: in proportion
            to their sizes.
        categories: weight of each category within a data set, 1 for those not named; 0 leaves a category out.

    Raises:
        InputError: weights for some sets only, negative ones, an unknown category, or nothing left to draw.
    """
    known = sorted({category for _, category in cells})
    if unknown := sorted(set(categories) - set(known)):
        raise InputError(
            "data.categories names categories that no training sample has", got=unknown, wanted=f"some of {known}"
        )
    weights = [*categories.values(), *(weight for weight in sets if weight is not None)]
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise InputError(
            "weights of data sets and categories are finite and not negative",
            got=f"{list(sets)} and {dict(categories)}",
        )
    if None in sets and any(weight is not None for weight in sets):
        raise InputError("give every data set of data.train a weight, or none", got=list(sets))
    within = [categories.get(category, 1.0) for _, category in cells]
    totals: Counter[int] = Counter()
    for (number, _), weight in zip(cells, within, strict=True):
        totals[number] += weight  # type: ignore[assignment]
    scale = {n: 1.0 if sets[n] is None else float(sets[n] or 0.0) / totals[n] for n in totals if totals[n] > 0}
    drawn = [scale.get(number, 0.0) * weight for (number, _), weight in zip(cells, within, strict=True)]
    if (total := sum(drawn)) <= 0:
        raise InputError("the weights of data.train and data.categories leave nothing to train on")
    return [weight / total for weight in drawn]


def turns(weights: Mapping[T, float], *where: str | int) -> Iterator[T]:
    """Whose turn it is, endlessly: of n turns each has had its share, give or take one (stride scheduling).

    Args:
        weights: of those who take turns, above 0.
        where: key of the order.
    """
    names = list(weights)
    due = [(uniform(*where, index) / weights[name], index) for index, name in enumerate(names)]
    heapq.heapify(due)
    while True:
        time, index = due[0]
        yield names[index]
        heapq.heapreplace(due, (time + 1.0 / weights[names[index]], index))


def passes(members: Sequence[T], *where: str | int) -> Iterator[T]:
    """All members in a new order, again and again; the order of a pass is a function of its number and the key."""
    for number in count():
        generator = torch.Generator().manual_seed(key(*where, number))
        for index in torch.randperm(len(members), generator=generator).tolist():
            yield members[index]
