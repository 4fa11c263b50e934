"""Scoring: from judgements to the table, with every item in the denominator.

An item's score in a dimension is the median of its repeats. What a column is depends on the suite: OpenVE-Bench has a
column for each category (the mean over items of the means over their three dimensions), RefVIE-Bench one for each
dimension; the overall score is the mean over columns. Scores are reported as given (`raw`, as in the published tables:
the published code does not cap) and capped by the first dimension (`capped`, as the rubrics demand).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from kiwi.bench.ledger import Judgement
from kiwi.bench.reply import capped
from kiwi.bench.suites import BenchmarkItem, Suite
from kiwi.errors import InputError
from kiwi.statistics.intervals import Interval, bootstrap_mean
from kiwi.statistics.paired import Difference, flip_rate, paired_difference, repeat_std

ScoreKind = Literal["raw", "capped"]
SCORE_KINDS: tuple[ScoreKind, ScoreKind] = ("raw", "capped")


@dataclass(frozen=True, kw_only=True)
class ItemScore:
    """Scores of an item.

    Args:
        item: the item.
        raw, capped: medians over repeats, by dimension.
        repeats: number of answers.
    """

    item: BenchmarkItem
    raw: Mapping[str, float]
    capped: Mapping[str, float]
    repeats: int

    def mean(self, kind: ScoreKind = "raw") -> float:
        """Mean over the three dimensions."""
        values = self.scores(kind).values()
        return sum(values) / len(values)

    def scores(self, kind: ScoreKind) -> Mapping[str, float]:
        """Either kind of scores."""
        return self.raw if kind == "raw" else self.capped


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table.

    Args:
        name: category or dimension.
        total, scored: numbers of its items, and of those with a score.
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
        columns: of the table.
        total, scored: numbers of items, and of those with a score.
        unscored: reasons by item, for the other items.
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
    """Scores of the items that have any, and by id why the others have none.

    Args:
        suite: the benchmark.
        items: to be scored.
        judgements: of one judge; of several answers to the same question the last counts.
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
            caps = [capped(scores, dimensions[0]) for scores in repeats]
            score = ItemScore(
                item=item,
                raw={name: float(median(scores[name] for scores in repeats)) for name in dimensions},
                capped={name: float(median(scores[name] for scores in caps)) for name in dimensions},
                repeats=len(repeats),
            )
            scored.append(score)
    return scored, unscored


def aggregate(
    suite: Suite, items: Sequence[BenchmarkItem], scored: Sequence[ItemScore], unscored: Mapping[str, str],
    judgements: Iterable[Judgement] = (),
) -> BenchmarkResult:  # fmt: skip
    """The table of a run.

    Args:
        suite: the benchmark.
        items: all of them.
        scored, unscored: from `score_items`.
        judgements: for the variation of repeats.
    """
    totals = Counter(name for item in items for name in _columns_of(suite, item.category))
    names = [name for name in _column_names(suite) if totals[name]]
    strata = {}
    for kind in SCORE_KINDS:
        strata[kind], clusters = _strata(suite, [(score.item, _by_column(suite, score, kind)) for score in scored])

    def mean(kind: ScoreKind, *columns: str) -> Interval | None:
        if not columns or not all(clusters[name] for name in columns):
            return None
        return bootstrap_mean([strata[kind][name] for name in columns], clusters=[clusters[name] for name in columns])

    columns = [
        Column(
            name=name,
            total=totals[name],
            scored=len(clusters[name]),
            raw=mean("raw", name),
            capped=mean("capped", name),
        )
        for name in names
    ]
    repeats = _repeats(judgements)
    return BenchmarkResult(
        columns=columns,
        total=len(items),
        scored=len(scored),
        unscored=dict(unscored),
        raw=mean("raw", *names),
        capped=mean("capped", *names),
        repeat_std=repeat_std(repeats),
        flip_rate=flip_rate(repeats),
    )


def paired_differences(
    suite: Suite, a: Sequence[ItemScore], b: Sequence[ItemScore], kind: ScoreKind
) -> dict[str, Difference]:
    """Differences b - a, overall (under "overall") and by column, on the items that both have.

    Raises:
        InputError: no item is scored in both.
    """
    first = {score.item.id: _by_column(suite, score, kind) for score in a}
    second = {score.item: _by_column(suite, score, kind) for score in sorted(b, key=lambda score: score.item.id)}
    strata, clusters = _strata(
        suite,
        [
            (item, {name: value - first[item.id][name] for name, value in values.items()})
            for item, values in second.items()
            if item.id in first
        ],
    )
    names = [name for name, values in strata.items() if values]
    if not names:
        raise InputError(
            "the two runs have no scored item in common", code="no-shared-items", expected="runs on the same data"
        )
    overall = paired_difference([strata[name] for name in names], [clusters[name] for name in names])
    return {"overall": overall} | {name: paired_difference([strata[name]], [clusters[name]]) for name in names}


def _column_names(suite: Suite) -> list[str]:
    return list(dict.fromkeys(name for category in suite.categories for name in _columns_of(suite, category)))


def _columns_of(suite: Suite, category: str) -> Sequence[str]:
    """Names of the columns that a category's items are in."""
    return [category] if suite.columns == "categories" else suite.dimensions[category]


def _by_column(suite: Suite, score: ItemScore, kind: ScoreKind) -> Mapping[str, float]:
    """An item's value in each of its columns."""
    return {score.item.category: score.mean(kind)} if suite.columns == "categories" else score.scores(kind)


def _strata(
    suite: Suite, items: Iterable[tuple[BenchmarkItem, Mapping[str, float]]]
) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """Values of each column's items, and their source videos, which are the clusters."""
    strata: dict[str, list[float]] = {name: [] for name in _column_names(suite)}
    clusters: dict[str, list[str]] = {name: [] for name in strata}
    for item, values in items:
        for name, value in values.items():
            strata[name].append(value)
            clusters[name].append(item.source.name)
    return strata, clusters


def _repeats(judgements: Iterable[Judgement]) -> list[list[float]]:
    """Repeated answers to each question, a question being an item in a dimension."""
    repeats: dict[tuple[str, str], list[float]] = {}
    for judgement in judgements:
        for name, score in (judgement.scores or {}).items():
            repeats.setdefault((judgement.key.item, name), []).append(float(score))
    return list(repeats.values())
