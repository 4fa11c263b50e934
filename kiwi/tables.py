"""Tables as text: Markdown, CSV and LaTeX (booktabs). What stands in a terminal is kiwi.console's."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\n": " ",
}  # fmt: skip
_BEYOND, _KNOWN = "\u0180", "\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u20ac"
"""Where what the T1 encoding of fonts can hold ends, and what it holds beyond."""

_NUMBER = re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?( ?\S{1,3})?", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """Rows under a header; cells are written as `str` says them.

    Args:
        title: what the table tells.
        header: names of the columns.
        rows: as many cells as columns each.
        note: what a reader has to know, below the table.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def markdown(self) -> str:
        """As GitHub's Markdown reads it, title and note included."""
        rules = ["---:" if numeric else "---" for numeric in self._numeric()]
        lines = [self.header, rules, *self._cells()]
        body = "\n".join("| " + " | ".join(_markdown(cell) for cell in line) + " |" for line in lines)
        parts = (f"**{escape_html(self.title)}**" if self.title else "", body, escape_html(self.note))
        return "\n\n".join(part for part in parts if part) + "\n"

    def csv(self) -> str:
        """Header and rows alone."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self._cells()])
        return text.getvalue()

    def latex(self) -> str:
        """A `table` with booktabs' rules, no wider than the line (graphicx); all text is escaped."""
        columns = "".join("r" if numeric else "l" for numeric in self._numeric())
        head, *body = (" & ".join(map(escape_latex, line)) + r" \\" for line in (self.header, *self._cells()))
        caption = [rf"\caption{{{escape_latex('. '.join(part for part in (self.title, self.note) if part))}}}"]
        return "\n".join(
            [
                r"\begin{table}[ht]", r"\centering", *(caption if self.title or self.note else []),
                r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule",
                r"\end{tabular}}", r"\end{table}", "",
            ]
        )  # fmt: skip

    def _cells(self) -> list[list[str]]:
        return [[str(cell) for cell in row] for row in self.rows]

    def _numeric(self) -> list[bool]:
        """Columns of numbers alone (a unit may follow), which are set to the right."""
        cells = self._cells()
        return [
            bool(cells) and all(_NUMBER.fullmatch(row[at]) or not row[at] for row in cells)
            for at in range(len(self.header))
        ]


def _markdown(cell: str) -> str:
    return escape_html(cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " "))


def escape_html(text: str) -> str:
    """Text in which Markdown finds no HTML."""
    return text.replace("<", "&lt;")


def latex_document(tables: Iterable[Table], before: Iterable[str] = ()) -> str:
    """Tables as a document of its own, lines of LaTeX before them."""
    return "\n".join(
        [
            r"\documentclass{article}", r"\usepackage[utf8]{inputenc}", r"\usepackage[T1]{fontenc}",
            r"\usepackage{booktabs}", r"\usepackage{graphicx}", r"\usepackage[landscape,margin=1cm]{geometry}",
            r"\begin{document}", r"\small", *before, *(table.latex() for table in tables), r"\end{document}", "",
        ]
    )  # fmt: skip


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is; letters that its Latin fonts do not have become question marks."""
    return "".join(_LATEX.get(char, char if char < _BEYOND or char in _KNOWN else "?") for char in text)
