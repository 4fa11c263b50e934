"""`python -m kiwi sandbox ACTION`: export or preview the sandbox, check its oracle, evaluate an editor."""

from kiwi import console
from kiwi.cli import Action, dispatch
from kiwi.evaluation.options import AnchorOptions, SandboxMeasureOptions
from kiwi.sandbox.export import PreviewOptions, SandboxExportOptions, export_sandbox, write_preview
from kiwi.training.vocabulary import VocabularyOptions, learn_vocabulary


def main(argv: list[str]) -> int:
    """Run one of the actions and return its exit code."""
    return dispatch(ACTIONS, argv[0], "The sandbox: a rendered world of video edits with exact targets.", argv[1:])


def _export(options: SandboxExportOptions) -> int:
    manifests = ", ".join(f"{name} ({rows})" for name, rows in export_sandbox(options).items())
    console.print(f"Exported {options.items} items to {options.out}: {manifests}")
    return 0


def _preview(options: PreviewOptions) -> int:
    write_preview(options)
    console.print(f"Wrote a preview of {options.items} items to {options.out}")
    return 0


def _check_anchors(options: AnchorOptions) -> int:
    from kiwi.evaluation.anchors import check_anchors

    report = check_anchors(options)
    for name in ("anchors", "round_trip"):
        if (table := report.tables.get(name)) is not None:
            console.table(table)
    console.print(f"Scored {options.items} items. The tables, damage.png and damage.pdf are in {options.out}")
    return 0 if report.passed else 1


def _measure(options: SandboxMeasureOptions) -> int:
    from kiwi.evaluation.sandbox_measure import measure_editor, print_tables

    print_tables(measure_editor(options))
    console.print(f"Scored {options.items} items. Tables, edits.png and items.jsonl (scores) are in {options.out}")
    return 0


def _learn_vocabulary(options: VocabularyOptions) -> int:
    console.print(f"Wrote a vocabulary of {learn_vocabulary(options)} tokens to {options.out}")
    return 0


ACTIONS = {
    "export": Action(SandboxExportOptions, _export),
    "preview": Action(PreviewOptions, _preview),
    "anchors": Action(AnchorOptions, _check_anchors),
    "measure": Action(SandboxMeasureOptions, _measure),
    "vocabulary": Action(VocabularyOptions, _learn_vocabulary),
}
