"""From judgements to the table: medians, caps, means of means, and nothing left out unseen."""

from dataclasses import replace
from pathlib import Path

import pytest

from kiwi.bench.controls import measure_drift, summarize_controls
from kiwi.bench.ledger import Judgement, JudgementKey
from kiwi.bench.report import BenchmarkReport, column_table, latex, main_table, markdown, warnings
from kiwi.bench.scoring import aggregate, paired_differences, score_items
from kiwi.bench.suites import BenchmarkItem, published_rows, read_suite
from kiwi.errors import InputError

OPENVE, REFVIE = read_suite("openve"), read_suite("refvie")


def case(name, category, source=None):
    return BenchmarkItem(id=name, category=category, instruction="Do it.", source=Path(f"{source or name}.mp4"))


def judged(suite, of, *numbers, repeat=0, reason=None):
    dimensions = suite.categories[of.category].dimensions
    key = JudgementKey(
        item=of.id, repeat=repeat, judge="told", version="1", media={}, instruction="Do it.", rubric="r", frames="all",
        temperature=None,
    )  # fmt: skip
    scores = dict(zip(dimensions, numbers, strict=True)) if numbers else None
    return Judgement(key=key, category=of.category, reply="", scores=scores, reason=reason, seconds=0, at="")


def table(suite, cases, judgements):
    scored, unscored = score_items(suite, cases, judgements)
    return aggregate(suite, cases, scored, unscored, judgements)


def test_openve_is_the_mean_over_categories_of_items_of_dimensions():
    one, two, three = case("a", "global_style"), case("b", "global_style"), case("c", "local_add")
    judgements = [judged(OPENVE, one, 4, 3, 5), judged(OPENVE, two, 2, 5, 2), judged(OPENVE, three, 1, 1, 4)]
    found = table(OPENVE, [one, two, three], judgements)
    assert [(column.name, column.raw.mean) for column in found.columns] == [("global_style", 3.5), ("local_add", 2)]
    assert found.raw.mean == 2.75
    assert [column.capped.mean for column in found.columns] == [pytest.approx((11 / 3 + 2) / 2), 1]
    assert found.is_complete


def test_refvie_is_the_mean_over_six_dimensions():
    one, two, three = case("a", "subject"), case("b", "subject"), case("c", "background")
    judgements = [judged(REFVIE, one, 4, 3, 5), judged(REFVIE, two, 2, 2, 1), judged(REFVIE, three, 3, 1, 2)]
    found = table(REFVIE, [one, two, three], judgements)
    assert [column.raw.mean for column in found.columns] == [3, 2.5, 3, 3, 1, 2]
    assert found.raw.mean == pytest.approx(14.5 / 6)  # a mean over items would weigh subjects more


def test_the_median_of_repeats_counts_and_their_variation_is_reported():
    one = case("a", "local_add")
    found = table(OPENVE, [one], [judged(OPENVE, one, n, 3, 3, repeat=r) for r, n in enumerate((1, 5, 4))])
    assert found.columns[0].raw.mean == pytest.approx(10 / 3)
    assert found.flip_rate == pytest.approx(1 / 3)
    assert found.repeat_std == pytest.approx((13 / 3 / 3) ** 0.5)


def test_caps_come_before_medians():
    one = case("a", "local_add")
    judgements = [judged(OPENVE, one, n, 5, 5, repeat=r) for r, n in enumerate((1, 2, 5))]
    assert score_items(OPENVE, [one], judgements)[0][0].capped["Visual Quality & Stability"] == 2


def test_items_without_a_score_stay_in_the_denominator():
    cases = [case(name, "local_add") for name in "abcd"]
    judgements = [judged(OPENVE, cases[0], 4, 4, 4), judged(OPENVE, cases[1], reason="it cannot be read")]
    judgements.append(replace(judged(OPENVE, cases[3], 4, 4, 4), scores={"Beauty": 4}))
    found = table(OPENVE, cases, judgements)
    assert (found.scored, found.total, found.is_complete) == (1, 4, False)
    assert found.unscored == {"b": "it cannot be read", "c": "not judged", "d": "judged in other dimensions: Beauty"}
    assert (found.columns[0].scored, found.columns[0].total) == (1, 4)


def test_a_column_without_scores_leaves_no_overall():
    cases = [case("a", "local_add"), case("b", "global_style")]
    found = table(OPENVE, cases, [judged(OPENVE, cases[0], 4, 4, 4)])
    assert found.raw is None
    empty = table(OPENVE, cases, [])
    assert (empty.raw, empty.scored, [column.raw for column in empty.columns]) == (None, 0, [None, None])


def test_the_last_answer_to_a_question_counts():
    one = case("a", "local_add")
    assert table(OPENVE, [one], [judged(OPENVE, one, 1, 1, 1), judged(OPENVE, one, 4, 4, 4)]).raw.mean == 4


def runs(shift, suite=OPENVE, count=12):
    cases = [case(f"{category}{i}", category, f"video{i}") for category in suite.categories for i in range(count)]
    base = [judged(suite, one, *(1 + (i * k) % 3 for k in (1, 2, 4))) for i, one in enumerate(cases)]
    moved = [replace(one, scores={name: score + shift for name, score in one.scores.items()}) for one in base]
    return [score_items(suite, cases, judgements)[0] for judgements in (base, moved)]


@pytest.mark.parametrize("suite", [OPENVE, REFVIE])
def test_two_runs_are_compared_item_by_item(suite):
    found = paired_differences(suite, *runs(0.5, suite), "raw")
    assert {round(of.mean.mean, 6) for of in found.values()} == {0.5}
    assert found["overall"].mean.low == pytest.approx(0.5)  # every item moved alike, however much items differ
    assert found["overall"].p < 0.01
    one, other = runs(0.5, suite)
    assert paired_differences(suite, one[::-1], other[3:], "raw")["overall"].mean.mean == pytest.approx(0.5)
    with pytest.raises(InputError, check=lambda error: error.code == "no-shared-items"):
        paired_differences(suite, one[:2], other[2:], "raw")


def test_controls_that_do_not_score_below_the_real_edits_fail():
    cases = [case(f"v{i}", "local_add") for i in range(8)]
    real, _ = score_items(OPENVE, cases, [judged(OPENVE, one, 4, 4, 4) for one in cases])

    def control(kind, *numbers):
        own = [replace(one, id=f"{kind}:{one.id}") for one in cases]
        return score_items(OPENVE, own, [judged(OPENVE, one, *numbers) for one in own])[0]

    found = summarize_controls([*control("copy", 1, 5, 5), *control("degraded", 4, 4, 4)], real)
    assert [(one.kind, one.items, one.control.mean, one.is_passed) for one in found] == [
        ("copy", 8, 1, True),
        ("degraded", 8, 4, False),
    ]


def test_drift_is_the_difference_to_the_first_answer():
    cases = [case(f"v{i}", "local_add") for i in range(6)]
    earlier = [judged(OPENVE, one, 3, 3, 3) for one in cases]
    again = [judged(OPENVE, replace(one, id=f"anchor:{one.id}"), 4, 4, 4, repeat=1) for one in cases]
    found = measure_drift(again, earlier)
    assert (found.mean.mean, found.items) == (1, 6)
    assert measure_drift([], earlier) is None


def found_of(cases, judgements, **more):
    scored, unscored = score_items(OPENVE, cases, judgements)
    about = {"controls": (), "drift": None, "excluded": {"creative_edit": 2}, "allow_partial": False} | more
    return BenchmarkReport(
        suite=OPENVE, title="mine_&_50%", judge="told", version="1", rubrics="own",
        result=aggregate(OPENVE, cases, scored, unscored, judgements), scored=scored,
        published=published_rows(OPENVE), **about,
    )  # fmt: skip


def test_there_is_no_overall_score_below_full_coverage_unless_allowed():
    cases = [case(category, category) for category in OPENVE.categories] + [case("more", "local_add")]
    judgements = [judged(OPENVE, one, 4, 4, 4) for one in cases[:-1]]
    held, allowed = found_of(cases, judgements), found_of(cases, judgements, allow_partial=True)
    assert main_table(held).rows[0][2] == column_table(held).rows[-1][2] == "-"
    assert main_table(allowed).rows[0][2] == "4.00 ± ?"  # one item a category
    assert "5 of 6" in main_table(allowed).rows[0][0]
    assert "1 of 6 items have no score" in warnings(held)[0]
    assert "not judged" in markdown(held)
    assert "overall score is that of the others" in warnings(allowed)[0]


def test_a_report_without_judgements_has_no_scores():
    cases = [case(category, category) for category in OPENVE.categories]
    found = found_of(cases, [], allow_partial=True)
    assert all(cell == "-" for row in main_table(found, with_published=False).rows for cell in row[2:])
    assert "Coverage: 0 of 5" in markdown(found)


def test_reports_mark_doubtful_published_rows_and_name_excluded_categories():
    cases = [case(category, category) for category in OPENVE.categories]
    found = found_of(cases, [judged(OPENVE, one, 4, 4, 4) for one in cases])
    text = markdown(found)
    assert "| Kiwi-Edit stage 2, 480p* (published) | gemini-2.5-pro | 2.92 |" in text
    assert "transposed" in text
    assert "Not scored: 2 of creative_edit" in text
    assert "not comparable" in text
    assert r"mine\_\&\_50\%" in latex(found)
