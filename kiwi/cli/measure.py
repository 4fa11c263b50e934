"""`python -m kiwi sandbox measure`: scores of an editor on items that it was not trained on."""

from __future__ import annotations

from kiwi import console
from kiwi.evaluation.options import SandboxMeasureOptions


def run(options: SandboxMeasureOptions) -> int:
    """Measure and print the tables."""
    from kiwi.evaluation.sandbox_measure import measure_editor, print_tables

    print_tables(measure_editor(options))
    console.print(f"{options.items} items; tables, edits.png and scores of each item (items.jsonl) in {options.out}")
    return 0
