"""Scoring: from judgements to the table of a run. Every column says how many of its items have a score.

An item's score in a dimension is the median of its repeated answers. The columns depend on the suite: OpenVE-Bench has
one for each category (the mean over items of the means over their three dimensions), RefVIE-Bench one for each
dimension. The overall score is the mean over columns. Scores are reported as given (`raw`, as in the published tables,
whose code does not cap) and capped (`capped`: no score may exceed that of the first dimension, as the rubrics demand).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple

from kiwi.bench.ledger import Judgement
from kiwi.bench.reply import cap_scores
from kiwi.bench.runner import JudgingTask
from kiwi.bench.suites import BenchmarkItem, Suite
from kiwi.errors import InputError
from kiwi.statistics.intervals import Interval, bootstrap_mean
from kiwi.statistics.paired import Difference, estimate_difference, flip_rate, repeat_std

ScoreKind = Literal["raw", "capped"]
SCORE_KINDS: tuple[ScoreKind, ScoreKind] = ("raw", "capped")


@dataclass(frozen=True, kw_only=True)
class ItemScore:
    """Scores of an item: raw and capped medians over repeated answers, by dimension, and the number of answers."""

    item: BenchmarkItem
    raw: Mapping[str, float]
    capped: Mapping[str, float]
    repeats: int

    def mean(self, kind: ScoreKind = "raw") -> float:
        """Mean over the three dimensions."""
        values = self.scores(kind).values()
        return sum(values) / len(values)

    def scores(self, kind: ScoreKind) -> Mapping[str, float]:
        """The scores of one kind, by dimension."""
        return self.raw if kind == "raw" else self.capped


@dataclass(frozen=True, kw_only=True)
class JudgedTask:
    """An edit with the judge's answers.

    Args:
        task: the edited video, its item and the instruction it was judged by.
        judgements: the judge's answers, one for each repeat.
        score: their median; None if no answer has a score.
        reason: reason for a missing score.
    """

    task: JudgingTask
    judgements: Sequence[Judgement]
    score: ItemScore | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table.

    Args:
        name: category or dimension.
        total: number of items in the column.
        scored: number of those items with a score.
        raw, capped: means over items with 95% intervals; None without a scored item.
    """

    name: str
    total: int
    scored: int
    raw: Interval | None
    capped: Interval | None


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """Scores of a run.

    Args:
        columns: columns of the table.
        total: number of items.
        scored: number of items with a score.
        unscored: reason for each item without a score, by id.
        raw, capped: the overall scores; None if a column has no scored item.
        repeat_std: standard deviation of repeated answers to the same question; None without repeats.
        flip_rate: share of questions whose repeats differ; None without repeats.
    """

    columns: Sequence[Column]
    total: int
    scored: int
    unscored: Mapping[str, str]
    raw: Interval | None
    capped: Interval | None
    repeat_std: float | None
    flip_rate: float | None

    @property
    def is_complete(self) -> bool:
        """Whether every item has a score."""
        return self.scored == self.total


def score_items(
    suite: Suite, items: Iterable[BenchmarkItem], judgements: Iterable[Judgement]
) -> tuple[list[ItemScore], dict[str, str]]:
    """Score items; returns the scores, and the reason for each item without a score, by id.

    All judgements are of one judge; if a repeat of an item was judged several times, the last judgement counts.
    """
    answers: dict[str, dict[int, Judgement]] = {}
    failures: dict[str, str] = {}
    for judgement in judgements:
        if judgement.scores is not None:
            answers.setdefault(judgement.key.item, {})[judgement.key.repeat] = judgement
        else:
            failures[judgement.key.item] = judgement.reason or "no reason was given"
    scored, unscored = [], {}
    for item in items:
        dimensions = suite.categories[item.category].dimensions
        repeats = [answer.scores for answer in answers.get(item.id, {}).values() if answer.scores is not None]
        if not repeats:
            unscored[item.id] = failures.get(item.id, "not judged")
        elif mismatched := [scores for scores in repeats if set(scores) != set(dimensions)]:
            unscored[item.id] = f"judged in other dimensions: {', '.join(mismatched[0])}"
        else:
            caps = [cap_scores(scores, dimensions[0]) for scores in repeats]
            score = ItemScore(
                item=item,
                raw={name: float(median(scores[name] for scores in repeats)) for name in dimensions},
                capped={name: float(median(scores[name] for scores in caps)) for name in dimensions},
                repeats=len(repeats),
            )
            scored.append(score)
    return scored, unscored


def aggregate_scores(
    suite: Suite, items: Sequence[BenchmarkItem], scored: Sequence[ItemScore], unscored: Mapping[str, str],
    judgements: Iterable[Judgement] = (),
) -> BenchmarkResult:  # fmt: skip
    """Aggregate the results of `score_items` to the scores of a run; `judgements` show how repeated answers vary."""
    totals = Counter(name for item in items for name in _list_category_columns(suite, item.category))
    names = [name for name in _list_columns(suite) if totals[name]]
    raw, capped = (
        _group_by_column(suite, [(score.item, _split_by_column(suite, score, kind)) for score in scored])
        for kind in SCORE_KINDS
    )
    columns = [
        Column(
            name=name,
            total=totals[name],
            scored=len(raw[name].values),
            raw=_average([raw[name]]),
            capped=_average([capped[name]]),
        )
        for name in names
    ]
    repeats = _group_repeats(judgements)
    return BenchmarkResult(
        columns=columns,
        total=len(items),
        scored=len(scored),
        unscored=dict(unscored),
        raw=_average([raw[name] for name in names]),
        capped=_average([capped[name] for name in names]),
        repeat_std=repeat_std(repeats),
        flip_rate=flip_rate(repeats),
    )


def compute_differences(
    suite: Suite, a: Sequence[ItemScore], b: Sequence[ItemScore], kind: ScoreKind
) -> dict[str, Difference]:
    """Compute the paired differences b - a on the items scored in both, by column and under "overall".

    Raises:
        InputError: no item is scored in both.
    """
    first = {score.item.id: _split_by_column(suite, score, kind) for score in a}
    second = {score.item: _split_by_column(suite, score, kind) for score in sorted(b, key=lambda score: score.item.id)}
    differences = [
        (item, {name: value - first[item.id][name] for name, value in values.items()})
        for item, values in second.items()
        if item.id in first
    ]
    if not differences:
        expected = "runs on the same data"
        raise InputError("the two runs have no scored item in common", code="no-shared-items", expected=expected)
    groups = {name: group for name, group in _group_by_column(suite, differences).items() if group.values}
    values, sources = [group.values for group in groups.values()], [group.sources for group in groups.values()]
    by_column = {name: estimate_difference([group.values], [group.sources]) for name, group in groups.items()}
    return {"overall": estimate_difference(values, sources)} | by_column


def _list_columns(suite: Suite) -> list[str]:
    names = (name for category in suite.categories for name in _list_category_columns(suite, category))
    return list(dict.fromkeys(names))


def _list_category_columns(suite: Suite, category: str) -> Sequence[str]:
    """List the columns that a category's items contribute to."""
    return [category] if suite.columns == "categories" else suite.dimensions[category]


def _split_by_column(suite: Suite, score: ItemScore, kind: ScoreKind) -> Mapping[str, float]:
    """Give the item's value in each of its columns."""
    return {score.item.category: score.mean(kind)} if suite.columns == "categories" else score.scores(kind)


class _ColumnValues(NamedTuple):
    """Values of the items in a column, and the names of their source videos, whose edits are dependent."""

    values: list[float]
    sources: list[str]


def _group_by_column(
    suite: Suite, items: Iterable[tuple[BenchmarkItem, Mapping[str, float]]]
) -> dict[str, _ColumnValues]:
    groups = {name: _ColumnValues([], []) for name in _list_columns(suite)}
    for item, values in items:
        for name, value in values.items():
            groups[name].values.append(value)
            groups[name].sources.append(item.source.name)
    return groups


def _average(columns: Sequence[_ColumnValues]) -> Interval | None:
    """The mean over columns of the means over items; None without columns, or if a column has no items."""
    if not columns or not all(column.values for column in columns):
        return None
    return bootstrap_mean([column.values for column in columns], clusters=[column.sources for column in columns])


def _group_repeats(judgements: Iterable[Judgement]) -> list[list[float]]:
    """Group the scores by item and dimension; each group holds the repeated answers to one question."""
    repeats: dict[tuple[str, str], list[float]] = {}
    for judgement in judgements:
        for name, score in (judgement.scores or {}).items():
            repeats.setdefault((judgement.key.item, name), []).append(float(score))
    return list(repeats.values())
