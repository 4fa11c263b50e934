"""What a study found: every arm's mean and spread, its difference to the base, and whether chance could be all of it.

Two questions are kept apart. *Trained again*: would the difference be there with other seeds and other items? Its
interval and p value come from a two-way random-effects analysis of paired runs (`kiwi.statistics.seeds`): a bootstrap
over items, or over items and the two or three seeds that one can pay for, finds differences where there are none in up
to half of all studies. *These models*: are the models that were trained apart, whatever others would be? A permutation
test over items says. Both are corrected for the number of arms (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

from kiwi.ablation.results import Result
from kiwi.statistics.paired import holm, paired_difference
from kiwi.statistics.seeds import RandomEffectsMean, pooled_seed_variance, random_effects_mean

LEVEL = 0.05
SEEDS = (3, 5)
"""Numbers of seeds for which is told what they would see."""

LOWER_IS_BETTER = ("loss", "lpips")
NEITHER = ("swapped", "blind")
"""In names of losses under conditions that are wrong on purpose: their rise or fall is no merit by itself."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """An arm less the base, by paired runs.

    Args:
        seeded: trained again.
        p: of that, corrected.
        p_models: of these models, corrected; NaN without items.
        detectable: the smallest difference that so many seeds would find, by their number, after correction for the
            number of arms, if no other arm differs; what training adds to chance is taken from all arms together.
        verdict: better, worse, differs (a number of which neither is better), noise (inside what chance does), or
            unknown (one seed).
    """

    seeded: RandomEffectsMean
    p: float
    p_models: float
    detectable: Mapping[int, float]
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """An arm in one measure.

    Args:
        label: of the arm.
        seeds: that it has a result under.
        of: its own mean.
        by_category: means over seeds.
        against: the base; none of the base itself, and of an arm without a seed in common.
    """

    label: str
    seeds: Sequence[int]
    of: RandomEffectsMean
    by_category: Mapping[str, float]
    against: Against | None


def measures_of(results: Sequence[Result]) -> list[str]:
    """What at least one run was measured by: numbers of items, then validation's."""
    items = dict.fromkeys(name for result in results for name in result.items)
    return [*items, *dict.fromkeys(name for result in results for name in result.numbers)]


def rows_of(measure: str, results: Sequence[Result], labels: Sequence[str]) -> list[Row]:
    """Every arm that has the measure, the base (the first label) first.

    Args:
        measure: one of `measures_of`.
        results: of all runs.
        labels: of the arms, in the study's order.
    """
    by_arm = {
        label: {
            result.seed: numbers
            for result in sorted(results, key=lambda one: one.seed)
            if result.label == label and (numbers := _numbers(result, measure))
        }
        for label in labels
    }
    categories, clusters = _about(measure, results)
    base = by_arm[labels[0]]
    found: dict[str, tuple[RandomEffectsMean, float]] = {}
    for label in labels[1:]:
        common = [seed for seed in by_arm[label] if seed in base]
        pairs = [_less(by_arm[label][seed], base[seed]) for seed in common]
        pairs = _shared([pair for pair in pairs if pair])
        if pairs and pairs[0]:
            found[label] = random_effects_mean(pairs, categories, clusters), _p_models(pairs, categories, clusters)
    training = pooled_seed_variance([seeded for seeded, _ in found.values()])
    again = dict(zip(found, _holm([seeded.p for seeded, _ in found.values()]), strict=True))
    models = dict(zip(found, _holm([p for _, p in found.values()]), strict=True))
    rows = []
    for label in labels:
        if not (held := by_arm[label]):
            continue
        against = None
        if (pair := found.get(label)) is not None:
            against = Against(
                seeded=pair[0],
                p=again[label],
                p_models=models[label],
                detectable={
                    seeds: pair[0].detectable_difference(seeds, training, LEVEL / len(found)) for seeds in SEEDS
                },
                verdict=_verdict(measure, pair[0], again[label]),
            )
        if not (of_seeds := _shared(list(held.values())))[0]:
            continue  # seeds without an item in common
        own = random_effects_mean(of_seeds, categories, clusters)
        rows.append(
            Row(label=label, seeds=list(held), of=own, by_category=_by_category(of_seeds, categories), against=against)
        )
    return rows


def plain(rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """The same for JSON, what is not known as null."""
    return {measure: [_plain(asdict(row)) for row in of] for measure, of in rows.items()}


_JSON_NAMES = {
    "seed_std": "spread",
    "seed_variance": "training",
    "item_variance": "items_part",
    "residual_variance": "rest",
    "item_df": "freedom",
}
"""Names in analysis.json of fields of `RandomEffectsMean`."""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_JSON_NAMES.get(str(key), str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value


def _numbers(result: Result, measure: str) -> dict[str, float]:
    if measure in result.items:
        return dict(result.items[measure])
    return {"": result.numbers[measure]} if measure in result.numbers else {}


def _about(measure: str, results: Sequence[Result]) -> tuple[dict[str, str], dict[str, str]]:
    """Category and cluster of every item of a measure."""
    names = {name for result in results for name in _numbers(result, measure)}
    categories = {name: next((r.categories[name] for r in results if name in r.categories), "") for name in names}
    clusters = {name: next((r.clusters[name] for r in results if name in r.clusters), name) for name in names}
    return categories, clusters


def _less(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: value - other[name] for name, value in one.items() if name in other}


def _shared(numbers: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Of the items that all seeds have."""
    if not numbers:
        return []
    names = set.intersection(*(set(one) for one in numbers))
    return [{name: one[name] for name in one if name in names} for one in numbers]


def _p_models(
    pairs: Sequence[Mapping[str, float]], categories: Mapping[str, str], clusters: Mapping[str, str]
) -> float:
    if len(pairs[0]) < 2:
        return nan
    groups: dict[str, list[float]] = {}
    owners: dict[str, list[object]] = {}
    for name in pairs[0]:
        groups.setdefault(categories[name], []).append(sum(one[name] for one in pairs) / len(pairs))
        owners.setdefault(categories[name], []).append(clusters[name])
    return paired_difference(list(groups.values()), list(owners.values())).p


def _holm(ps: Sequence[float]) -> list[float]:
    """Corrected; what is not known stays so and counts for nothing."""
    known = [p for p in ps if not isnan(p)]
    corrected = iter(holm(known))
    return [nan if isnan(p) else next(corrected) for p in ps]


def _verdict(measure: str, found: RandomEffectsMean, p: float) -> str:
    if isnan(p):
        return "unknown"
    if p >= LEVEL:
        return "noise"
    if any(word in measure for word in NEITHER):
        return "differs"
    up = found.mean.mean > 0
    return "better" if up != any(word in measure for word in LOWER_IS_BETTER) else "worse"


def _by_category(numbers: Sequence[Mapping[str, float]], categories: Mapping[str, str]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for one in numbers:
        for name, value in one.items():
            found.setdefault(categories[name], []).append(value)
    return {category: sum(values) / len(values) for category, values in found.items()}
