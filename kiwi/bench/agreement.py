"""Agreement of a judge with people, or with other judges, on the scores of the same videos."""

from __future__ import annotations

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
"""A rater's scores by item and dimension."""

PEOPLE_MEAN = "people, mean"


def measure_agreement(options: AgreementOptions) -> Table:
    """Agreement of every two raters; also written to `options.out`.

    Raises:
        InputError: a folder that is not a finished run, or fewer than two raters.
        ManifestError: labels that cannot be used.
    """
    raters: dict[str, Ratings] = {}
    for run in map(read_run, options.runs):
        name = run.identity.judge if run.identity.judge not in raters else f"{run.identity.judge}, {run.folder}"
        if name in raters:
            raise InputError("a run was given twice", code="duplicate-run", got=run.folder)
        raters[name] = {(score.item.id, name): value for score in run.scored for name, value in score.raw.items()}
    people: Mapping[str, Ratings] = {}
    if options.labels:
        people = _read_labels(options.labels, {key for ratings in raters.values() for key in ratings})
        if duplicates := sorted(raters.keys() & people.keys()):
            raise InputError(
                f"{options.labels} has a rater with the name of a judge", code="duplicate-rater", got=duplicates[0]
            )
        raters |= people
        if len(people) > 1:
            raters[PEOPLE_MEAN] = _mean_ratings(list(people.values()))
    if len(raters) < 2:
        raise InputError("agreement needs two raters", code="too-few-raters", expected="another RUN, or --labels")
    rows = []
    for first, second in combinations(raters, 2):
        if second == PEOPLE_MEAN and first in people:
            continue  # a person agrees with a mean that includes that person
        shared = sorted(raters[first].keys() & raters[second].keys())
        a, b = ([raters[name][key] for key in shared] for name in (first, second))
        statistics = (
            weighted_kappa(a, b),
            spearman(a, b),
            krippendorff_alpha([a, b], "ordinal"),
            sum(b) / len(b) - sum(a) / len(a) if shared else nan,
        )
        rows.append((first, second, len(shared), *("-" if isnan(value) else f"{value:.2f}" for value in statistics)))
    table = Table(
        "Agreement on the scores that both raters gave",
        ("rater", "rater", "scores", "kappa", "rank correlation", "alpha", "shift"),
        rows,
        "kappa: Cohen's, quadratic weights; rank correlation: Spearman's; alpha: Krippendorff's, ordinal; shift: mean "
        "of the second rater - mean of the first.",
    )
    if options.out:
        write_text(options.out, table.to_markdown())
    return table


def _read_labels(file: Path, known: Collection[tuple[str, str]]) -> dict[str, Ratings]:
    """People's scores, by rater.

    Raises:
        ManifestError: a file that cannot be read or is empty, or a line that is malformed or about an item or dimension
            that is not known.
    """
    ratings: dict[str, dict[tuple[str, str], float]] = {}
    try:
        text = require_file(file, what="file of labels").read_text(encoding="utf-8-sig")
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
    except (ValueError, csv.Error) as problem:
        raise ManifestError(
            f"{file} cannot be read", code="unreadable-file", got=problem, expected="a CSV file in UTF-8"
        ) from None
    if not lines:
        raise ManifestError(
            f"{file} is empty", code="no-labels", expected="lines with item, dimension, score and, optionally, rater"
        )
    for number, line in enumerate(lines, 2):
        location = f"{file} line {number}"
        try:
            score, key = float(line["score"]), (line["item"].strip(), line["dimension"].strip())
            if not 1 <= score <= 5:
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            expected = "item, dimension, a score from 1 to 5 and, optionally, rater"
            raise ManifestError(f"{location} is not a label", code="malformed-label", expected=expected) from None
        if key not in known:
            expected = f"an item as in scores.csv, and one of {', '.join(sorted({name for _, name in known}))}"
            raise ManifestError(
                f"the runs have no score for {location}", code="unknown-item", got=", ".join(key), expected=expected
            )
        by_rater = ratings.setdefault((line.get("rater") or "people").strip(), {})
        if key in by_rater:
            raise ManifestError(f"{location} repeats a label of the same rater", code="duplicate-label", got=key)
        by_rater[key] = score
    return dict(ratings)


def _mean_ratings(raters: Sequence[Ratings]) -> Ratings:
    keys = {key for ratings in raters for key in ratings}
    values = {key: [ratings[key] for ratings in raters if key in ratings] for key in keys}
    return {key: sum(scores) / len(scores) for key, scores in values.items()}
