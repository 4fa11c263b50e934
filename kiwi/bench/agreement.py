"""Agreement of a judge with human raters, or with other judges, on the same videos."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from math import isnan, nan
from pathlib import Path

from kiwi.bench.options import AgreementOptions
from kiwi.bench.run_folder import read_run
from kiwi.errors import InputError, ManifestError
from kiwi.media.files import require_file, write_text
from kiwi.statistics.agreement import krippendorff_alpha, spearman, weighted_kappa
from kiwi.tables import Table

Ratings = Mapping[tuple[str, str], float]
"""A rater's ratings, from 1 to 5, by item and dimension."""

HUMAN_MEAN = "human mean"
"""Name of the rater that stands for the mean of all human raters."""


def measure_agreement(options: AgreementOptions) -> Table:
    """Measure the agreement of every pair of raters, and write the table to `options.out`.

    Raises:
        InputError: a folder is not a finished run, or there are fewer than two raters.
        ManifestError: the file of human ratings is malformed.
    """
    raters: dict[str, Ratings] = {}
    for run in map(read_run, options.runs):
        rater = run.identity.judge if run.identity.judge not in raters else f"{run.identity.judge}, {run.folder}"
        if rater in raters:
            raise InputError("the same run was given twice", code="duplicate-run", got=run.folder)
        raters[rater] = {
            (score.item.id, dimension): value for score in run.scored for dimension, value in score.raw.items()
        }
    human_raters: Mapping[str, Ratings] = {}
    if options.labels:
        human_raters = _read_human_ratings(options.labels, {key for ratings in raters.values() for key in ratings})
        if duplicates := sorted(raters.keys() & human_raters.keys()):
            raise InputError(
                f"{options.labels} has a rater with the name of a judge", code="duplicate-rater", got=duplicates[0]
            )
        raters |= human_raters
        if len(human_raters) > 1:
            raters[HUMAN_MEAN] = _average_ratings(list(human_raters.values()))
    if len(raters) < 2:
        raise InputError("agreement needs two raters", code="too-few-raters", expected="another RUN, or --labels")
    rows = []
    for first, second in combinations(raters, 2):
        if second == HUMAN_MEAN and first in human_raters:
            continue  # trivially correlated: the mean includes this rater
        shared = sorted(raters[first].keys() & raters[second].keys())
        a, b = ([raters[rater][key] for key in shared] for rater in (first, second))
        statistics = (
            weighted_kappa(a, b),
            spearman(a, b),
            krippendorff_alpha([a, b], "ordinal"),
            sum(b) / len(b) - sum(a) / len(a) if shared else nan,
        )
        rows.append((first, second, len(shared), *("-" if isnan(value) else f"{value:.2f}" for value in statistics)))
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


def _read_human_ratings(file: Path, known: Collection[tuple[str, str]]) -> dict[str, Ratings]:
    """Read human ratings of known items and dimensions from a CSV file, by rater.

    Raises:
        ManifestError: the file is unreadable or empty, or a line is malformed or has an unknown item or dimension.
    """
    raters: dict[str, dict[tuple[str, str], float]] = {}
    try:
        text = require_file(file, what="file of human ratings").read_text(encoding="utf-8-sig")
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
    except (ValueError, csv.Error) as error:
        raise ManifestError(
            f"{file} cannot be read", code="unreadable-file", got=error, expected="a CSV file in UTF-8"
        ) from None
    if not lines:
        raise ManifestError(
            f"{file} is empty", code="empty-file", expected="lines with item, dimension, score and, optionally, rater"
        )
    for number, line in enumerate(lines, 2):
        location = f"{file} line {number}"
        try:
            score, key = float(line["score"]), (line["item"].strip(), line["dimension"].strip())
            if not 1 <= score <= 5:
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            expected = "item, dimension, a score from 1 to 5 and, optionally, rater"
            raise ManifestError(f"{location} is not a rating", code="invalid-rating", expected=expected) from None
        if key not in known:
            dimensions = ", ".join(sorted({dimension for _, dimension in known}))
            expected = f"an item of the runs' scores.csv, and one of {dimensions}"
            raise ManifestError(
                f"{location}: no run scored this item and dimension",
                code="unknown-item",
                got=", ".join(key),
                expected=expected,
            )
        rater_scores = raters.setdefault((line.get("rater") or "human").strip(), {})
        if key in rater_scores:
            message = f"{location} rates the same item and dimension again"
            raise ManifestError(message, code="duplicate-rating", got=", ".join(key))
        rater_scores[key] = score
    return dict(raters)


def _average_ratings(raters: Sequence[Ratings]) -> Ratings:
    """The mean of all raters that rated an item in a dimension."""
    keys = {key for ratings in raters for key in ratings}
    values = {key: [ratings[key] for ratings in raters if key in ratings] for key in keys}
    return {key: sum(ratings) / len(ratings) for key, ratings in values.items()}
