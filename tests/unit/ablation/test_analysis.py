"""The analysis of a study: differences of paired runs, corrected for the number of arms, and NaN for unknown values."""

import json
from dataclasses import replace

import numpy as np
import pytest

from kiwi.ablation.analysis import summarize_arms, to_json
from kiwi.ablation.report import _summarize
from kiwi.ablation.results import RunResult
from kiwi.ablation.study import Study
from kiwi.ablation.tables import (
    make_brief_table,
    make_category_table,
    make_main_table,
    make_overview_table,
    make_tidy_table,
)
from kiwi.evaluation.measurement import Metric
from kiwi.training.run_log import ValidationMeasurement

OVERALL, LOSS = Metric(name="sandbox overall"), Metric(name="val/loss", better="lower")


def make_results(effects, seeds=(0, 1, 2), training=0.05, items=28):
    """Make runs whose seeds and items affect all arms alike, with independent variation of training and noise."""
    rng, results = np.random.default_rng(0), []
    names = [f"item{index}" for index in range(items)]
    shared = {seed: rng.normal(0, 0.5) + rng.normal(0, 1, items) for seed in seeds}
    for label, effect in effects.items():
        for seed in seeds:
            values = 3 + effect + shared[seed] + rng.normal(0, training) + rng.normal(0, 0.2, items)
            results.append(
                RunResult(
                    label=label, seed=seed, items={OVERALL.name: dict(zip(names, map(float, values), strict=True))},
                    categories={name: f"kind{index % 4}" for index, name in enumerate(names)}, clusters={},
                    scalar_metrics={"val/loss": 0.5 - effect / 10 + 0.01 * seed}, curves={}, by_sigma={},
                    cost={"samples_per_second": 2.0 if label == "base" else 4.0, "seconds": 3.0, "steps": 5.0},
                )
            )  # fmt: skip
    return results


def test_paired_runs_reveal_effects_and_noise_is_not_significant():
    results = make_results({"base": 0.0, "up": 0.6, "same": 0.0, "down": -0.6})
    base, up, same, down = summarize_arms(OVERALL, results, ["base", "up", "same", "down"])
    assert base.comparison is None
    assert [arm.comparison.verdict for arm in (up, same, down)] == ["better", "not significant", "worse"]
    assert up.comparison.difference.interval.mean == pytest.approx(0.6, abs=0.1)
    assert up.comparison.difference.interval.low > 0.3
    assert base.mean.seed_std > 0.3  # seeds affect all arms, and cancel in their differences
    assert up.comparison.difference.seed_std < 0.15
    assert up.comparison.p >= up.comparison.difference.p
    assert up.comparison.p_models < 0.01  # of the difference between the trained models, without other seeds
    assert same.comparison.p == same.comparison.difference.p  # Holm's factor for the largest p value is 1
    assert up.comparison.detectable[5] < up.comparison.detectable[3]  # by number of seeds


def test_a_lower_loss_is_better():
    results = make_results({"base": 0.0, "up": 0.6})
    _, up = summarize_arms(LOSS, results, ["base", "up"])
    assert up.comparison.verdict == "better"
    assert np.isnan(up.comparison.p_models)
    assert up.mean.items == 1


def test_the_verdict_for_a_metric_without_a_better_direction_is_differs():
    results = make_results({"base": 0.0, "up": 0.6})
    assert summarize_arms(replace(LOSS, better="neither"), results, ["base", "up"])[1].comparison.verdict == "differs"


def test_only_seeds_that_both_arms_have_are_compared():
    results = make_results({"base": 0.0, "up": 0.6})
    results = [result for result in results if (result.label, result.seed) not in {("base", 0), ("up", 1)}]
    base, up = summarize_arms(OVERALL, results, ["base", "up"])
    assert (list(base.seeds), list(up.seeds)) == ([1, 2], [0, 2])
    assert up.comparison.difference.seeds == 1
    assert up.comparison.verdict == "unknown"
    unpaired = [result for result in results if result.seed != 2]
    assert summarize_arms(OVERALL, unpaired, ["base", "up"])[1].comparison is None


def test_an_arm_without_results_has_no_summary_and_does_not_count_for_the_correction():
    results = make_results({"base": 0.0, "up": 0.05})
    base, up = summarize_arms(OVERALL, results, ["base", "up", "failed"])
    assert [base.label, up.label] == ["base", "up"]
    assert up.comparison.p == up.comparison.difference.p


def test_items_that_one_seed_lacks_are_omitted_for_all_seeds():
    results = make_results({"base": 0.0, "up": 0.6})
    del results[1].items[OVERALL.name]["item3"]
    base, up = summarize_arms(OVERALL, results, ["base", "up"])
    assert (base.mean.items, up.mean.items, up.comparison.difference.items) == (27, 28, 27)


def test_nan_becomes_null_in_json():
    results = make_results({"base": 0.0, "up": 0.6}, seeds=(0,))
    summaries = {metric.name: summarize_arms(metric, results, ["base", "up"]) for metric in (OVERALL, LOSS)}
    record = json.loads(json.dumps(to_json(summaries)))
    assert record[OVERALL.name][1]["comparison"]["p"] is None
    assert record[OVERALL.name][1]["mean"]["mean"][0] == pytest.approx(3.6, abs=1)


def test_tables_have_a_cell_for_every_known_value_and_empty_cells_otherwise():
    results = make_results({"base": 0.0, "up": 0.6})
    summaries = {metric.name: summarize_arms(metric, results, ["base", "up"]) for metric in (OVERALL, LOSS)}
    overall = summaries[OVERALL.name]
    table = make_main_table("Try", OVERALL.name, overall, {"base": None}, results)
    base, up = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert (base["difference"], base["p"], base["parameters (M)"]) == ("", "", "")
    assert (base["step time, base = 1"], up["step time, base = 1"]) == ("1.00", "0.50")
    assert up["verdict"] == "better"
    alone = make_main_table("Try", OVERALL.name, summarize_arms(OVERALL, results, ["up"]), {}, results)
    assert alone.rows[0][-1] == ""  # the base has no result
    assert "*" in make_overview_table("Try", summaries).rows[1][1]
    assert make_category_table("Try", OVERALL.name, overall).header == ("arm", "kind0", "kind1", "kind2", "kind3")
    assert make_brief_table("Try", OVERALL.name, overall).rows[1][5] == "better"
    assert [row[-1] for row in make_tidy_table(summaries).rows] == ["", "better", "", "better"]
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_the_note_on_a_metric_that_no_run_has_says_what_was_logged_and_what_to_change(capsys):
    measurement = ValidationMeasurement(names=("val/lsos",))
    study = Study(title="", stages={}, seeds=[0], arms=[], measure={}, measurements=[measurement])
    result = replace(make_results({"base": 0.0}, seeds=(0,))[0], scalar_metrics={"val/loss": 1.0})
    assert _summarize(study, [result]) == {}
    note = " ".join(capsys.readouterr().err.split())
    assert "omits val/lsos, which no run has: validation logged only val/loss" in note
    assert "Correct `measure` in the study's file" in note
