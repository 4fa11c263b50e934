"""Statistics of a study: every arm's mean and spread, its difference to the base, and whether that is significant.

Two questions are kept apart. *Trained again*: would the difference be there with other seeds and other items? Its
interval and p value come from a two-way random-effects analysis of paired runs (`kiwi.statistics.seeds`): a bootstrap
over items, or over items and the two or three seeds that one can pay for, finds differences where there are none in up
to half of all studies. *These models*: do the models that were trained differ, whatever others would do? This is a
permutation test over items. Both are corrected for the number of arms (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

from kiwi.ablation.results import RunResult
from kiwi.evaluation.measurement import Metric
from kiwi.statistics.paired import holm, paired_difference
from kiwi.statistics.seeds import RandomEffectsMean, pooled_seed_variance, random_effects_mean

LEVEL = 0.05
"""Significance level."""

SEEDS = (3, 5)
"""Numbers of seeds for which tables state the smallest detectable difference."""

NOT_SIGNIFICANT, UNKNOWN = "not significant", "unknown"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An arm minus the base, over paired runs.

    Args:
        difference: mean difference with its interval, for training and measuring again.
        p: of no difference if trained again, corrected for the number of arms.
        p_models: of no difference between these models, corrected; NaN without items.
        detectable: the smallest difference that so many seeds would find, by their number, after correction for the
            number of arms, if no other arm differs; the variance between seeds is pooled over all arms.
        verdict: better, worse, differs (a metric of which neither direction is better), not significant, or unknown
            (one seed).
    """

    difference: RandomEffectsMean
    p: float
    p_models: float
    detectable: Mapping[int, float]
    verdict: str

    @property
    def significant(self) -> bool:
        """Whether the difference is significant."""
        return self.verdict not in (NOT_SIGNIFICANT, UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """An arm in one metric.

    Args:
        label: of the arm.
        seeds: seeds that it has a result under.
        mean: its own mean.
        by_category: means over seeds and items of a category.
        comparison: with the base; None for the base itself, and for an arm without a seed in common.
    """

    label: str
    seeds: Sequence[int]
    mean: RandomEffectsMean
    by_category: Mapping[str, float]
    comparison: Comparison | None


def summarize_arms(metric: Metric, results: Sequence[RunResult], labels: Sequence[str]) -> list[ArmSummary]:
    """Summaries of every arm that has the metric, the base (the first label) first.

    Args:
        metric: the metric.
        results: of all runs.
        labels: of the arms, in the study's order.
    """
    by_arm = {
        label: {
            result.seed: values
            for result in sorted(results, key=lambda result: result.seed)
            if result.label == label and (values := result.values(metric.name))
        }
        for label in labels
    }
    categories, clusters = _groups(metric.name, results)
    base = by_arm[labels[0]]
    differences: dict[str, tuple[RandomEffectsMean, float]] = {}
    for label in labels[1:]:
        paired = [_subtract(values, base[seed]) for seed, values in by_arm[label].items() if seed in base]
        paired = _common_items([values for values in paired if values])
        if paired and paired[0]:
            difference = random_effects_mean(paired, categories, clusters)
            differences[label] = difference, _p_of_models(paired, categories, clusters)
    seed_variance = pooled_seed_variance([difference for difference, _ in differences.values()])
    level = LEVEL / max(1, len(differences))
    p_again = dict(zip(differences, _holm([difference.p for difference, _ in differences.values()]), strict=True))
    p_models = dict(zip(differences, _holm([p for _, p in differences.values()]), strict=True))
    summaries = []
    for label in labels:
        by_seed = by_arm[label]
        if not by_seed or not (values_by_seed := _common_items(list(by_seed.values())))[0]:
            continue  # no result, or seeds without an item in common
        comparison = None
        if label in differences:
            difference, _ = differences[label]
            comparison = Comparison(
                difference=difference,
                p=p_again[label],
                p_models=p_models[label],
                detectable={seeds: difference.detectable_difference(seeds, seed_variance, level) for seeds in SEEDS},
                verdict=_verdict(metric, difference, p_again[label]),
            )
        summaries.append(
            ArmSummary(
                label=label,
                seeds=list(by_seed),
                mean=random_effects_mean(values_by_seed, categories, clusters),
                by_category=_by_category(values_by_seed, categories),
                comparison=comparison,
            )
        )
    return summaries


def to_json(summaries: Mapping[str, Sequence[ArmSummary]]) -> dict[str, Any]:
    """Summaries by metric as plain data for JSON; NaN becomes null."""
    return {metric: [_without_nan(asdict(summary)) for summary in of] for metric, of in summaries.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value


def _groups(metric: str, results: Sequence[RunResult]) -> tuple[dict[str, str], dict[str, str]]:
    """Category and cluster of every item of a metric."""
    items = {item for result in results for item in result.values(metric)}
    categories = {item: next((r.categories[item] for r in results if item in r.categories), "") for item in items}
    clusters = {item: next((r.clusters[item] for r in results if item in r.clusters), item) for item in items}
    return categories, clusters


def _subtract(values: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    return {item: value - base[item] for item, value in values.items() if item in base}


def _common_items(by_seed: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The values of items that all seeds have."""
    if not by_seed:
        return []
    common = set.intersection(*(set(values) for values in by_seed))
    return [{item: value for item, value in values.items() if item in common} for values in by_seed]


def _p_of_models(
    differences: Sequence[Mapping[str, float]], categories: Mapping[str, str], clusters: Mapping[str, str]
) -> float:
    if len(differences[0]) < 2:
        return nan
    groups: dict[str, list[float]] = {}
    owners: dict[str, list[object]] = {}
    for item in differences[0]:
        groups.setdefault(categories[item], []).append(sum(values[item] for values in differences) / len(differences))
        owners.setdefault(categories[item], []).append(clusters[item])
    return paired_difference(list(groups.values()), list(owners.values())).p


def _holm(ps: Sequence[float]) -> list[float]:
    """Corrected p values; unknown ones (NaN) stay unknown and do not count."""
    corrected = iter(holm([p for p in ps if not isnan(p)]))
    return [nan if isnan(p) else next(corrected) for p in ps]


def _verdict(metric: Metric, difference: RandomEffectsMean, p: float) -> str:
    if isnan(p):
        return UNKNOWN
    if p >= LEVEL:
        return NOT_SIGNIFICANT
    if metric.better == "neither":
        return "differs"
    return "better" if (difference.mean.mean > 0) == (metric.better == "higher") else "worse"


def _by_category(by_seed: Sequence[Mapping[str, float]], categories: Mapping[str, str]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for values in by_seed:
        for item, value in values.items():
            groups.setdefault(categories[item], []).append(value)
    return {category: sum(values) / len(values) for category, values in groups.items()}
