"""Tables as Markdown, CSV and LaTeX text; kiwi.console prints tables on the terminal.

Cells hold texts of any origin, such as names of files and replies: one function for each format escapes them.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kiwi.printable import escape_controls, escape_line

_LATEX_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "*": "{*}",
}  # fmt: skip
_T1_END, _T1_EXTRA = "\u0180", "\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u20ac"
_T1_MISSING = "\u0126\u0127\u0138\u013f\u0140\u0149\u0166\u0167\u017f"
"""The first character beyond LaTeX's T1 font encoding, later ones that it contains, and earlier ones that it lacks."""

_SIGNED_NUMBER = re.compile(
    r"[+-]((\d[\d,]*\.?\d*|\.\d+)(e[+-]?\d+)?( ?[a-z%]{1,3})?|inf|nan)|-", re.IGNORECASE | re.ASCII
)
"""A number with or without a unit, or a dash for no value; a spreadsheet may read these although they start so."""

_FORMULA = re.compile(r"'*[=+@\t\r\n\uff1d\uff0b\uff20\uff0d-]")
"""Start of a cell that a spreadsheet would evaluate (some also if it is full-width), or of one that was escaped."""

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
        body = "\n".join("| " + " | ".join(map(escape_markdown, line)) + " |" for line in lines)
        parts = (f"**{escape_markdown(self.title)}**" if self.title else "", body, escape_markdown(self.note))
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_csv(self) -> str:
        """Format the header and the rows as CSV, without title and note; `escape_csv` is applied to every cell."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(map(escape_csv, line) for line in (self.header, *self.cells()))
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


def escape_markdown(text: str) -> str:
    """Escape text for one line of Markdown, in a table or outside: it cannot end a cell, hold a tag or make a link."""
    return escape_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")


def escape_csv(text: str) -> str:
    """Prefix a cell with `'` if a spreadsheet would read it as a formula; numbers are not changed."""
    if _FORMULA.match(text) and not _SIGNED_NUMBER.fullmatch(text):
        text = "'" + text
    return escape_controls(text)


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
    """Escape text for one line of LaTeX; characters that its Latin fonts lack become question marks."""
    has_glyph = {char: (char < _T1_END and char not in _T1_MISSING) or char in _T1_EXTRA for char in escape_line(text)}
    return "".join(_LATEX_ESCAPES.get(char, char if has_glyph[char] else "?") for char in escape_line(text))
