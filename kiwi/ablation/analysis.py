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
from kiwi.statistics.paired import adjust_by_holm, estimate_difference
from kiwi.statistics.seeds import ItemValues, RandomEffectsMean, estimate_mean, pool_seed_variance

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
    categories, clusters = _map_categories_and_clusters(metric.name, results)
    base = by_arm[labels[0]]
    paired = {}
    for label in labels[1:]:
        differences = [_subtract(values, base[seed]) for seed, values in by_arm[label].items() if seed in base]
        if runs := _keep_common_items([run for run in differences if run]):
            paired[label] = runs
    comparisons = _compare_with_base(metric, paired, categories, clusters)
    return [
        ArmSummary(
            label=label,
            seeds=list(by_arm[label]),
            mean=estimate_mean(runs, categories, clusters),
            by_category=_average_by_category(runs, categories),
            comparison=comparisons.get(label),
        )
        for label in labels
        if (runs := _keep_common_items(list(by_arm[label].values())))
    ]


def to_json(summaries: Mapping[str, Sequence[ArmSummary]]) -> dict[str, Any]:
    """Convert summaries by metric to plain data for JSON; NaN becomes null, and intervals have the key "mean"."""
    return {metric: [_to_plain_data(asdict(summary)) for summary in arms] for metric, arms in summaries.items()}


def _to_plain_data(value: Any) -> Any:
    if isinstance(value, dict):
        return {"mean" if key == "interval" else str(key): _to_plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain_data(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value


def _map_categories_and_clusters(metric: str, results: Sequence[RunResult]) -> tuple[dict[str, str], dict[str, str]]:
    """Map every item of a metric to its category, and to its cluster (by default the item itself)."""
    items = {item for result in results for item in result.values(metric)}
    categories = {item: next((r.categories[item] for r in results if item in r.categories), "") for item in items}
    clusters = {item: next((r.clusters[item] for r in results if item in r.clusters), item) for item in items}
    return categories, clusters


def _subtract(values: ItemValues, base: ItemValues) -> dict[str, float]:
    return {item: value - base[item] for item, value in values.items() if item in base}


def _keep_common_items(runs: Sequence[ItemValues]) -> list[ItemValues]:
    """Keep only the items that all runs have; empty if there are none."""
    common = set.intersection(*map(set, runs)) if runs else set()
    return [{item: value for item, value in run.items() if item in common} for run in runs] if common else []


def _compare_with_base(
    metric: Metric, paired: Mapping[str, Sequence[ItemValues]], categories: Mapping[str, str],
    clusters: Mapping[str, str],
) -> dict[str, Comparison]:  # fmt: skip
    """Compare arms with the base, given the differences of their paired runs by label."""
    differences = {label: estimate_mean(runs, categories, clusters) for label, runs in paired.items()}
    p_values = _correct_p_values([difference.p for difference in differences.values()])
    p_models = _correct_p_values([_test_permutations(runs, categories, clusters) for runs in paired.values()])
    seed_variance = pool_seed_variance(list(differences.values()))
    corrected_level = SIGNIFICANCE_LEVEL / max(1, len(differences))
    return {
        label: Comparison(
            difference=difference,
            p=p,
            p_models=p_of_models,
            detectable={
                count: difference.detectable_difference(count, seed_variance, corrected_level) for count in SEED_COUNTS
            },
            verdict=_decide_verdict(metric, difference, p),
        )
        for (label, difference), p, p_of_models in zip(differences.items(), p_values, p_models, strict=True)
    }


def _test_permutations(
    differences: Sequence[ItemValues], categories: Mapping[str, str], clusters: Mapping[str, str]
) -> float:
    """p value of a permutation test over items; NaN for a single item, such as a loss."""
    if len(differences[0]) < 2:
        return nan
    by_category: dict[str, list[str]] = {}
    for item in differences[0]:
        by_category.setdefault(categories[item], []).append(item)
    means = {item: sum(run[item] for run in differences) / len(differences) for item in differences[0]}
    strata = [[means[item] for item in items] for items in by_category.values()]
    return estimate_difference(strata, [[clusters[item] for item in items] for items in by_category.values()]).p


def _correct_p_values(ps: Sequence[float]) -> list[float]:
    """Apply Holm's correction; NaN stays NaN and does not count as a test."""
    corrected = iter(adjust_by_holm([p for p in ps if not isnan(p)]))
    return [nan if isnan(p) else next(corrected) for p in ps]


def _decide_verdict(metric: Metric, difference: RandomEffectsMean, p: float) -> str:
    if isnan(p):
        return UNKNOWN
    if p >= SIGNIFICANCE_LEVEL:
        return NOT_SIGNIFICANT
    if metric.better == "neither":
        return "differs"
    return "better" if (difference.interval.mean > 0) == (metric.better == "higher") else "worse"


def _average_by_category(runs: Sequence[ItemValues], categories: Mapping[str, str]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for run in runs:
        for item, value in run.items():
            groups.setdefault(categories[item], []).append(value)
    return {category: sum(values) / len(values) for category, values in groups.items()}
