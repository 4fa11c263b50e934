"""Reports: what a run found, for the terminal, Markdown, LaTeX and CSV. No number without its items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kiwi.bench.controls import LEVEL, Control
from kiwi.bench.published import Published
from kiwi.bench.scoring import Column, ItemScore, Result
from kiwi.bench.suites import Suite
from kiwi.statistics.intervals import Interval
from kiwi.statistics.paired import Difference
from kiwi.tables import Table, escape_html, escape_latex, latex_document


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that a report tells.

    Args:
        suite, title: the benchmark, and a name for what was judged.
        judge: and its version, as the ledger has them.
        rubrics: whose words, "own" or "official".
        result: the table.
        scored: items.
        controls, drift: of the judge; empty and none if they were not asked for.
        unjudged: kinds of controls that got no score at all, and why.
        answers: about items that have a score, those there are and those wanted.
        judge_note: what is to be known of the judge.
        published: rows that stand beside the result.
        excluded: items of the data that are not scored, by category.
        partial: whether a headline is wanted although items are missing.
        metrics: a table of what was computed beside the judge; none if nothing was.
    """

    suite: Suite
    title: str
    judge: str
    version: str
    rubrics: str
    result: Result
    scored: Sequence[ItemScore]
    controls: Sequence[Control]
    drift: Difference | None
    published: Sequence[Published]
    excluded: dict[str, int]
    partial: bool
    metrics: Table | None = None
    unjudged: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[int, int] = (0, 0)
    judge_note: str = ""

    @property
    def has_headline(self) -> bool:
        """Whether an overall score may be shown."""
        return self.result.raw is not None and (self.result.complete or self.partial)


def warnings(found: Found) -> list[str]:
    """What a reader must know before any number."""
    result, said = found.result, []
    if not result.complete:
        missing = f"{result.wanted - result.scored} of {result.wanted} items have no score"
        instead = "the overall score is of the others" if found.has_headline else "so there is no overall score"
        said.append(f"{missing}, {instead}.")
    if found.suite.expected and result.wanted != found.suite.expected:
        said.append(
            f"The data has {result.wanted} items that are scored, {found.suite.title} {found.suite.expected}: "
            "this is another benchmark, and its scores are not comparable."
        )
    if found.unjudged and not found.controls:
        said.append("No control got a score: nothing tells whether this judge can tell good edits from bad ones.")
    if found.answers[0] < found.answers[1]:
        missing = f"{found.answers[1] - found.answers[0]} of {found.answers[1]} answers"
        said.append(f"Items with a score lack {missing}: some scores are the median of fewer repeats than others.")
    for control in found.controls:
        if not control.holds and not control.undecided:
            said.append(
                f"The control '{control.kind}' is not below the real edits ({control.mean} against {control.real}, "
                f"{control.items} items): this judge's scores say little."
            )
    if found.drift is not None and found.drift.p < LEVEL:
        said.append(
            f"The judge has moved: items judged before got {found.drift.mean} now ({found.drift.items} items, "
            "difference to their first score)."
        )
    return said


def headline(found: Found) -> str:
    """The overall score, and of how many items, in a line."""
    if not found.has_headline:
        return f"No overall score: {found.result.scored} of {found.result.wanted} items have one."
    of = f"{found.result.scored} of {found.result.wanted} items"
    return f"Overall {found.result.raw} (raw), {found.result.capped} (capped), {of}."


def notes(found: Found) -> list[str]:
    """What stands below the table."""
    result, version = found.result, ", ".join(filter(None, (found.version, found.judge_note)))
    said = [
        f"Judge: {found.judge} ({version}), {found.rubrics} rubrics. Coverage: {result.scored} of "
        f"{result.wanted} items. Means with 95% intervals (bootstrap over source videos, the categories each by "
        "itself); an item's score is the median of its repeats.",
        "raw: as the judge gave them, which is how the published tables were made; capped: no score of an item above "
        "its first, as the rubrics ask.",
    ]
    for category, count in found.excluded.items():
        said.append(f"Not scored: {count} of {category} ({found.suite.excluded[category]}).")
    if result.spread is not None and result.flips is not None:
        said.append(
            f"Asked again, the judge gives another score to {result.flips:.0%} of the questions (standard deviation of "
            f"repeats {result.spread:.2f})."
        )
    said += [f"The control '{kind}' got no score: {why}." for kind, why in found.unjudged.items()]
    if found.drift is not None:
        said.append(f"Anchors: {found.drift.items} items judged again, {found.drift.mean} to their first score.")
    rows = [row for row in found.published if row.doubt]
    said += [f"In doubt, as published: {row.method} ({row.doubt})." for row in rows]
    if found.published and any(row.judge != found.judge for row in found.published):
        said.append("Published rows were scored by another judge: they tell the scale of that judge, not of this one.")
    return said


def main_table(found: Found, published: bool = True) -> Table:
    """The published table with a row for this run, raw and capped."""
    columns = found.result.columns
    header = ["method", "judge", "overall", *(column.name for column in columns)]
    rows: list[Sequence[object]] = []
    for kind in ("raw", "capped"):
        overall: Interval | None = getattr(found.result, kind) if found.has_headline else None
        cells = [_cell(column, getattr(column, kind)) for column in columns]
        of = "" if found.result.complete else f", {found.result.scored} of {found.result.wanted}"
        rows.append([f"{found.title} ({kind}{of})", found.judge, "-" if overall is None else str(overall), *cells])
    if published:
        for row in found.published:
            mark = "*" if row.doubt else ""
            values = [f"{row.columns[column.name]:.2f}" for column in columns if column.name in row.columns]
            if len(values) == len(columns):
                rows.append([f"{row.method}{mark} (published)", row.judge, f"{row.overall:.2f}", *values])
    return Table(f"{found.suite.title}: scores of 1 to 5", header, rows, " ".join(notes(found)))


def column_table(found: Found) -> Table:
    """A row a column: narrow enough for a terminal."""
    rows: list[Sequence[object]] = [
        (column.name, f"{column.scored} of {column.wanted}", _cell(column, column.raw), _cell(column, column.capped))
        for column in found.result.columns
    ]
    overall = [str(value) if found.has_headline and value else "-" for value in (found.result.raw, found.result.capped)]
    rows.append(("overall", f"{found.result.scored} of {found.result.wanted}", *overall))
    return Table(f"{found.suite.title}: {found.title}, judged by {found.judge}", ("", "items", "raw", "capped"), rows)


def controls_table(controls: Iterable[Control]) -> Table:
    """Controls beside the real edits of the same items."""
    rows = [
        (one.kind, one.items, str(one.mean), str(one.real), str(one.above.mean), f"{one.above.p:.3f}",
         "yes" if one.holds else "too few" if one.undecided else "NO")
        for one in controls
    ]  # fmt: skip
    return Table(
        "Controls: edits that are known to be bad, and the real ones of the same items (capped)",
        ("control", "items", "its score", "real", "real above", "p", "holds"),
        rows,
        "Means with 95% intervals; p of a paired permutation test; too few: so few items that no p is below 0.05.",
    )


def unscored_table(found: Found) -> Table:
    """Items without a score, and why."""
    return Table("Items without a score", ("item", "why"), sorted(found.result.unscored.items()))


def items_table(scored: Iterable[ItemScore]) -> Table:
    """A row an item and dimension."""
    rows = [
        (item.case.id, item.case.category, name, item.raw[name], item.capped[name], item.repeats)
        for item in scored
        for name in item.raw
    ]
    return Table("", ("item", "category", "dimension", "raw", "capped", "repeats"), rows)


def markdown(found: Found) -> str:
    """report.md: warnings on top, then the tables."""
    parts = [
        escape_html(f"# {found.suite.title}: {found.title}"),
        *(f"**Warning.** {escape_html(one)}" for one in warnings(found)),
    ]
    parts.append(main_table(found).markdown())
    further = _further(found)
    if found.result.unscored:
        further.append(unscored_table(found))
    parts += [table.markdown() for table in further]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def latex(found: Found) -> str:
    """report.tex: a document of its own with the same tables (booktabs), but for the items without a score, which
    can be more than a page holds.
    """
    body = [main_table(found), *_further(found)]
    warned = [rf"\textbf{{Warning.}} {escape_latex(warning)}" for warning in warnings(found)]
    return latex_document(body, before=["\n".join([line, ""]) for line in warned])


def _further(found: Found) -> list[Table]:
    tables = [controls_table(found.controls)] if found.controls else []
    if found.metrics is not None:
        tables.append(found.metrics)
    return tables


def _cell(column: Column, value: Interval | None) -> str:
    return "-" if value is None else str(value)
