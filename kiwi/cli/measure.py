"""`python -m kiwi sandbox measure`: scores of an editor on items that it was not trained on."""

from __future__ import annotations

from kiwi import console
from kiwi.evaluation.options import SandboxMeasureOptions


def run(options: SandboxMeasureOptions) -> int:
    """Measure and print the tables."""
    from kiwi.evaluation.sandbox_measure import measure_editor

    for name, table in measure_editor(options).items():
        # Without the column `items`, which the next table has, the table of fidelity fits into 80 characters.
        keep = [i for i, column in enumerate(table.header) if name != "fidelity" or column != "items"]
        rows = [[row[i] for i in keep] for row in table.rows]
        console.table(table.title, [table.header[i] for i in keep], rows, table.note)
    console.print(f"{options.items} items; tables, edits.png and scores of each item (items.jsonl) in {options.out}")
    return 0
