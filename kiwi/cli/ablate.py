"""`python -m kiwi ablate STUDY.yaml`: train and evaluate arms (variants of an editor) with several seeds."""

from kiwi import console
from kiwi.ablation import AblateOptions, run_study
from kiwi.cli import parse


def main(argv: list[str]) -> int:
    """Run a study and print its primary metric; the exit code is 1 if runs are missing."""
    options = parse(AblateOptions, argv[0], argv[1:])
    report = run_study(options)
    if report.table is not None:
        console.table(report.table)
    if options.dry_run:
        return 0
    for line in report.missing:
        console.note(f"not in the table: {line}")
    written = "table.md, table.csv, table.tex, analysis.json, figures/" if report.table else "no results yet"
    console.print(f"{options.folder}: {written}")
    return 1 if report.missing else 0
