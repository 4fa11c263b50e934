"""`python -m kiwi bench compare | agreement`: what the difference of two runs is worth, and a judge's word."""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi import console
from kiwi.errors import InputError, ManifestError
from kiwi.media.files import require_file, write_text
from kiwi.tables import Table

if TYPE_CHECKING:
    from kiwi.bench.run_folder import Run

Rater = Mapping[tuple[str, str], float]
"""A score by item and dimension."""


def compare_options(options: argparse.ArgumentParser) -> None:
    """What `compare` takes."""
    options.add_argument("one", type=Path, metavar="A", help="folder of a run")
    options.add_argument("other", type=Path, metavar="B", help="folder of another, on the same benchmark by one judge")
    options.add_argument("--capped", action="store_true", help="compare capped scores (default: raw)")
    options.add_argument(
        "--allow-partial", action="store_true", help="an overall difference although items are missing"
    )
    options.add_argument("--out", type=Path, help="Markdown file to write the table to")


def compare(options: argparse.Namespace) -> int:
    """B less A."""
    from kiwi.bench.run_folder import read_run
    from kiwi.bench.scoring import compare as differences
    from kiwi.statistics.paired import holm, items_needed

    one, other = read_run(options.one), read_run(options.other)
    _require_alike(one, other)
    found = differences(one.suite, one.scored, other.scored, "capped" if options.capped else "raw")
    both = {item.case.id for item in one.scored} & {item.case.id for item in other.scored}
    of = f"{len(both)} of {len(one.cases)}"
    if not (shown := options.allow_partial or len(both) == len(one.cases)):
        console.print(f"Warning: both runs have a score of {of} items only, so there is no overall difference.")
        del found["overall"]
    columns = [name for name in found if name != "overall"]
    corrected = dict(zip(columns, holm([found[name].p for name in columns]), strict=True))
    rows = [
        (
            name,
            len(both) if name == "overall" else value.items,
            f"{value.mean.mean:+.2f}",
            "-" if math.isnan(value.mean.low) else f"[{value.mean.low:+.2f}, {value.mean.high:+.2f}]",
            f"{value.p:.4f}",
            f"{corrected[name]:.4f}" if name in corrected else "",
            _number(value.detectable),
        )
        for name, value in found.items()
    ]
    needed = items_needed(found["overall"], 0.1, len(both)) if shown else None
    table = Table(
        f"{one.suite.title}: {other.identity.title} less {one.identity.title}, judged by {one.identity.judge}",
        ("", "items", "difference", "95%", "p", "p, Holm", "detectable"),
        rows,
        f"Items that both have a score of, paired ({of}); p of a two-sided permutation test over source videos; "
        "detectable: what this number of items finds with probability 0.8; -: too few items to tell."
        + ("" if needed is None else f" A difference of 0.1 overall would take {needed} items like these."),
    )
    _tell(table, options.out)
    return 0


def agreement_options(options: argparse.ArgumentParser) -> None:
    """What `agreement` takes."""
    options.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs on the same videos")
    options.add_argument(
        "--labels", type=Path, help="CSV with the columns item, dimension, score and, for several people, rater"
    )
    options.add_argument("--out", type=Path, help="Markdown file to write the table to")


def agreement(options: argparse.Namespace) -> int:
    """Of every two raters, and of all."""
    from kiwi.bench.run_folder import read_run
    from kiwi.statistics.agreement import krippendorff_alpha, spearman, weighted_kappa

    raters: dict[str, Rater] = {}
    people: dict[str, Rater] = {}
    for run in map(read_run, options.runs):
        name = run.identity.judge if run.identity.judge not in raters else f"{run.identity.judge}, {run.folder}"
        if name in raters:
            raise InputError("a run is given twice", got=run.folder)
        raters[name] = {(item.case.id, key): value for item in run.scored for key, value in item.raw.items()}
    if options.labels:
        people = _labels(options.labels, {key for scores in raters.values() for key in scores})
        if same := raters.keys() & people.keys():
            raise InputError(f"{options.labels} has a rater who is called as a judge is", got=", ".join(sorted(same)))
        raters |= people
        if len(people) > 1:
            raters["people, mean"] = _mean(list(people.values()))
    if len(raters) < 2:
        raise InputError(
            "agreement is between two raters at least", got=", ".join(raters), wanted="another RUN, or --labels"
        )
    names, rows = list(raters), []
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            if second == "people, mean" and first in people:
                continue  # who is part of a mean agrees with it
            shared = sorted(raters[first].keys() & raters[second].keys())
            a, b = ([raters[name][key] for key in shared] for name in (first, second))
            values = (weighted_kappa(a, b), spearman(a, b), krippendorff_alpha([a, b], "ordinal"))
            shift = sum(b) / len(b) - sum(a) / len(a) if shared else math.nan
            rows.append((first, second, len(shared), *(_number(value) for value in (*values, shift))))
    table = Table(
        "Agreement: scores that both raters gave",
        ("rater", "rater", "scores", "kappa", "rank correlation", "alpha", "shift"),
        rows,
        "kappa: Cohen's, quadratic weights; rank correlation: Spearman's; alpha: Krippendorff's, ordinal; shift: the "
        "second rater's mean less the first's.",
    )
    _tell(table, options.out)
    return 0


def _tell(table: Table, out: Path | None) -> None:
    console.table(table.title, table.header, table.rows, table.note)
    if out:
        write_text(out, table.markdown())


def _require_alike(one: Run, other: Run) -> None:
    """Judges are never pooled: another judge shifts the scale."""
    for what in ("name", "items", "judge", "version", "rubrics"):
        first, second = getattr(one.identity, what), getattr(other.identity, what)
        if first != second:
            raise InputError(
                f"runs of {'another' if what != 'items' else 'other'} {'benchmark' if what == 'name' else what} "
                "are not comparable",
                got=f"{first} and {second}" if what not in ("rubrics", "items") else f"other {what}",
                wanted="the same benchmark, items, judge, version and rubrics",
            )


def _labels(file: Path, known: Collection[tuple[str, str]]) -> dict[str, Rater]:
    """What people gave, by rater.

    Raises:
        ManifestError: a file that cannot be read or is empty, a line that is no label or is about something else than
            the runs are.
    """
    found: dict[str, dict[tuple[str, str], float]] = {}
    try:
        text = require_file(file, what="file of labels").read_text(encoding="utf-8-sig")
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
    except (ValueError, csv.Error) as problem:
        raise ManifestError(f"{file} cannot be read", got=problem, wanted="a CSV file in UTF-8") from None
    if not lines:
        raise ManifestError(f"{file} has no labels", wanted="lines with item, dimension, score and, if you like, rater")
    for number, line in enumerate(lines, 2):
        try:
            score = float(line["score"])
            key = (line["item"].strip(), line["dimension"].strip())
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ManifestError(f"{file} line {number} is no label", wanted="item, dimension, score, rater") from None
        if not 1 <= score <= 5:
            raise ManifestError(f"{file} line {number} has a score out of range", got=line["score"], wanted="1 to 5")
        if key not in known:
            names = sorted({name for _, name in known})
            raise ManifestError(
                f"{file} line {number} is of nothing that the runs scored",
                got=", ".join(key),
                wanted=f"an item's name as in scores.csv, and one of {', '.join(names)}",
            )
        given = found.setdefault((line.get("rater") or "people").strip(), {})
        if key in given:
            raise ManifestError(f"{file} line {number} gives {', '.join(key)} again", fix="one line a rater")
        given[key] = score
    return dict(found)


def _mean(raters: Sequence[Rater]) -> Rater:
    keys = {key for rater in raters for key in rater}
    held = {key: [rater[key] for rater in raters if key in rater] for key in keys}
    return {key: sum(values) / len(values) for key, values in held.items()}


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
