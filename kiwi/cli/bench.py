"""`python -m kiwi bench`: score an editor or edited videos on a benchmark, and compare and check the scores."""

from kiwi import bench, console
from kiwi.bench.options import (
    AgreementOptions,
    BenchmarkOptions,
    CompareOptions,
    ImportRubricsOptions,
    ShowRubricsOptions,
)
from kiwi.bench.rubric import read_builtin_rubrics
from kiwi.bench.suites import SUITES, read_suite
from kiwi.cli import Action, dispatch
from kiwi.tables import Table

_DESCRIPTION = "Score an editor, or already edited videos, on a benchmark, with confidence intervals."


def main(argv: list[str]) -> int:
    """Run one of the actions."""
    return dispatch(ACTIONS, argv[0], _DESCRIPTION, argv[1:])


def _run(options: BenchmarkOptions) -> int:
    from kiwi.bench.report import print_report

    report = bench.run_benchmark(options)
    if report is None:
        return 0
    print_report(report)
    return 0 if report.is_success else 1


def _print(table: Table) -> int:
    console.table(table)
    return 0


def _show_rubrics(options: ShowRubricsOptions) -> int:
    for rubric in read_builtin_rubrics(read_suite(options.suite)).values():
        console.print(f"--- {rubric.category} ({rubric.hash}) ---\n{rubric.text}")
    return 0


def _import_rubrics(options: ImportRubricsOptions) -> int:
    file = bench.import_rubrics(options)
    console.print(f"wrote the official rubrics to {file}; use them with --rubrics {file}")
    return 0


ACTIONS = {
    **{
        name: Action(BenchmarkOptions, _run, {"suite": name}, f"Score an editor, or already edited videos, on {name}")
        for name in SUITES
    },
    "compare": Action(CompareOptions, lambda options: _print(bench.compare_runs(options))),
    "agreement": Action(AgreementOptions, lambda options: _print(bench.measure_agreement(options))),
    "rubrics import": Action(ImportRubricsOptions, _import_rubrics),
    "rubrics show": Action(ShowRubricsOptions, _show_rubrics),
}
