"""Tables as Markdown, CSV and LaTeX text; kiwi.console prints tables on the terminal."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LATEX_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\n": " ",
}  # fmt: skip
_T1_END, _T1_EXTRA = "\u0180", "\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u20ac"
"""The first character beyond LaTeX's T1 font encoding, and the later characters that it still contains."""

_NUMBER = re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?( ?\S{1,3})?", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """Rows under a header; cells are formatted with `str`.

    Args:
        title: text above the table; empty for none.
        header: column names.
        rows: each has one cell per column.
        note: text below the table; empty for none.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def to_markdown(self) -> str:
        """Format the table in GitHub's Markdown, with title and note."""
        alignment = ["---:" if numeric else "---" for numeric in self.numeric_columns()]
        lines = [self.header, alignment, *self.cells()]
        body = "\n".join("| " + " | ".join(_escape_markdown_cell(cell) for cell in line) + " |" for line in lines)
        parts = (f"**{escape_html(self.title)}**" if self.title else "", body, escape_html(self.note))
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_csv(self) -> str:
        """Format the header and the rows as CSV, without title and note."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.cells()])
        return text.getvalue()

    def to_latex(self) -> str:
        """Format a LaTeX `table` with booktabs' rules, at most as wide as the line (graphicx); all text is escaped."""
        columns = "".join("r" if numeric else "l" for numeric in self.numeric_columns())
        head, *body = (" & ".join(map(escape_latex, line)) + r" \\" for line in (self.header, *self.cells()))
        caption = [rf"\caption{{{escape_latex('. '.join(part for part in (self.title, self.note) if part))}}}"]
        return "\n".join(
            [
                r"\begin{table}[ht]", r"\centering", *(caption if self.title or self.note else []),
                r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule",
                r"\end{tabular}}", r"\end{table}", "",
            ]
        )  # fmt: skip

    def cells(self) -> list[list[str]]:
        """The cells of the rows as text."""
        return [[str(cell) for cell in row] for row in self.rows]

    def numeric_columns(self) -> list[bool]:
        """For each column, whether its cells are all numbers, with or without a unit; these are right-aligned."""
        cells = self.cells()
        return [
            bool(cells) and all(_NUMBER.fullmatch(row[column]) or not row[column] for row in cells)
            for column in range(len(self.header))
        ]


def _escape_markdown_cell(cell: str) -> str:
    return escape_html(cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " "))


def escape_html(text: str) -> str:
    """Escape `<`, so that Markdown shows tags as text instead of rendering them."""
    return text.replace("<", "&lt;")


def latex_document(tables: Iterable[Table], leading_lines: Iterable[str] = ()) -> str:
    """Format a complete LaTeX document: `leading_lines` (LaTeX code), then the tables."""
    return "\n".join(
        [
            r"\documentclass{article}", r"\usepackage[utf8]{inputenc}", r"\usepackage[T1]{fontenc}",
            r"\usepackage{booktabs}", r"\usepackage{graphicx}", r"\usepackage[landscape,margin=1cm]{geometry}",
            r"\begin{document}", r"\small", *leading_lines, *(table.to_latex() for table in tables),
            r"\end{document}", "",
        ]
    )  # fmt: skip


def escape_latex(text: str) -> str:
    """Escape text for LaTeX; characters that its Latin fonts lack become question marks."""
    return "".join(_LATEX_ESCAPES.get(char, char if char < _T1_END or char in _T1_EXTRA else "?") for char in text)
