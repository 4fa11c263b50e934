"""`python -m kiwi bench compare | agreement`: what the difference of two runs is worth, and a judge's word."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi import console
from kiwi.errors import InputError, ManifestError
from kiwi.media.files import require_file, write_text
from kiwi.tables import Table

if TYPE_CHECKING:
    from kiwi.bench.folder import Run

Rater = Mapping[tuple[str, str], float]
"""A score by item and dimension."""


def compare_options(options: argparse.ArgumentParser) -> None:
    """What `compare` takes."""
    options.add_argument("one", type=Path, metavar="A", help="folder of a run")
    options.add_argument("other", type=Path, metavar="B", help="folder of another, on the same benchmark by one judge")
    options.add_argument("--capped", action="store_true", help="compare capped scores (default: raw)")
    options.add_argument("--out", type=Path, help="Markdown file to write the table to")


def compare(options: argparse.Namespace) -> int:
    """B less A."""
    from kiwi.bench.folder import read_run
    from kiwi.bench.scoring import compare as differences
    from kiwi.statistics.paired import holm, items_needed

    one, other = read_run(options.one), read_run(options.other)
    _require_alike(one, other)
    found = differences(one.suite, one.scores(), other.scores(), "capped" if options.capped else "raw")
    columns = [name for name in found if name != "overall"]
    corrected = dict(zip(columns, holm([found[name].p for name in columns]), strict=True))
    rows = [
        (
            name,
            of.items,
            f"{of.mean.mean:+.2f}",
            f"[{of.mean.low:+.2f}, {of.mean.high:+.2f}]",
            f"{of.p:.4f}",
            f"{corrected[name]:.4f}" if name in corrected else "",
            f"{of.detectable:.2f}",
        )
        for name, of in found.items()
    ]
    overall = found["overall"]
    table = Table(
        f"{one.suite.title}: {other.identity.title} less {one.identity.title}, judged by {one.identity.judge}",
        ("", "items", "difference", "95%", "p", "p, Holm", "detectable"),
        rows,
        f"Items that both have a score of, paired ({overall.items} numbers); p of a two-sided permutation test over "
        "source videos; detectable: what this number of items finds with "
        "probability 0.8. A difference of 0.1 overall would take "
        f"{items_needed(overall, 0.1)} like these.",
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
    from kiwi.bench.folder import read_run
    from kiwi.statistics.agreement import krippendorff_alpha, spearman, weighted_kappa

    raters: dict[str, Rater] = {}
    for run in map(read_run, options.runs):
        name = run.identity.judge if run.identity.judge not in raters else f"{run.identity.judge}, {run.folder.name}"
        raters[name] = {(item.case.id, key): value for item in run.scores() for key, value in item.raw.items()}
    if options.labels:
        people = _labels(options.labels)
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
    console.table(table.title, table.header, table.rows)
    console.note(table.note)
    if out:
        write_text(out, table.markdown())


def _require_alike(one: Run, other: Run) -> None:
    """Judges are never pooled: another judge shifts the scale."""
    for what in ("name", "judge", "version", "rubrics"):
        first, second = getattr(one.identity, what), getattr(other.identity, what)
        if first != second:
            raise InputError(
                f"runs of another {'benchmark' if what == 'name' else what} are not comparable",
                got=f"{first} and {second}" if what != "rubrics" else "other rubrics",
                wanted="the same benchmark, judge, version and rubrics",
            )


def _labels(file: Path) -> dict[str, Rater]:
    """What people gave, by rater."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    lines = require_file(file, what="file of labels").read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(csv.DictReader(lines), 2):
        try:
            score = float(line["score"])
            key = (line["item"].strip(), line["dimension"].strip())
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ManifestError(f"{file} line {number} is no label", wanted="item, dimension, score, rater") from None
        if not 1 <= score <= 5:
            raise ManifestError(f"{file} line {number} has a score out of range", got=line["score"], wanted="1 to 5")
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
