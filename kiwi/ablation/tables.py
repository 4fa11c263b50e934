"""A study's tables: the primary metric in full, the others in brief, categories, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import median_high

from kiwi.ablation.analysis import SEEDS, ArmSummary
from kiwi.ablation.costs import Cost
from kiwi.ablation.results import RunResult
from kiwi.statistics.intervals import Interval
from kiwi.tables import Table

NOTE = (
    "Means over items and seeds; ±: 95% intervals for other seeds and other items (two-way random effects, "
    "Satterthwaite's degrees of freedom), of differences between runs of one seed, which share data order, noise and "
    "initial weights. std over seeds: of the mean over items. p: of no difference if trained again; p, these models: "
    "of no difference between these very models (permutation over items); both corrected for the number of arms "
    "(Holm). not significant: p is at least 0.05; unknown, and ?: one seed in common with the base, or one item in a "
    "category. detectable difference: about the smallest that so many seeds would find with probability 0.8, if it is "
    "the only one among the arms (a rough estimate: the variance between seeds is pooled over all arms, which share "
    "the base's few seeds)."
)

DIGITS = 3
"""Decimals."""


def main_table(
    title: str, metric: str, summaries: Sequence[ArmSummary], costs: Mapping[str, Cost | None],
    results: Sequence[RunResult], base: str = "base",
) -> Table:  # fmt: skip
    """A metric with its statistics, and what each arm costs."""
    speeds = {summary.label: _samples_per_second(summary.label, results) for summary in summaries}
    base_speed = speeds.get(base, 0.0)
    detectable = (f"detectable difference, {seeds} seeds" for seeds in SEEDS)
    rows = []
    for summary in summaries:
        cost, speed = costs.get(summary.label), speeds[summary.label]
        rows.append(
            (
                summary.label,
                len(summary.seeds),
                interval(summary.mean.mean),
                number(summary.mean.seed_std),
                *_comparison_cells(summary),
                "" if cost is None else f"{cost.parameters / 1e6:.2f}",
                "" if cost is None else f"{cost.step_flops / 1e9:,.2f}",
                "" if not base_speed or not speed else f"{base_speed / speed:.2f}",
            )
        )
    return Table(
        f"{title}: {metric}",
        ("arm", "seeds", metric, "std over seeds", "difference", "p", "p, these models", "verdict", *detectable,
         "parameters (M)", "GFLOP per step", "step time, base = 1"),
        rows,
        f"{NOTE} Parameters of the whole editor; operations of one denoising step of the DiT, one sample; step time in "
        "training, measured in this study's own runs.",
    )  # fmt: skip


def brief_table(title: str, metric: str, summaries: Sequence[ArmSummary]) -> Table:
    """A metric for a terminal."""
    rows = []
    for summary in summaries:
        difference, p, _, verdict, *_ = _comparison_cells(summary)
        rows.append((summary.label, len(summary.seeds), interval(summary.mean.mean), difference, p, verdict))
    note = "±: 95% intervals for other seeds and other items; p corrected for the number of arms; details in table.md."
    return Table(f"{title}: {metric}", ("arm", "seeds", "score", "difference", "p", "verdict"), rows, note)


def overview_table(title: str, summaries: Mapping[str, Sequence[ArmSummary]]) -> Table:
    """All metrics, a column each: means with their differences."""
    labels = list(dict.fromkeys(summary.label for of in summaries.values() for summary in of))
    cells = {(metric, summary.label): _overview_cell(summary) for metric, of in summaries.items() for summary in of}
    return Table(
        f"{title}: all metrics",
        ("arm", *summaries),
        [(label, *(cells.get((metric, label), "") for metric in summaries)) for label in labels],
        "Means over items and seeds; in brackets the difference to the base with its 95% interval, * where p is "
        "below 0.05 (corrected for the arms of its column).",
    )


def category_table(title: str, metric: str, summaries: Sequence[ArmSummary]) -> Table:
    """Means by category."""
    names = list(dict.fromkeys(name for summary in summaries for name in summary.by_category if name))
    return Table(
        f"{title}: {metric} by category",
        ("arm", *names),
        [
            (summary.label, *(number(summary.by_category.get(name, float("nan"))) for name in names))
            for summary in summaries
        ],
        "Means over items and seeds, without intervals: single categories have few items.",
    )


def long_table(summaries: Mapping[str, Sequence[ArmSummary]]) -> Table:
    """A row for every arm and metric, with all digits."""
    header = ("measure", "arm", "seeds", "items", "mean", "low", "high", "spread", "difference", "difference_low",
              "difference_high", "p", "p_models", "verdict")  # fmt: skip
    rows: list[tuple[object, ...]] = []
    for metric, of in summaries.items():
        for summary in of:
            mean, comparison = summary.mean, summary.comparison
            compared: tuple[object, ...] = ("",) * 6
            if comparison is not None:
                compared = (*comparison.difference.mean, comparison.p, comparison.p_models, comparison.verdict)
            rows.append((metric, summary.label, len(summary.seeds), mean.items, *mean.mean, mean.seed_std, *compared))
    return Table("", header, rows)


def problem_tables(failed: Mapping[str, str], without_metric: Mapping[str, str]) -> list[Table]:
    """Runs that failed and runs that lack a metric, where there are any."""
    diverged = "No value, or none that is finite, as when training diverges; the arm's means are over its other seeds."
    tables = [
        Table("Failed runs", ("run", "reason"), list(failed.items()), "Rerun the same command to try them again."),
        Table("Runs without a value", ("run", "metric"), list(without_metric.items()), diverged),
    ]
    return [table for table in tables if table.rows]


def interval(value: Interval) -> str:
    """Mean and half of the interval."""
    return value.rounded(DIGITS)


def number(value: float) -> str:
    """A number; empty if it is unknown."""
    return "" if isnan(value) else f"{value:.{DIGITS}f}".replace("-0.000", "0.000")


def p_value(p: float) -> str:
    """A p value, never a plain 0; empty if it is unknown."""
    return "" if isnan(p) else f"{p:.{DIGITS}f}" if p >= 0.001 else "< 0.001"


def _comparison_cells(summary: ArmSummary) -> tuple[str, ...]:
    comparison = summary.comparison
    if comparison is None:
        return ("", "", "", "", *("" for _ in SEEDS))
    detectable = (number(comparison.detectable.get(seeds, float("nan"))) for seeds in SEEDS)
    ps = p_value(comparison.p), p_value(comparison.p_models)
    return (interval(comparison.difference.mean), *ps, comparison.verdict, *detectable)


def _overview_cell(summary: ArmSummary) -> str:
    mean, comparison = number(summary.mean.mean.mean), summary.comparison
    if comparison is None:
        return mean
    return f"{mean} ({interval(comparison.difference.mean)}{'*' if comparison.significant else ''})"


def _samples_per_second(label: str, results: Sequence[RunResult]) -> float:
    """The median over an arm's runs; 0 if none logged it."""
    name = "samples_per_second"
    speeds = [result.cost[name] for result in results if result.label == label and name in result.cost]
    return median_high(speeds) if speeds else 0.0
