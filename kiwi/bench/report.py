"""Reports of a run for the terminal, Markdown, LaTeX and CSV. Every mean comes with its number of items."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kiwi import console
from kiwi.bench.controls import SIGNIFICANCE, ControlResult
from kiwi.bench.gallery import write_gallery
from kiwi.bench.run_folder import SCORES_FILE, RunIdentity, compute_row_checksum
from kiwi.bench.scoring import SCORE_KINDS, BenchmarkResult, ItemScore, JudgedTask
from kiwi.bench.suites import PublishedRow, Suite
from kiwi.media.files import write_text
from kiwi.media.journal import CHECKSUM
from kiwi.statistics.intervals import describe_single_items
from kiwi.statistics.paired import Difference
from kiwi.tables import Table, escape_csv, escape_latex, escape_markdown, latex_document
from kiwi.vlm.request import Usage

MAX_REASONS = 3
"""Number of reasons for missing scores in the warning; report.md has the reason of every item."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """Results of a run with everything that the reports print.

    Args:
        suite: the benchmark.
        identity: editor, judge and rubrics.
        result: overall scores and scores by column.
        scored: scores of the items that have one.
        controls: results of the controls, edits that are known to be bad; empty without controls.
        drift: change of the judge's scores of items that it judges again (anchors); None without anchors.
        published: rows of the published table.
        excluded: number of items that are not scored, by excluded category.
        allow_partial: whether to report an overall score even if items are missing.
        metrics: table of automatic metrics; None without `--metrics`.
        unscored_controls: reason for each kind of control without any score.
        answers, requested_answers: number of obtained and of requested answers for the items with a score.
        judge_note: remark on the judge.
        models: number of answers by each model that answered, as its provider names it.
        usage: tokens read and written for all judgements of the run.
        cost: dollars spent on all answers in the ledger, by the price table; None for a judge without a price.
        folder: folder of the run.
    """

    suite: Suite
    identity: RunIdentity
    result: BenchmarkResult
    scored: Sequence[ItemScore]
    controls: Sequence[ControlResult]
    drift: Difference | None
    published: Sequence[PublishedRow]
    excluded: Mapping[str, int]
    allow_partial: bool
    metrics: Table | None = None
    unscored_controls: Mapping[str, str] = field(default_factory=dict)
    answers: int = 0
    requested_answers: int = 0
    judge_note: str = ""
    models: Mapping[str, int] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    cost: float | None = None
    folder: Path = Path()

    @property
    def has_overall(self) -> bool:
        """Whether an overall score may be reported."""
        return self.result.raw is not None and (self.result.is_complete or self.allow_partial)

    @property
    def is_success(self) -> bool:
        """Whether all answers were obtained; if partial results are allowed, whether there is any score."""
        is_complete = self.result.is_complete and self.answers == self.requested_answers
        return is_complete or (self.allow_partial and bool(self.scored))


def list_warnings(report: BenchmarkReport) -> list[str]:
    """List the limitations of the scores, as sentences."""
    result, texts = report.result, []
    if not result.is_complete:
        missing = f"{result.total - result.scored} of {result.total} items have no score"
        withheld = "so there is no overall score (--allow-partial reports one for the other items)"
        effect = "the overall score leaves them out" if report.has_overall else withheld
        reasons = Counter(result.unscored.values()).most_common(MAX_REASONS)
        listed = "; ".join(f"{reason.rstrip('.')} ({count})" for reason, count in reasons)
        texts.append(f"{missing}, {effect}. Most common reasons: {listed}.")
    if report.suite.expected_items and result.total != report.suite.expected_items:
        texts.append(
            f"The data has {result.total} items to score instead of the {report.suite.expected_items} of "
            f"{report.suite.title}: scores on different items are not comparable."
        )
    if single := describe_single_items({column.name: column.scored for column in result.columns}):
        texts.append(single)
    if report.unscored_controls and not report.controls:
        texts.append("No control has a score, so it is unknown whether this judge can tell good from bad edits.")
    if lost := report.requested_answers - report.answers:
        missing = f"{lost} of {report.requested_answers} answers are missing"
        texts.append(f"For the items with a score, {missing}: some scores are the median of fewer repeats.")
    for control in report.controls:
        if not control.is_passed and not control.is_inconclusive:
            texts.append(
                f"The control '{control.kind}' does not score below the real edits ({control.control} against "
                f"{control.edit}, {control.items} items): the scores of this judge are not reliable."
            )
    if len(report.models) > 1:
        texts.append(f"The judge's answers come from different models ({', '.join(sorted(report.models))}).")
    if (drift := report.drift) is not None and drift.p < SIGNIFICANCE:
        texts.append(f"The judge has drifted: scores of {drift.items} items judged again changed by {drift.interval}.")
    return texts


def format_headline(report: BenchmarkReport) -> str:
    """Format the overall score and its number of items as one line."""
    items = f"{report.result.scored} of {report.result.total} items"
    if not report.has_overall:
        return f"No overall score: {items} have a score."
    return f"Overall {report.result.raw} (raw), {report.result.capped} (capped), {items}."


def list_notes(report: BenchmarkReport) -> list[str]:
    """List notes on how the scores were obtained, as sentences for below the table."""
    result, judge = report.result, report.identity.judge
    version = ", ".join(filter(None, (report.identity.version, report.judge_note)))
    origin = "built-in" if report.identity.origin == "own" else report.identity.origin
    texts = [
        f"Judge: {judge} ({version}), {origin} rubrics. Coverage: {result.scored} of {result.total} items. "
        "Means with 95% confidence intervals (bootstrap over source videos, stratified by category, widened for small "
        "samples); an item's score is the median of its repeats.",
        "raw: scores as given by the judge, as in the published tables; capped: no score of an item above its first "
        "dimension's, as the rubrics demand.",
    ]
    if report.models:
        answered = ", ".join(f"{model} ({count})" for model, count in sorted(report.models.items()))
        tokens = f"{report.usage.prompt_tokens:,} tokens read and {report.usage.answer_tokens:,} written"
        texts.append(f"Models that answered, and their numbers of answers: {answered}; {tokens}.")
    if report.cost is not None:
        texts.append(f"Cost of all answers in the ledger by the price table: {report.cost:.2f} dollars.")
    for category, count in report.excluded.items():
        texts.append(f"Not scored: category {category}, {count} in the data ({report.suite.excluded[category]}).")
    if result.repeat_std is not None and result.flip_rate is not None:
        texts.append(
            f"Repeated answers of the judge differ for {result.flip_rate:.0%} of the questions (standard deviation "
            f"{result.repeat_std:.2f})."
        )
    texts += [f"The control '{kind}' has no score: {reason}." for kind, reason in report.unscored_controls.items()]
    if (drift := report.drift) is not None:
        texts.append(f"Anchors: {drift.items} items judged again; their scores changed by {drift.interval}.")
    texts += [f"Doubtful published row: {row.method} ({row.doubt})." for row in report.published if row.doubt]
    if any(row.judge != judge for row in report.published):
        texts.append("Published rows were scored by a different judge: they are not comparable with this run.")
    return texts


def make_main_table(report: BenchmarkReport) -> Table:
    """Make the published table with two more rows for this run, raw and capped."""
    result, columns = report.result, report.result.columns
    header = ["method", "judge", "overall", *(column.name for column in columns)]
    coverage = "" if result.is_complete else f", {result.scored} of {result.total}"
    rows: list[Sequence[object]] = []
    for kind in SCORE_KINDS:
        overall = getattr(result, kind) if report.has_overall else None
        cells = [_format_cell(value) for value in (overall, *(getattr(column, kind) for column in columns))]
        rows.append([f"{report.identity.title} ({kind}{coverage})", report.identity.judge, *cells])
    for row in report.published:
        mark = "*" if row.doubt else ""
        values = [f"{row.columns[column.name]:.2f}" for column in columns if column.name in row.columns]
        if len(values) == len(columns):
            rows.append([f"{row.method}{mark} (published)", row.judge, f"{row.overall:.2f}", *values])
    return Table(f"{report.suite.title}: scores from 1 to 5", header, rows, " ".join(list_notes(report)))


def make_column_table(report: BenchmarkReport) -> Table:
    """Make a table of this run alone, with a row for each column of the suite: narrow enough for a terminal."""
    result = report.result
    rows: list[Sequence[object]] = [
        (column.name, f"{column.scored} of {column.total}", _format_cell(column.raw), _format_cell(column.capped))
        for column in result.columns
    ]
    overall = [_format_cell(value if report.has_overall else None) for value in (result.raw, result.capped)]
    rows.append(("overall", f"{result.scored} of {result.total}", *overall))
    title = f"{report.suite.title}: {report.identity.title}, judged by {report.identity.judge}"
    return Table(title, ("", "items", "raw", "capped"), rows)


def make_controls_table(controls: Iterable[ControlResult]) -> Table:
    """Make a table of the scores of controls and of the real edits of the same items."""
    rows = [
        (result.kind, result.items, str(result.control), str(result.edit), str(result.margin.interval),
         f"{result.margin.p:.3f}", "yes" if result.is_passed else "too few" if result.is_inconclusive else "NO")
        for result in controls
    ]  # fmt: skip
    return Table(
        "Controls: edits that are known to be bad, against the real edits of the same items (capped scores)",
        ("control", "items", "control's score", "real edit's score", "difference", "p", "passed"),
        rows,
        "Means with 95% confidence intervals; p: paired permutation test; passed: real edits score significantly "
        f"higher; too few: on so few items p cannot be below {SIGNIFICANCE}.",
    )


def make_items_table(scored: Iterable[ItemScore]) -> Table:
    """Make the table of scores.csv, with a row for each item and dimension, and its checksum."""
    rows = [
        (score.item.id, score.item.category, name, score.raw[name], score.capped[name], score.repeats)
        for score in scored
        for name in score.raw
    ]
    checked = [(*row, compute_row_checksum([escape_csv(str(cell)) for cell in row], len(rows))) for row in rows]
    return Table("", ("item", "category", "dimension", "raw", "capped", "repeats", CHECKSUM), checked)


def format_markdown(report: BenchmarkReport) -> str:
    """Format report.md: warnings, then the tables."""
    parts = [f"# {escape_markdown(f'{report.suite.title}: {report.identity.title}')}"]
    parts += [f"**Warning.** {escape_markdown(text)}" for text in list_warnings(report)]
    parts += [table.to_markdown() for table in (make_main_table(report), *_build_optional_tables(report))]
    if report.result.unscored:
        unscored = Table("Items without a score", ("item", "reason"), sorted(report.result.unscored.items()))
        parts.append(unscored.to_markdown())
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def format_latex(report: BenchmarkReport) -> str:
    """Format report.tex, a complete document without the list of unscored items, which may not fit on a page."""
    texts = [rf"\textbf{{Warning.}} {escape_latex(warning)}" for warning in list_warnings(report)]
    return latex_document(
        [make_main_table(report), *_build_optional_tables(report)], leading_lines=[f"{text}\n" for text in texts]
    )


def write_reports(report: BenchmarkReport, cards: Sequence[JudgedTask] | None) -> None:
    """Write scores and reports, and the gallery unless `cards` is None."""
    out = report.folder
    write_text(out / SCORES_FILE, make_items_table(report.scored).to_csv())
    write_text(out / "report.md", format_markdown(report))
    write_text(out / "report.tex", format_latex(report))
    if report.metrics is not None:
        write_text(out / "metrics.csv", report.metrics.to_csv())
    if cards is not None:
        title = f"{report.suite.title}: {report.identity.title}"
        about = [format_headline(report), list_notes(report)[0]]
        write_gallery(out / "gallery.html", title, about, list_warnings(report), cards)


def print_report(report: BenchmarkReport) -> None:
    """Print the tables, notes and warnings, and the names of the files written."""
    for table in (make_column_table(report), *_build_optional_tables(report)):
        console.table(table)
    for line in list_notes(report):
        console.note(line)
    for warning in list_warnings(report):
        console.print(f"Warning: {warning}")
    files = ("report.md", "report.tex", "scores.csv", "gallery.html", "judgements.jsonl")
    names = ", ".join(name for name in files if (report.folder / name).is_file())
    console.print(f"Results are in {report.folder}: {names}")


def _build_optional_tables(report: BenchmarkReport) -> list[Table]:
    tables = [make_controls_table(report.controls)] if report.controls else []
    return tables if report.metrics is None else [*tables, report.metrics]


def _format_cell(value: object) -> str:
    return "-" if value is None else str(value)
