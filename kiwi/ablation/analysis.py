"""Statistics of a study: the mean of every arm, its difference from the base, and whether that is significant.

An arm is one variant of the configuration; the base is the unchanged configuration. The analysis answers two questions:

- Would the difference appear again if the models were trained again, with other seeds and other items? The interval and
  the p value come from a two-way random-effects analysis of paired runs (`kiwi.statistics.seeds`). A bootstrap over
  items, or over items and two or three seeds, would report differences that do not exist in up to half of all studies.
- Do these trained models differ? The p value comes from a permutation test over items.

Both p values are corrected for the number of arms (Holm).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

from kiwi.ablation.results import RunResult
from kiwi.evaluation.measurement import Metric
from kiwi.statistics.paired import holm, paired_difference
from kiwi.statistics.seeds import RandomEffectsMean, pooled_seed_variance, random_effects_mean

SIGNIFICANCE_LEVEL = 0.05
"""Largest p value of a significant difference, after correction for the number of arms."""

SEED_COUNTS = (3, 5)
"""Numbers of seeds for which tables state the smallest detectable difference."""

NOT_SIGNIFICANT, UNKNOWN = "not significant", "unknown"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of an arm from the base (arm minus base), over pairs of runs with the same seed.

    Args:
        difference: mean difference; its interval covers other seeds and other items.
        p: p value of the difference if the models were trained again, corrected for the number of arms.
        p_models: p value of the difference between these trained models, corrected; NaN without items.
        detectable: smallest detectable difference by number of seeds, corrected for the number of arms, if no other arm
            differs; the variance between seeds is pooled over all arms.
        verdict: better, worse, differs (for a metric without a better direction), not significant, or unknown (one
            seed).
    """

    difference: RandomEffectsMean
    p: float
    p_models: float
    detectable: Mapping[int, float]
    verdict: str

    @property
    def significant(self) -> bool:
        """Whether the corrected p value is below the significance level."""
        return self.verdict not in (NOT_SIGNIFICANT, UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """The results of an arm in one metric.

    Args:
        label: label of the arm.
        seeds: seeds of its finished runs.
        mean: mean over seeds and items.
        by_category: mean over seeds and items for each category.
        comparison: comparison with the base; None for the base, and for an arm without a seed in common with it.
    """

    label: str
    seeds: Sequence[int]
    mean: RandomEffectsMean
    by_category: Mapping[str, float]
    comparison: Comparison | None


def summarize_arms(metric: Metric, results: Sequence[RunResult], labels: Sequence[str]) -> list[ArmSummary]:
    """Summarize every arm that has the metric, and compare it with the base.

    Args:
        metric: metric to summarize.
        results: results of all finished runs.
        labels: labels of all arms in the order of the study; the base is the first.
    """
    by_arm = {
        label: {
            result.seed: values
            for result in sorted(results, key=lambda result: result.seed)
            if result.label == label and (values := result.values(metric.name))
        }
        for label in labels
    }
    categories, clusters = _categories_and_clusters(metric.name, results)
    base = by_arm[labels[0]]
    differences: dict[str, tuple[RandomEffectsMean, float]] = {}
    for label in labels[1:]:
        paired = [_subtract(values, base[seed]) for seed, values in by_arm[label].items() if seed in base]
        paired = _common_items([values for values in paired if values])
        if paired and paired[0]:
            difference = random_effects_mean(paired, categories, clusters)
            differences[label] = difference, _permutation_p_value(paired, categories, clusters)
    seed_variance = pooled_seed_variance([difference for difference, _ in differences.values()])
    corrected_level = SIGNIFICANCE_LEVEL / max(1, len(differences))
    corrected = _correct_p_values([difference.p for difference, _ in differences.values()])
    p_values = dict(zip(differences, corrected, strict=True))
    p_models = dict(zip(differences, _correct_p_values([p for _, p in differences.values()]), strict=True))
    summaries = []
    for label in labels:
        by_seed = by_arm[label]
        if not by_seed or not (values_by_seed := _common_items(list(by_seed.values())))[0]:
            continue  # no result, or no item that all seeds have
        comparison = None
        if label in differences:
            difference, _ = differences[label]
            comparison = Comparison(
                difference=difference,
                p=p_values[label],
                p_models=p_models[label],
                detectable={
                    count: difference.detectable_difference(count, seed_variance, corrected_level)
                    for count in SEED_COUNTS
                },
                verdict=_decide_verdict(metric, difference, p_values[label]),
            )
        summaries.append(
            ArmSummary(
                label=label,
                seeds=list(by_seed),
                mean=random_effects_mean(values_by_seed, categories, clusters),
                by_category=_average_by_category(values_by_seed, categories),
                comparison=comparison,
            )
        )
    return summaries


def to_json(summaries: Mapping[str, Sequence[ArmSummary]]) -> dict[str, Any]:
    """Convert summaries by metric to plain data for JSON; NaN becomes null, and intervals have the key "mean"."""
    return {metric: [_to_plain_data(asdict(summary)) for summary in arms] for metric, arms in summaries.items()}


def _to_plain_data(value: Any) -> Any:
    if isinstance(value, dict):
        return {"mean" if key == "interval" else str(key): _to_plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain_data(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value


def _categories_and_clusters(metric: str, results: Sequence[RunResult]) -> tuple[dict[str, str], dict[str, str]]:
    """Map every item of a metric to its category, and to its cluster (by default the item itself)."""
    items = {item for result in results for item in result.values(metric)}
    categories = {item: next((r.categories[item] for r in results if item in r.categories), "") for item in items}
    clusters = {item: next((r.clusters[item] for r in results if item in r.clusters), item) for item in items}
    return categories, clusters


def _subtract(values: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    return {item: value - base[item] for item, value in values.items() if item in base}


def _common_items(by_seed: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Keep only the items that all seeds have."""
    if not by_seed:
        return []
    common = set.intersection(*(set(values) for values in by_seed))
    return [{item: value for item, value in values.items() if item in common} for values in by_seed]


def _permutation_p_value(
    differences: Sequence[Mapping[str, float]], categories: Mapping[str, str], clusters: Mapping[str, str]
) -> float:
    if len(differences[0]) < 2:
        return nan
    means_by_category: dict[str, list[float]] = {}
    clusters_by_category: dict[str, list[object]] = {}
    for item in differences[0]:
        mean = sum(values[item] for values in differences) / len(differences)
        means_by_category.setdefault(categories[item], []).append(mean)
        clusters_by_category.setdefault(categories[item], []).append(clusters[item])
    return paired_difference(list(means_by_category.values()), list(clusters_by_category.values())).p


def _correct_p_values(ps: Sequence[float]) -> list[float]:
    """Apply Holm's correction; NaN stays NaN and does not count as a test."""
    corrected = iter(holm([p for p in ps if not isnan(p)]))
    return [nan if isnan(p) else next(corrected) for p in ps]


def _decide_verdict(metric: Metric, difference: RandomEffectsMean, p: float) -> str:
    if isnan(p):
        return UNKNOWN
    if p >= SIGNIFICANCE_LEVEL:
        return NOT_SIGNIFICANT
    if metric.better == "neither":
        return "differs"
    return "better" if (difference.interval.mean > 0) == (metric.better == "higher") else "worse"


def _average_by_category(by_seed: Sequence[Mapping[str, float]], categories: Mapping[str, str]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for values in by_seed:
        for item, value in values.items():
            groups.setdefault(categories[item], []).append(value)
    return {category: sum(values) / len(values) for category, values in groups.items()}
