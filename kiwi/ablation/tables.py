"""Tables of a study: the primary metric with statistics, an overview of all metrics, categories, and failed runs."""

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import median_high

from kiwi.ablation.analysis import SEED_COUNTS, ArmSummary
from kiwi.ablation.results import RunResult
from kiwi.ablation.study import Cost
from kiwi.tables import Table

NOTE = (
    "An arm is one variant of the configuration; its difference is arm minus base. Means are over items and seeds. ±: "
    "95% interval that covers other seeds and other items (two-way random effects, Satterthwaite's degrees of "
    "freedom). Differences are between runs with the same seed, which share data order, noise and initial weights. std "
    "over seeds: standard deviation of the mean over items. p: p value of the difference if the models were trained "
    "again; p, these models: p value of the difference between these trained models (permutation test over items); "
    "both are corrected for the number of arms (Holm). not significant: p is at least 0.05. unknown, or ?: only one "
    "seed in common with the base, or only one item in a category. detectable difference: smallest difference that "
    "this number of seeds detects with probability 0.8 if no other arm differs (a rough estimate: the variance between "
    "seeds is pooled over all arms, which share the few runs of the base)."
)

DIGITS = 3
"""Number of decimals in all tables."""


def make_main_table(
    title: str, metric: str, summaries: Sequence[ArmSummary], costs: Mapping[str, Cost | None],
    results: Sequence[RunResult], base: str = "base",
) -> Table:  # fmt: skip
    """Make the table of one metric with all statistics and the cost of each arm."""
    speeds = {summary.label: _compute_median_speed(summary.label, results) for summary in summaries}
    base_speed = speeds.get(base, 0.0)
    detectable = (f"detectable difference, {seeds} seeds" for seeds in SEED_COUNTS)
    rows = []
    for summary in summaries:
        cost, speed = costs.get(summary.label), speeds[summary.label]
        rows.append(
            (
                summary.label,
                len(summary.seeds),
                summary.mean.interval.rounded(DIGITS),
                format_number(summary.mean.seed_std),
                *_format_comparison(summary),
                "" if cost is None else f"{cost.parameters / 1e6:.2f}",
                "" if cost is None else f"{cost.denoising_step_flops / 1e9:,.2f}",
                "" if not base_speed or not speed else f"{base_speed / speed:.2f}",
            )
        )
    return Table(
        f"{title}: {metric}",
        ("arm", "seeds", metric, "std over seeds", "difference", "p", "p, these models", "verdict", *detectable,
         "parameters (M)", "GFLOP per denoising step", "step time, base = 1"),
        rows,
        f"{NOTE} parameters: of the whole editor. GFLOP per denoising step: operations of the DiT for one "
        "sample. step time: duration of a training step in the runs of this study.",
    )  # fmt: skip


def make_brief_table(title: str, metric: str, summaries: Sequence[ArmSummary]) -> Table:
    """Make a short table of one metric for the terminal."""
    rows = []
    for summary in summaries:
        difference, p, _, verdict, *_ = _format_comparison(summary)
        rows.append((summary.label, len(summary.seeds), summary.mean.interval.rounded(DIGITS), difference, p, verdict))
    note = (
        "±: 95% interval over seeds and items; p is corrected for the number of arms. ? or unknown: only one seed in "
        "common with the base, or only one item in a category. table.md has the details."
    )
    return Table(f"{title}: {metric}", ("arm", "seeds", "score", "difference", "p", "verdict"), rows, note)


def make_overview_table(title: str, summaries: Mapping[str, Sequence[ArmSummary]]) -> Table:
    """Make the table of all metrics, with the mean and the difference of every arm."""
    labels = list(dict.fromkeys(summary.label for arms in summaries.values() for summary in arms))
    cells = {
        (metric, summary.label): _format_overview_cell(summary)
        for metric, arms in summaries.items()
        for summary in arms
    }
    return Table(
        f"{title}: all metrics",
        ("arm", *summaries),
        [(label, *(cells.get((metric, label), "") for metric in summaries)) for label in labels],
        "Means over items and seeds, followed by the difference from the base with its 95% interval; * if p, corrected "
        "for the number of arms, is below 0.05.",
    )


def make_category_table(title: str, metric: str, summaries: Sequence[ArmSummary]) -> Table:
    """Make the table of the means of one metric by category."""
    names = list(dict.fromkeys(name for summary in summaries for name in summary.by_category if name))
    return Table(
        f"{title}: {metric} by category",
        ("arm", *names),
        [
            (summary.label, *(format_number(summary.by_category.get(name, float("nan"))) for name in names))
            for summary in summaries
        ],
        "Means over items and seeds, without intervals because a category has few items.",
    )


def make_tidy_table(summaries: Mapping[str, Sequence[ArmSummary]]) -> Table:
    """Make the table for table.csv: a row per arm and metric, with unrounded values."""
    header = ("measure", "arm", "seeds", "items", "mean", "low", "high", "spread", "difference", "difference_low",
              "difference_high", "p", "p_models", "verdict")  # fmt: skip
    rows: list[tuple[object, ...]] = []
    for metric, arms in summaries.items():
        for summary in arms:
            mean, comparison = summary.mean, summary.comparison
            cells: tuple[object, ...] = ("",) * 6
            if comparison is not None:
                cells = (*comparison.difference.interval, comparison.p, comparison.p_models, comparison.verdict)
            seeds = len(summary.seeds)
            rows.append((metric, summary.label, seeds, mean.items, *mean.interval, mean.seed_std, *cells))
    return Table("", header, rows)


def make_problem_tables(failed: Mapping[str, str], without_metric: Mapping[str, str]) -> list[Table]:
    """Make the tables of failed runs and of runs without a value of some metric; empty tables are omitted."""
    note = "These runs have no finite value, for example because training diverged; means are over the other seeds."
    tables = [
        Table("Failed runs", ("run", "reason"), list(failed.items()), "Rerun the same command to retry them."),
        Table("Runs without a value", ("run", "metric"), list(without_metric.items()), note),
    ]
    return [table for table in tables if table.rows]


def format_number(value: float) -> str:
    """Format a number; NaN becomes an empty string."""
    return "" if isnan(value) else f"{value:.{DIGITS}f}".replace("-0.000", "0.000")


def format_p_value(p: float) -> str:
    """Format a p value, which is never shown as 0; NaN becomes an empty string."""
    return "" if isnan(p) else f"{p:.{DIGITS}f}" if p >= 0.001 else "< 0.001"


def _format_comparison(summary: ArmSummary) -> tuple[str, ...]:
    comparison = summary.comparison
    if comparison is None:
        return ("",) * (4 + len(SEED_COUNTS))
    detectable = (format_number(comparison.detectable.get(seeds, float("nan"))) for seeds in SEED_COUNTS)
    ps = format_p_value(comparison.p), format_p_value(comparison.p_models)
    return (comparison.difference.interval.rounded(DIGITS), *ps, comparison.verdict, *detectable)


def _format_overview_cell(summary: ArmSummary) -> str:
    mean, comparison = format_number(summary.mean.interval.mean), summary.comparison
    if comparison is None:
        return mean
    return f"{mean} ({comparison.difference.interval.rounded(DIGITS)}{'*' if comparison.significant else ''})"


def _compute_median_speed(label: str, results: Sequence[RunResult]) -> float:
    """The median of the samples per second of an arm's runs; 0 if none logged it."""
    logged = [result.cost.get("samples_per_second") for result in results if result.label == label]
    speeds = [speed for speed in logged if speed is not None]
    return median_high(speeds) if speeds else 0.0
