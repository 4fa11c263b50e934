"""Comparison of two runs: paired differences with intervals, tests and detectable differences."""

from math import isnan

from kiwi import console
from kiwi.bench.options import CompareOptions
from kiwi.bench.run_folder import BenchmarkRun, read_run
from kiwi.bench.scoring import paired_differences
from kiwi.errors import InputError
from kiwi.media.files import write_text
from kiwi.statistics.paired import holm, items_needed
from kiwi.tables import Table


def compare_runs(options: CompareOptions) -> Table:
    """Compute the differences B - A, overall and by column, and write the table to `options.out`.

    Raises:
        InputError: a folder is not a finished run, or the runs are not comparable.
    """
    a, b = read_run(options.a), read_run(options.b)
    _require_comparable(a, b)
    differences = paired_differences(a.suite, a.scored, b.scored, "capped" if options.capped else "raw")
    shared = {score.item.id for score in a.scored} & {score.item.id for score in b.scored}
    coverage = f"{len(shared)} of {len(a.items)}"
    needed = None
    if options.allow_partial or len(shared) == len(a.items):
        needed = items_needed(differences["overall"], 0.1, len(shared))
    else:
        console.print(f"Warning: only {coverage} items have a score in both runs, so there is no overall difference.")
        del differences["overall"]
    columns = [name for name in differences if name != "overall"]
    corrected = dict(zip(columns, holm([differences[name].p for name in columns]), strict=True))
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


def _require_comparable(a: BenchmarkRun, b: BenchmarkRun) -> None:
    """Raise an InputError if scores are on different scales, such as those of different judges."""
    names = {
        "name": "benchmark",
        "items": "items",
        "judge": "judge",
        "version": "judge's version",
        "rubrics": "rubrics",
    }
    for field, name in names.items():
        first, second = getattr(a.identity, field), getattr(b.identity, field)
        if first != second:
            got = None if field in ("items", "rubrics") else f"{first} and {second}"
            raise InputError(f"runs with different {name} are not comparable", code="not-comparable", got=got)
