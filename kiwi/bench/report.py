"""Reports: a run's results for the terminal, Markdown, LaTeX and CSV. No number without its number of items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kiwi import console
from kiwi.bench.controls import SIGNIFICANCE, ControlResult
from kiwi.bench.scoring import SCORE_KINDS, BenchmarkResult, ItemScore
from kiwi.bench.suites import PublishedRow, Suite
from kiwi.statistics.paired import Difference
from kiwi.tables import Table, escape_html, escape_latex, latex_document


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """Results of a run, and what is needed to judge them.

    Args:
        suite, title: the benchmark, and a name for the editor.
        judge, version: as the ledger has them.
        rubrics: their origin, "own" or "official".
        result: the table.
        scored: the items with a score.
        controls, drift: of the judge; empty and None if they were not asked for.
        published: rows to print beside the result.
        excluded: number of items of the data that are not scored, by category.
        allow_partial: report an overall score even if items are missing.
        metrics: table of metrics beside the judge's scores; None if there are none.
        unscored_controls: kinds of controls without any score, each with the reason.
        answers: for the items with a score, how many answers there are, and how many there should be.
        judge_note: a remark on the judge.
        folder: of the run.
    """

    suite: Suite
    title: str
    judge: str
    version: str
    rubrics: str
    result: BenchmarkResult
    scored: Sequence[ItemScore]
    controls: Sequence[ControlResult]
    drift: Difference | None
    published: Sequence[PublishedRow]
    excluded: Mapping[str, int]
    allow_partial: bool
    metrics: Table | None = None
    unscored_controls: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[int, int] = (0, 0)
    judge_note: str = ""
    folder: Path = Path()

    @property
    def has_overall(self) -> bool:
        """Whether an overall score may be reported."""
        return self.result.raw is not None and (self.result.is_complete or self.allow_partial)

    @property
    def is_success(self) -> bool:
        """Whether all answers are there; if partial results are allowed, whether there is any score."""
        is_complete = self.result.is_complete and self.answers[0] == self.answers[1]
        return is_complete or (self.allow_partial and bool(self.scored))


def warnings(report: BenchmarkReport) -> list[str]:
    """What limits the use of the scores."""
    result, texts = report.result, []
    if not result.is_complete:
        missing = f"{result.total - result.scored} of {result.total} items have no score"
        effect = "the overall score is that of the others" if report.has_overall else "so there is no overall score"
        texts.append(f"{missing}, {effect}.")
    if report.suite.expected_items and result.total != report.suite.expected_items:
        texts.append(
            f"The data has {result.total} scored items, {report.suite.title} {report.suite.expected_items}: "
            "scores on different items are not comparable."
        )
    if report.unscored_controls and not report.controls:
        texts.append("No control has a score, so it is unknown whether this judge can tell good edits from bad ones.")
    if report.answers[0] < report.answers[1]:
        missing = f"{report.answers[1] - report.answers[0]} of {report.answers[1]} answers"
        texts.append(f"Items with a score lack {missing}: some scores are the median of fewer repeats than others.")
    for control in report.controls:
        if not control.is_passed and not control.is_inconclusive:
            texts.append(
                f"The control '{control.kind}' does not score below the real edits ({control.control} against "
                f"{control.edit}, {control.items} items): the scores of this judge are not reliable."
            )
    if report.drift is not None and report.drift.p < SIGNIFICANCE:
        texts.append(
            f"The judge has drifted: {report.drift.items} items that it judged before now score {report.drift.mean} "
            "relative to their first score."
        )
    return texts


def headline(report: BenchmarkReport) -> str:
    """The overall score and its number of items, in a line."""
    items = f"{report.result.scored} of {report.result.total} items"
    if not report.has_overall:
        return f"No overall score: {items} have a score."
    return f"Overall {report.result.raw} (raw), {report.result.capped} (capped), {items}."


def notes(report: BenchmarkReport) -> list[str]:
    """How the scores were obtained, for below the table."""
    result, version = report.result, ", ".join(filter(None, (report.version, report.judge_note)))
    origin = "built-in" if report.rubrics == "own" else report.rubrics
    texts = [
        f"Judge: {report.judge} ({version}), {origin} rubrics. Coverage: {result.scored} of {result.total} items. "
        "Means with 95% confidence intervals (bootstrap over source videos, stratified by category); an item's score "
        "is the median of its repeats.",
        "raw: as the judge gave them, as in the published tables; capped: no score of an item above its first, as the "
        "rubrics demand.",
    ]
    for category, count in report.excluded.items():
        texts.append(f"Not scored: {count} of {category} ({report.suite.excluded[category]}).")
    if result.repeat_std is not None and result.flip_rate is not None:
        texts.append(
            f"Repeated answers of the judge differ for {result.flip_rate:.0%} of the questions (standard deviation "
            f"{result.repeat_std:.2f})."
        )
    texts += [f"The control '{kind}' has no score: {reason}." for kind, reason in report.unscored_controls.items()]
    if report.drift is not None:
        texts.append(f"Anchors: {report.drift.items} items judged again, {report.drift.mean} from their first score.")
    texts += [f"Doubtful published row: {row.method} ({row.doubt})." for row in report.published if row.doubt]
    if any(row.judge != report.judge for row in report.published):
        texts.append("Published rows were scored by a different judge: they are not comparable with this run.")
    return texts


def main_table(report: BenchmarkReport) -> Table:
    """The published table with rows for this run, raw and capped."""
    result, columns = report.result, report.result.columns
    header = ["method", "judge", "overall", *(column.name for column in columns)]
    coverage = "" if result.is_complete else f", {result.scored} of {result.total}"
    rows: list[Sequence[object]] = []
    for kind in SCORE_KINDS:
        overall = getattr(result, kind) if report.has_overall else None
        cells = [_cell(value) for value in (overall, *(getattr(column, kind) for column in columns))]
        rows.append([f"{report.title} ({kind}{coverage})", report.judge, *cells])
    for row in report.published:
        mark = "*" if row.doubt else ""
        values = [f"{row.columns[column.name]:.2f}" for column in columns if column.name in row.columns]
        if len(values) == len(columns):
            rows.append([f"{row.method}{mark} (published)", row.judge, f"{row.overall:.2f}", *values])
    return Table(f"{report.suite.title}: scores from 1 to 5", header, rows, " ".join(notes(report)))


def column_table(report: BenchmarkReport) -> Table:
    """A row for each column: narrow enough for a terminal."""
    result = report.result
    rows: list[Sequence[object]] = [
        (column.name, f"{column.scored} of {column.total}", _cell(column.raw), _cell(column.capped))
        for column in result.columns
    ]
    overall = [_cell(value if report.has_overall else None) for value in (result.raw, result.capped)]
    rows.append(("overall", f"{result.scored} of {result.total}", *overall))
    title = f"{report.suite.title}: {report.title}, judged by {report.judge}"
    return Table(title, ("", "items", "raw", "capped"), rows)


def controls_table(controls: Iterable[ControlResult]) -> Table:
    """Controls beside the real edits of the same items."""
    rows = [
        (result.kind, result.items, str(result.control), str(result.edit), str(result.margin.mean),
         f"{result.margin.p:.3f}", "yes" if result.is_passed else "too few" if result.is_inconclusive else "NO")
        for result in controls
    ]  # fmt: skip
    return Table(
        "Controls: edits that are known to be bad, and the real edits of the same items (capped)",
        ("control", "items", "control's score", "real edit's score", "difference", "p", "passed"),
        rows,
        "Means with 95% confidence intervals; p of a paired permutation test; too few: with so few items p cannot be "
        f"below {SIGNIFICANCE}.",
    )


def items_table(scored: Iterable[ItemScore]) -> Table:
    """A row for each item and dimension."""
    rows = [
        (score.item.id, score.item.category, name, score.raw[name], score.capped[name], score.repeats)
        for score in scored
        for name in score.raw
    ]
    return Table("", ("item", "category", "dimension", "raw", "capped", "repeats"), rows)


def markdown(report: BenchmarkReport) -> str:
    """report.md: warnings on top, then the tables."""
    parts = [escape_html(f"# {report.suite.title}: {report.title}")]
    parts += [f"**Warning.** {escape_html(text)}" for text in warnings(report)]
    parts += [table.to_markdown() for table in (main_table(report), *_further_tables(report))]
    if report.result.unscored:
        unscored = Table("Items without a score", ("item", "reason"), sorted(report.result.unscored.items()))
        parts.append(unscored.to_markdown())
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def latex(report: BenchmarkReport) -> str:
    """report.tex: a complete document with the same tables (booktabs), except for the items without a score, which can
    be more than fit on a page.
    """
    texts = [rf"\textbf{{Warning.}} {escape_latex(warning)}" for warning in warnings(report)]
    return latex_document(
        [main_table(report), *_further_tables(report)], leading_lines=["\n".join([text, ""]) for text in texts]
    )


def print_report(report: BenchmarkReport) -> None:
    """Print the tables to stdout, with notes and warnings, and the names of the files that were written."""
    for table in (column_table(report), *_further_tables(report)):
        console.table(table.title, table.header, table.rows, table.note)
    for line in notes(report):
        console.note(line)
    for warning in warnings(report):
        console.print(f"Warning: {warning}")
    files = ("report.md", "report.tex", "scores.csv", "gallery.html", "judgements.jsonl")
    console.print(f"{report.folder}: {', '.join(name for name in files if (report.folder / name).is_file())}")


def _further_tables(report: BenchmarkReport) -> list[Table]:
    tables = [controls_table(report.controls)] if report.controls else []
    return tables if report.metrics is None else [*tables, report.metrics]


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
