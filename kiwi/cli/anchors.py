"""`python -m kiwi sandbox anchors`: the oracle on edits whose scores are known."""

from __future__ import annotations

from kiwi import console
from kiwi.evaluation.options import AnchorOptions


def run(options: AnchorOptions) -> int:
    """Score the anchors and print the tables; 1 if one of them fails."""
    from kiwi.evaluation.anchors import check_anchors

    report = check_anchors(options)
    for name in ("anchors", "round_trip"):
        if (table := report.tables.get(name)) is not None:
            console.table(table.title, table.header, table.rows, table.note)
    console.print(f"{options.items} items; tables, damage.png and damage.pdf in {options.out}")
    return 0 if report.passed else 1
