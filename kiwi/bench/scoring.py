"""Scoring: from judgements to the table, with nothing left out unseen.

An item's score in a dimension is the median of its repeats. What a column is depends on the suite: OpenVE-Bench has a
column a category (the mean over items of the means over their three dimensions), RefVIE-Bench one a dimension; the
overall score is the mean over columns. Scores are kept as given (`raw`, what the published tables hold: the published
code does not cap) and capped by the first dimension (`capped`, what the rubrics ask for).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from kiwi.bench.case import Case
from kiwi.bench.ledger import Judgement
from kiwi.bench.reply import capped
from kiwi.bench.suites import Suite
from kiwi.errors import InputError
from kiwi.statistics.intervals import Interval, mean_of
from kiwi.statistics.paired import Difference, flip_rate, paired_difference, within_item_spread


@dataclass(frozen=True, kw_only=True)
class ItemScore:
    """What an item got.

    Args:
        case: the item.
        raw, capped: a number a dimension, the median over repeats.
        repeats: how many answers these are of.
    """

    case: Case
    raw: Mapping[str, float]
    capped: Mapping[str, float]
    repeats: int

    def mean(self, kind: str = "raw") -> float:
        """Over the three dimensions."""
        values = list(getattr(self, kind).values())
        return sum(values) / len(values)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table.

    Args:
        name: category or dimension.
        wanted, scored: items that it should be of, and that it is of.
        raw, capped: means over items with 95% intervals; none without items.
    """

    name: str
    wanted: int
    scored: int
    raw: Interval | None
    capped: Interval | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run found.

    Args:
        columns: of the table.
        wanted, scored: items in all.
        unscored: reasons by item, of items without a score.
        raw, capped: the overall scores; none if a column has no items.
        spread: standard deviation of repeated answers to the same question; none without repeats.
        flips: share of questions whose repeats differ; none without repeats.
    """

    columns: Sequence[Column]
    wanted: int
    scored: int
    unscored: Mapping[str, str]
    raw: Interval | None
    capped: Interval | None
    spread: float | None
    flips: float | None

    @property
    def complete(self) -> bool:
        """Whether every item has a score."""
        return self.scored == self.wanted


def item_scores(
    suite: Suite, cases: Iterable[Case], judgements: Iterable[Judgement]
) -> tuple[list[ItemScore], dict[str, str]]:
    """Scores of the items that have any, and why the others have none, by id.

    Args:
        suite: what is judged.
        cases: its items.
        judgements: of one judge; of a question that was asked again the later counts.
    """
    answers: dict[str, dict[int, Judgement]] = {}
    failed: dict[str, str] = {}
    for one in judgements:
        if one.scores is not None:
            answers.setdefault(one.asked.item, {})[one.asked.repeat] = one
        else:
            failed[one.asked.item] = one.reason or "no reason was given"
    scored, unscored = [], {}
    for case in cases:
        if not (held := list(answers.get(case.id, {}).values())):
            unscored[case.id] = failed.get(case.id, "not judged")
            continue
        dimensions = suite.categories[case.category].dimensions
        if wrong := [one for one in held if one.scores is None or set(one.scores) != set(dimensions)]:
            unscored[case.id] = f"judged by other names: {', '.join(wrong[0].scores or ())}"
            continue
        raw = [one.scores for one in held if one.scores is not None]
        under = [capped(scores, dimensions[0]) for scores in raw]
        item = ItemScore(
            case=case,
            raw={name: float(median(scores[name] for scores in raw)) for name in dimensions},
            capped={name: float(median(scores[name] for scores in under)) for name in dimensions},
            repeats=len(held),
        )
        scored.append(item)
    return scored, unscored


def result_of(
    suite: Suite, cases: Sequence[Case], scored: Sequence[ItemScore], unscored: Mapping[str, str],
    judgements: Iterable[Judgement] = (),
) -> Result:  # fmt: skip
    """The table of a run, from `item_scores`; judgements tell how much repeats differ."""
    groups = {kind: _groups(suite, scored, kind) for kind in ("raw", "capped")}
    owners = {name: [item.case.source.name for item in items] for name, items in _items(suite, scored).items()}
    wanted = {name: len(items) for name, items in _items(suite, cases).items()}
    columns = []
    for name, count in wanted.items():
        found = {
            kind: mean_of([values[name]], clusters=[owners[name]]) if values[name] else None
            for kind, values in groups.items()
        }
        columns.append(Column(name=name, wanted=count, scored=len(owners[name]), **found))
    columns = [column for column in columns if column.wanted]
    names = [column.name for column in columns]
    whole = bool(names) and all(owners[name] for name in names)
    overall = {
        kind: mean_of([values[name] for name in names], clusters=[owners[name] for name in names]) if whole else None
        for kind, values in groups.items()
    }
    repeats = _repeats(judgements)
    return Result(
        columns=columns,
        wanted=len(cases),
        scored=len(scored),
        unscored=dict(unscored),
        **overall,
        spread=within_item_spread(repeats),
        flips=flip_rate(repeats),
    )


def compare(suite: Suite, one: Sequence[ItemScore], other: Sequence[ItemScore], kind: str) -> dict[str, Difference]:
    """The other less the one, by column and "overall", on the items that both have.

    Raises:
        InputError: a column in which they share no item.
    """
    both = {item.case.id for item in one} & {item.case.id for item in other}
    pairs = [[item for item in items if item.case.id in both] for items in (one, other)]
    before, after = (_groups(suite, sorted(items, key=lambda item: item.case.id), kind) for items in pairs)
    order = _items(suite, sorted(pairs[0], key=lambda item: item.case.id))
    owners = {name: [item.case.source.name for item in items] for name, items in order.items()}
    groups = {name: [b - a for a, b in zip(before[name], after[name], strict=True)] for name in before if before[name]}
    if not groups:
        raise InputError("the two runs have no scored item in common", wanted="runs on the same data")
    found = {name: paired_difference([values], [owners[name]]) for name, values in groups.items()}
    return {"overall": paired_difference(list(groups.values()), [owners[name] for name in groups]), **found}


def _items(suite: Suite, items: Sequence[Case] | Sequence[ItemScore]) -> dict[str, list]:
    """Items of each column, in their order."""
    found: dict[str, list] = {name: [] for name in _names(suite)}
    for item in items:
        category = (item.case if isinstance(item, ItemScore) else item).category
        columns = [category] if suite.columns == "categories" else suite.categories[category].dimensions
        for name in columns:
            found[name].append(item)
    return found


def _groups(suite: Suite, scored: Sequence[ItemScore], kind: str) -> dict[str, list[float]]:
    """Numbers of each column's items."""
    by_category = suite.columns == "categories"
    return {
        name: [item.mean(kind) if by_category else getattr(item, kind)[name] for item in items]
        for name, items in _items(suite, scored).items()
    }


def _names(suite: Suite) -> list[str]:
    if suite.columns == "categories":
        return list(suite.categories)
    return list(dict.fromkeys(name for category in suite.categories.values() for name in category.dimensions))


def _repeats(judgements: Iterable[Judgement]) -> list[list[float]]:
    """Repeated answers to each question, a question being an item in a dimension."""
    found: dict[tuple[str, str], list[float]] = {}
    for one in judgements:
        for name, score in (one.scores or {}).items():
            found.setdefault((one.asked.item, name), []).append(float(score))
    return list(found.values())
