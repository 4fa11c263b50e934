"""`python -m kiwi bench ...`: score an editor, or finished videos, on a benchmark; compare runs; read rubrics in."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from kiwi import console
from kiwi.bench.suites import SUITES
from kiwi.cli import bench_compare, bench_inputs, bench_run, parser

_DESCRIPTION = """Score an editor, or anyone's edited videos, on a benchmark, and tell how sure the scores are."""

_RUN = """Generate the edited videos that are missing, have each judged, and write the table, with intervals.
What was cut off is gone on with by the same command."""


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read a command line; `argv[0]` is the command's own name. Raises InputError for what it does not take."""
    commands = parser(argv[0], _DESCRIPTION)
    actions = commands.add_subparsers(dest="action", required=True, metavar=" | ".join([*SUITES, *_OTHERS]))
    for suite in SUITES:
        bench_inputs.add_options(actions.add_parser(suite, help=f"run the benchmark {suite}", description=_RUN), suite)
    for name, (help_text, add_options, _) in _OTHERS.items():
        add_options(actions.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + "."))
    return commands.parse_args(argv[1:])


def main(argv: list[str]) -> int:
    """Run one of the actions."""
    options = arguments(argv)
    if options.action in SUITES:
        return bench_run.run(options, options.action)
    return _OTHERS[options.action][2](options)


def _rubrics_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("do", choices=["import", "show"], help="import: the official ones; show: what a judge reads")
    options.add_argument("what", metavar="FILE.py|SUITE", help="the published script to read, or whose to show")
    options.add_argument("--suite", choices=SUITES, default="openve", help="whose rubrics the script holds")
    options.add_argument("--out", type=Path, help="file to write (import; default: SUITE-official.json)")


def _rubrics(options: argparse.Namespace) -> int:
    from kiwi.bench.rubric import official_rubrics, write_rubrics
    from kiwi.bench.suites import own_rubrics, read_suite

    if options.do == "show":
        for rubric in own_rubrics(options.what, read_suite(options.what)).values():
            console.print(f"--- {rubric.category} ({rubric.hash}) ---\n{rubric.text}")
        return 0
    suite = read_suite(options.suite)
    found = official_rubrics(Path(options.what), {name: of.dimensions for name, of in suite.categories.items()})
    out = options.out or Path(f"{options.suite}-official.json")
    write_rubrics(out, found)
    console.print(f"{out}: {len(found)} official rubrics ({', '.join(found)}); use them with --rubrics {out}")
    return 0


_OTHERS = {
    "compare": ("hold two runs against each other, item by item", bench_compare.compare_options, bench_compare.compare),
    "agreement": (
        "tell how far a judge agrees with people, or with another judge",
        bench_compare.agreement_options,
        bench_compare.agreement,
    ),
    "rubrics": ("read the official rubrics from a local copy, or show ours", _rubrics_options, _rubrics),
}
