"""Scoring from judgements to the table: medians, caps, means of means and coverage."""

from dataclasses import replace
from pathlib import Path

import pytest

from kiwi.bench import measurement
from kiwi.bench import report as reports
from kiwi.bench.controls import measure_drift, summarize_controls
from kiwi.bench.ledger import Judgement, JudgementKey
from kiwi.bench.run_folder import RunIdentity
from kiwi.bench.scoring import aggregate_scores, compute_differences, score_items
from kiwi.bench.suites import BenchmarkItem, read_published_rows, read_suite
from kiwi.errors import InputError

OPENVE, REFVIE = read_suite("openve"), read_suite("refvie")


def make_item(name, category, source=None):
    return BenchmarkItem(id=name, category=category, instruction="Do it.", source=Path(f"{source or name}.mp4"))


def make_judgement(suite, item, *values, repeat=0, reason=None):
    dimensions = suite.categories[item.category].dimensions
    key = JudgementKey(
        item=item.id, repeat=repeat, judge="scripted", version="1", media={}, instruction="Do it.", rubric="r",
        frames="all", temperature=None,
    )  # fmt: skip
    scores = dict(zip(dimensions, values, strict=True)) if values else None
    return Judgement(key=key, category=item.category, reply="", scores=scores, reason=reason, seconds=0, at="")


def score(suite, items, judgements):
    scored, unscored = score_items(suite, items, judgements)
    return aggregate_scores(suite, items, scored, unscored, judgements)


def test_the_overall_score_of_openve_is_a_mean_over_dimensions_then_items_then_categories():
    first, second, third = make_item("a", "global_style"), make_item("b", "global_style"), make_item("c", "local_add")
    judgements = [
        make_judgement(OPENVE, first, 4, 3, 5),
        make_judgement(OPENVE, second, 2, 5, 2),
        make_judgement(OPENVE, third, 1, 1, 4),
    ]
    result = score(OPENVE, [first, second, third], judgements)
    assert [(column.name, column.raw.mean) for column in result.columns] == [("global_style", 3.5), ("local_add", 2)]
    assert result.raw.mean == 2.75
    assert [column.capped.mean for column in result.columns] == [pytest.approx((11 / 3 + 2) / 2), 1]
    assert result.is_complete


def test_the_overall_score_of_refvie_is_the_mean_over_six_dimensions():
    first, second, third = make_item("a", "subject"), make_item("b", "subject"), make_item("c", "background")
    judgements = [
        make_judgement(REFVIE, first, 4, 3, 5),
        make_judgement(REFVIE, second, 2, 2, 1),
        make_judgement(REFVIE, third, 3, 1, 2),
    ]
    result = score(REFVIE, [first, second, third], judgements)
    assert [column.raw.mean for column in result.columns] == [3, 2.5, 3, 3, 1, 2]
    assert result.raw.mean == pytest.approx(14.5 / 6)  # a mean over items would weigh subjects more


def test_the_median_of_repeats_counts_and_their_variation_is_reported():
    item = make_item("a", "local_add")
    result = score(OPENVE, [item], [make_judgement(OPENVE, item, n, 3, 3, repeat=r) for r, n in enumerate((1, 5, 4))])
    assert result.columns[0].raw.mean == pytest.approx(10 / 3)
    assert result.flip_rate == pytest.approx(1 / 3)
    assert result.repeat_std == pytest.approx((13 / 3 / 3) ** 0.5)


def test_caps_come_before_medians():
    item = make_item("a", "local_add")
    judgements = [make_judgement(OPENVE, item, n, 5, 5, repeat=r) for r, n in enumerate((1, 2, 5))]
    assert score_items(OPENVE, [item], judgements)[0][0].capped["Visual Quality & Stability"] == 2


def test_items_without_a_score_are_counted_in_the_total():
    items = [make_item(name, "local_add") for name in "abcd"]
    judgements = [
        make_judgement(OPENVE, items[0], 4, 4, 4),
        make_judgement(OPENVE, items[1], reason="it cannot be read"),
    ]
    judgements.append(replace(make_judgement(OPENVE, items[3], 4, 4, 4), scores={"Beauty": 4}))
    result = score(OPENVE, items, judgements)
    assert (result.scored, result.total, result.is_complete) == (1, 4, False)
    assert result.unscored == {"b": "it cannot be read", "c": "not judged", "d": "judged in other dimensions: Beauty"}
    assert (result.columns[0].scored, result.columns[0].total) == (1, 4)


def test_a_column_without_scores_leaves_no_overall():
    items = [make_item("a", "local_add"), make_item("b", "global_style")]
    result = score(OPENVE, items, [make_judgement(OPENVE, items[0], 4, 4, 4)])
    assert result.raw is None
    empty = score(OPENVE, items, [])
    assert (empty.raw, empty.scored, [column.raw for column in empty.columns]) == (None, 0, [None, None])


def test_the_last_answer_to_a_question_counts():
    item = make_item("a", "local_add")
    assert (
        score(OPENVE, [item], [make_judgement(OPENVE, item, 1, 1, 1), make_judgement(OPENVE, item, 4, 4, 4)]).raw.mean
        == 4
    )


def two_runs(shift, suite=OPENVE, count=12):
    """Scores of a run, and of one whose scores are all higher by `shift`."""
    items = [make_item(f"{category}{i}", category, f"video{i}") for category in suite.categories for i in range(count)]
    base = [make_judgement(suite, item, *(1 + (i * k) % 3 for k in (1, 2, 4))) for i, item in enumerate(items)]
    shifted = [replace(j, scores={name: score + shift for name, score in j.scores.items()}) for j in base]
    return [score_items(suite, items, judgements)[0] for judgements in (base, shifted)]


@pytest.mark.parametrize("suite", [OPENVE, REFVIE])
def test_two_runs_are_compared_item_by_item(suite):
    differences = compute_differences(suite, *two_runs(0.5, suite), "raw")
    assert {round(difference.interval.mean, 6) for difference in differences.values()} == {0.5}
    assert differences["overall"].interval.low == pytest.approx(0.5)  # every item has the same difference
    assert differences["overall"].p < 0.01
    a, b = two_runs(0.5, suite)
    assert compute_differences(suite, a[::-1], b[3:], "raw")["overall"].interval.mean == pytest.approx(0.5)
    with pytest.raises(InputError, check=lambda error: error.code == "no-shared-items"):
        compute_differences(suite, a[:2], b[2:], "raw")


def test_controls_that_do_not_score_below_the_real_edits_fail():
    items = [make_item(f"v{i}", "local_add") for i in range(8)]
    edits, _ = score_items(OPENVE, items, [make_judgement(OPENVE, item, 4, 4, 4) for item in items])

    def control(kind, *scores):
        controls = [replace(item, id=f"{kind}:{item.id}") for item in items]
        return score_items(OPENVE, controls, [make_judgement(OPENVE, item, *scores) for item in controls])[0]

    results = summarize_controls([*control("copy", 1, 5, 5), *control("degraded", 4, 4, 4)], edits)
    assert [(result.kind, result.items, result.control.mean, result.is_passed) for result in results] == [
        ("copy", 8, 1, True),
        ("degraded", 8, 4, False),
    ]


def test_drift_is_the_difference_to_the_first_answer():
    items = [make_item(f"v{i}", "local_add") for i in range(6)]
    earlier = [make_judgement(OPENVE, item, 3, 3, 3) for item in items]
    again = [make_judgement(OPENVE, replace(item, id=f"anchor:{item.id}"), 4, 4, 4, repeat=1) for item in items]
    drift = measure_drift(again, earlier)
    assert (drift.interval.mean, drift.items) == (1, 6)
    assert measure_drift([], earlier) is None


def make_report(items, judgements, **more):
    scored, unscored = score_items(OPENVE, items, judgements)
    about = {"controls": (), "drift": None, "excluded": {"creative_edit": 2}, "allow_partial": False} | more
    identity = RunIdentity(
        name="openve", title="mine_&_50%", items="", judge="scripted", version="1", rubrics={}, origin="own"
    )
    return reports.BenchmarkReport(
        suite=OPENVE, identity=identity, scored=scored, published=read_published_rows(OPENVE),
        result=aggregate_scores(OPENVE, items, scored, unscored, judgements), **about,
    )  # fmt: skip


def test_there_is_no_overall_score_below_full_coverage_unless_allowed():
    items = [make_item(category, category) for category in OPENVE.categories] + [make_item("more", "local_add")]
    judgements = [make_judgement(OPENVE, item, 4, 4, 4) for item in items[:-1]]
    withheld, allowed = make_report(items, judgements), make_report(items, judgements, allow_partial=True)
    assert reports.make_main_table(withheld).rows[0][2] == reports.make_column_table(withheld).rows[-1][2] == "-"
    assert reports.make_main_table(allowed).rows[0][2] == "4.00 ± ?"  # one item a category
    assert "5 of 6" in reports.make_main_table(allowed).rows[0][0]
    assert "1 of 6 items have no score" in reports.list_warnings(withheld)[0]
    assert reports.list_warnings(withheld)[0].endswith("Most common reasons: not judged (1).")
    assert "not judged" in reports.format_markdown(withheld)
    assert "the overall score leaves them out" in reports.list_warnings(allowed)[0]
    (single,) = (text for text in reports.list_warnings(allowed) if "only one item" in text)
    assert all(category in single for category in OPENVE.categories)


def test_no_category_is_named_if_all_have_two_items():
    items = [make_item(f"{category}{i}", category) for category in OPENVE.categories for i in range(2)]
    report = make_report(items, [make_judgement(OPENVE, item, 4, 4, 4) for item in items])
    assert "only one item" not in reports.format_markdown(report)


def test_an_incomplete_benchmark_fails_its_measurement_with_the_reason(monkeypatch, capsys):
    items = [make_item(category, category) for category in OPENVE.categories]
    report = make_report(items, [make_judgement(OPENVE, item, 4, 4, 4) for item in items[:-2]])
    monkeypatch.setattr(measurement, "run_benchmark", lambda options: report)
    assert measurement.BenchmarkMeasurement.run({"suite": "openve", "data": "sandbox"}) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: 2 of 5 items have no score")
    assert "Most common reasons: not judged (2)." in message


def test_a_report_without_judgements_has_no_scores():
    items = [make_item(category, category) for category in OPENVE.categories]
    report = make_report(items, [], allow_partial=True)
    assert all(cell == "-" for row in reports.make_main_table(report).rows[:2] for cell in row[2:])
    assert "Coverage: 0 of 5" in reports.format_markdown(report)


def test_reports_mark_doubtful_published_rows_and_name_excluded_categories():
    items = [make_item(category, category) for category in OPENVE.categories]
    report = make_report(items, [make_judgement(OPENVE, item, 4, 4, 4) for item in items])
    text = reports.format_markdown(report)
    assert "| Kiwi-Edit stage 2, 480p* (published) | gemini-2.5-pro | 2.92 |" in text
    assert "transposed" in text
    assert "Not scored: category creative_edit, 2 in the data" in text
    assert "not comparable" in text
    assert r"mine\_\&\_50\%" in reports.format_latex(report)
