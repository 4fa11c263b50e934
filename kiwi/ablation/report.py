"""A study's tables: the first measure whole, the others short, categories, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan

from kiwi.ablation.analysis import SEEDS, Row
from kiwi.ablation.costs import Cost
from kiwi.ablation.results import Result
from kiwi.statistics.intervals import Interval
from kiwi.tables import Table

NOTE = (
    "Means over items and seeds; ±: 95% intervals for other seeds and other items (two-way random effects, "
    "Satterthwaite's degrees of freedom), of differences between runs of one seed, which share data order, noise and "
    "initial weights. spread: standard deviation from seed to seed. p: of no difference if trained again; p models: of "
    "no difference between these very models (permutation over items); both corrected for the number of arms (Holm). "
    "noise: p is not below 0.05; unknown, and ?: one seed in common with the base, or one item in a category. sees: "
    "about the smallest difference that so many seeds would find four times of five, if it is the only one among the "
    "arms (a rough guess: what training adds to chance is taken from all arms, which share the base's few seeds)."
)

DIGITS = 3
"""Behind the point."""


def main_table(
    title: str, measure: str, rows: Sequence[Row], costs: Mapping[str, Cost | None], results: Sequence[Result],
    base: str = "base",
) -> Table:  # fmt: skip
    """A measure with everything that stands beside it."""
    speeds = {row.label: _speed(row.label, results) for row in rows}
    first = speeds.get(base, 0.0)
    header = ("arm", "seeds", measure, "spread", "difference", "p", "p models", "", *(f"sees ({n})" for n in SEEDS))
    told = []
    for row in rows:
        cost, speed = costs.get(row.label), speeds[row.label]
        told.append(
            (
                row.label,
                len(row.seeds),
                interval(row.of.mean),
                number(row.of.seed_std),
                *_difference(row),
                "" if cost is None else f"{cost.parameters / 1e6:.2f}",
                "" if cost is None else f"{cost.step_flops / 1e9:,.2f}",
                "" if not first or not speed else f"{first / speed:.2f}",
            )
        )
    return Table(
        f"{title}: {measure}",
        (*header, "parameters (M)", "GFLOP a step", "step time, base 1"),
        told,
        f"{NOTE} Parameters of the whole editor; operations of one denoising step of the DiT, one sample; step time in "
        "training, of this study's own runs.",
    )


def brief_table(title: str, measure: str, rows: Sequence[Row]) -> Table:
    """A measure for a terminal."""
    told = [
        (row.label, len(row.seeds), interval(row.of.mean), *_difference(row)[:2], _difference(row)[3]) for row in rows
    ]
    note = "±: 95% intervals for other seeds and other items; p corrected for the number of arms; all else in table.md."
    return Table(f"{title}: {measure}", ("arm", "seeds", "score", "difference", "p", ""), told, note)


def short_table(title: str, rows: Mapping[str, Sequence[Row]]) -> Table:
    """All measures: a column each, means with their differences."""
    labels = list(dict.fromkeys(row.label for of in rows.values() for row in of))
    cells = {(measure, row.label): _short(row) for measure, of in rows.items() for row in of}
    return Table(
        f"{title}: all measures",
        ("arm", *rows),
        [(label, *(cells.get((measure, label), "") for measure in rows)) for label in labels],
        "Means over items and seeds; in brackets the difference to the base with its 95% interval, * where p is "
        "below 0.05 (corrected for the arms of its column).",
    )


def category_table(title: str, measure: str, rows: Sequence[Row]) -> Table:
    """Means by category."""
    names = list(dict.fromkeys(name for row in rows for name in row.by_category if name))
    return Table(
        f"{title}: {measure} by category",
        ("arm", *names),
        [(row.label, *(number(row.by_category.get(name, float("nan"))) for name in names)) for row in rows],
        "Means over items and seeds, without intervals: single categories are of few items.",
    )


def notes_on(failed: Mapping[str, str], gaps: Mapping[str, str]) -> list[Table]:
    """Runs that ended early, and those that ended without a number, where there are such."""
    again = "The same command tries them again."
    without = "No number, or none that is finite, as where training diverges; the arm's means are of its other seeds."
    found = [
        Table("Runs that failed", ("run", "why"), list(failed.items()), again),
        Table("Runs without a number", ("run", "measure"), list(gaps.items()), without),
    ]
    return [table for table in found if table.rows]


def interval(value: Interval) -> str:
    """Mean and half of the interval."""
    return value.rounded(DIGITS)


def number(value: float) -> str:
    """A number, or nothing where it is not known."""
    return "" if isnan(value) else f"{value:.{DIGITS}f}".replace("-0.000", "0.000")


def chance(p: float) -> str:
    """A p value: never a plain 0."""
    return "" if isnan(p) else f"{p:.{DIGITS}f}" if p >= 0.001 else "< 0.001"


def _difference(row: Row) -> tuple[str, ...]:
    found = row.against
    if found is None:
        return ("", "", "", "", *("" for _ in SEEDS))
    seen = (number(found.detectable.get(seeds, float("nan"))) for seeds in SEEDS)
    return (interval(found.seeded.mean), chance(found.p), chance(found.p_models), found.verdict, *seen)


def _short(row: Row) -> str:
    if row.against is None:
        return number(row.of.mean.mean)
    star = "*" if row.against.verdict in ("better", "worse", "differs") else ""
    return f"{number(row.of.mean.mean)} ({interval(row.against.seeded.mean)}{star})"


def _speed(label: str, results: Sequence[Result]) -> float:
    found = [
        one.cost["samples_per_second"] for one in results if one.label == label and "samples_per_second" in one.cost
    ]
    return sorted(found)[len(found) // 2] if found else 0.0
