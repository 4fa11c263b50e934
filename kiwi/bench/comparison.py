"""Comparison of finished runs: of two editors by one judge, and of judges with each other and with human raters."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from math import isnan, nan
from pathlib import Path

from kiwi import console
from kiwi.bench.options import AgreementOptions, CompareOptions
from kiwi.bench.run_folder import read_run
from kiwi.bench.scoring import compute_differences
from kiwi.errors import InputError, ManifestError
from kiwi.media.files import write_text
from kiwi.reading import require_file
from kiwi.statistics.agreement import krippendorff_alpha, spearman, weighted_kappa
from kiwi.statistics.paired import adjust_by_holm, count_items_needed
from kiwi.tables import Table

Ratings = Mapping[tuple[str, str], float]
"""A rater's ratings, from 1 to 5, by item and dimension."""

HUMAN_MEAN = "human mean"
"""Name of the rater that stands for the mean of all human raters."""

_EQUAL = {
    "name": "benchmark",
    "items": "items",
    "judge": "judge",
    "version": "versions of the judge",
    "rubrics": "rubrics",
}
"""Fields of RunIdentity that must be equal in compared runs, since scores are on different scales otherwise."""


def compare_runs(options: CompareOptions) -> Table:
    """Compute the differences B - A, overall and by column, and write the table to `options.out`.

    Raises:
        InputError: a folder is not a finished run, or the runs are not comparable.
    """
    a, b = read_run(options.a), read_run(options.b)
    for field, name in _EQUAL.items():
        first, second = getattr(a.identity, field), getattr(b.identity, field)
        if first != second:
            got = None if field in ("items", "rubrics") else f"{first} and {second}"
            raise InputError(f"runs with different {name} are not comparable", code="not-comparable", got=got)
    differences = compute_differences(a.suite, a.scored, b.scored, "capped" if options.capped else "raw")
    shared = {score.item.id for score in a.scored} & {score.item.id for score in b.scored}
    coverage, needed = f"{len(shared)} of {len(a.items)}", None
    if options.allow_partial or len(shared) == len(a.items):
        needed = count_items_needed(differences["overall"], 0.1, len(shared))
    else:
        console.print(
            f"Warning: only {coverage} items have a score in both runs, so there is no overall difference "
            "(--allow-partial computes it for these items)."
        )
        del differences["overall"]
    columns = [name for name in differences if name != "overall"]
    corrected = dict(zip(columns, adjust_by_holm([differences[name].p for name in columns]), strict=True))
    rows = [
        (
            name,
            len(shared) if name == "overall" else value.items,
            f"{value.interval.mean:+.2f}",
            "-" if isnan(value.interval.low) else f"[{value.interval.low:+.2f}, {value.interval.high:+.2f}]",
            f"{value.p:.4f}",
            f"{corrected[name]:.4f}" if name in corrected else "",
            "-" if isnan(value.detectable) else f"{value.detectable:.2f}",
        )
        for name, value in differences.items()
    ]
    table = Table(
        f"{a.suite.title}: {b.identity.title} - {a.identity.title}, judged by {a.identity.judge}",
        ("", "items", "difference", "95% CI", "p", "p (Holm)", "detectable"),
        rows,
        f"Paired over the items with a score in both runs ({coverage}); p of a two-sided permutation test over source "
        "videos; detectable: smallest difference that this number of items detects with power 0.8; -: too few items to "
        "estimate it." + ("" if needed is None else f" An overall difference of 0.1 takes {needed} items to detect."),
    )
    if options.out:
        write_text(options.out, table.to_markdown())
    return table


def measure_agreement(options: AgreementOptions) -> Table:
    """Measure the agreement of every pair of raters, and write the table to `options.out`.

    Raises:
        InputError: a folder is not a finished run, or there are fewer than two raters.
        ManifestError: the file of human ratings is malformed.
    """
    raters = _read_judges(options.runs)
    humans: dict[str, Ratings] = {}
    if options.labels:
        humans = _read_human_ratings(options.labels, {key for ratings in raters.values() for key in ratings})
        if duplicates := sorted(raters.keys() & humans.keys()):
            problem = f"{options.labels} has a rater with the name of a judge"
            raise InputError(problem, code="duplicate-rater", got=duplicates[0])
        raters |= humans
        if len(humans) > 1:
            raters[HUMAN_MEAN] = _average_ratings(list(humans.values()))
    if len(raters) < 2:
        raise InputError("agreement needs two raters", code="too-few-raters", expected="another RUN, or --labels")
    rows = [
        (first, second, *_compare_ratings(raters[first], raters[second]))
        for first, second in combinations(raters, 2)
        if not (second == HUMAN_MEAN and first in humans)  # trivially correlated: the mean includes this rater
    ]
    table = Table(
        "Agreement of raters",
        ("rater A", "rater B", "n", "kappa", "Spearman rho", "alpha", "mean difference (B - A)"),
        rows,
        "n: ratings (an item in a dimension) that both raters gave; kappa: Cohen's, with quadratic weights; alpha: "
        "Krippendorff's, ordinal.",
    )
    if options.out:
        write_text(options.out, table.to_markdown())
    return table


def _read_judges(folders: Sequence[Path]) -> dict[str, Ratings]:
    """Read the uncapped scores of runs, by judge; a judge's later runs have their folder in the name."""
    raters: dict[str, Ratings] = {}
    for run in map(read_run, folders):
        judge = run.identity.judge
        rater = f"{judge}, {run.folder}" if judge in raters else judge
        if rater in raters:
            raise InputError("the same run was given twice", code="duplicate-run", got=run.folder)
        raters[rater] = {(score.item.id, name): value for score in run.scored for name, value in score.raw.items()}
    return raters


def _read_human_ratings(file: Path, known: Collection[tuple[str, str]]) -> dict[str, Ratings]:
    """Read human ratings of known items and dimensions from a CSV file, by rater.

    Raises:
        ManifestError: the file is unreadable or empty, or a line is malformed or has an unknown item or dimension.
    """
    columns = "item, dimension, a score from 1 to 5 and, optionally, rater"
    try:
        text = require_file(file, what="file of human ratings").read_text(encoding="utf-8-sig")
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
    except (ValueError, csv.Error) as error:
        expected = "a CSV file in UTF-8"
        raise ManifestError(f"{file} cannot be read", code="unreadable-file", got=error, expected=expected) from None
    if not lines:
        raise ManifestError(f"{file} has no ratings", code="empty-file", expected=f"lines with {columns}")
    raters: dict[str, dict[tuple[str, str], float]] = {}
    for number, line in enumerate(lines, 2):
        location = f"{file} line {number}"
        try:
            score, key = float(line["score"]), (line["item"].strip(), line["dimension"].strip())
            if not 1 <= score <= 5:
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ManifestError(f"{location} is not a rating", code="invalid-rating", expected=columns) from None
        got = ", ".join(key)
        if key not in known:
            expected = (
                f"an item of the runs' scores.csv, and the dimension {' or '.join(sorted({name for _, name in known}))}"
            )
            problem = f"{location}: no run scored this item and dimension"
            raise ManifestError(problem, code="unknown-item", got=got, expected=expected)
        ratings = raters.setdefault((line.get("rater") or "human").strip(), {})
        if key in ratings:
            raise ManifestError(f"{location} rates the same item and dimension again", code="duplicate-rating", got=got)
        ratings[key] = score
    return dict(raters)


def _average_ratings(raters: Sequence[Ratings]) -> Ratings:
    """The mean of all raters that rated an item in a dimension."""
    keys = {key for ratings in raters for key in ratings}
    values = {key: [ratings[key] for ratings in raters if key in ratings] for key in keys}
    return {key: sum(ratings) / len(ratings) for key, ratings in values.items()}


def _compare_ratings(first: Ratings, second: Ratings) -> tuple[object, ...]:
    """The cells of a pair of raters: number of shared ratings, kappa, Spearman's rho, alpha and mean difference."""
    shared = sorted(first.keys() & second.keys())
    a, b = ([ratings[key] for key in shared] for ratings in (first, second))
    shift = sum(b) / len(b) - sum(a) / len(a) if shared else nan
    statistics = weighted_kappa(a, b), spearman(a, b), krippendorff_alpha([a, b], "ordinal"), shift
    return len(shared), *("-" if isnan(value) else f"{value:.2f}" for value in statistics)
