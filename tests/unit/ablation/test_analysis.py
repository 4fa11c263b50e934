"""What is said of a study: differences by pairs, corrected for the arms, and nothing that is not known."""

import json

import numpy as np
import pytest

from kiwi.ablation.analysis import measures_of, plain, rows_of
from kiwi.ablation.report import brief_table, category_table, main_table, short_table
from kiwi.ablation.results import Result

MEASURE = "sandbox overall"


def results(effects, seeds=(0, 1, 2), training=0.05, items=28):
    """Runs whose seeds and items move all arms alike, but for `training` and noise of their own."""
    rng, found = np.random.default_rng(0), []
    names = [f"item{index}" for index in range(items)]
    shared = {seed: rng.normal(0, 0.5) + rng.normal(0, 1, items) for seed in seeds}
    for label, effect in effects.items():
        for seed in seeds:
            numbers = 3 + effect + shared[seed] + rng.normal(0, training) + rng.normal(0, 0.2, items)
            found.append(
                Result(
                    label=label, seed=seed, items={MEASURE: dict(zip(names, map(float, numbers), strict=True))},
                    categories={name: f"kind{index % 4}" for index, name in enumerate(names)}, clusters={},
                    numbers={"val/loss": 0.5 - effect / 10 + 0.01 * seed}, curves={}, by_sigma={},
                    cost={"samples_per_second": 2.0 if label == "base" else 4.0, "seconds": 3.0, "steps": 5.0},
                )
            )  # fmt: skip
    return found


def test_differences_are_found_by_pairs_and_noise_is_called_so():
    found = results({"base": 0.0, "up": 0.6, "same": 0.0, "down": -0.6})
    base, up, same, down = rows_of(MEASURE, found, ["base", "up", "same", "down"])
    assert base.against is None
    assert [row.against.verdict for row in (up, same, down)] == ["better", "noise", "worse"]
    assert up.against.seeded.mean.mean == pytest.approx(0.6, abs=0.1)
    assert up.against.seeded.mean.low > 0.3
    assert base.of.seed_std > 0.3  # seeds move all arms, and their differences do not see it
    assert up.against.seeded.seed_std < 0.15
    assert up.against.p >= up.against.seeded.p
    assert up.against.p_models < 0.01
    assert same.against.p == same.against.seeded.p  # the largest is corrected by one
    assert up.against.detectable[5] < up.against.detectable[3]


def test_a_lower_loss_is_better():
    found = results({"base": 0.0, "up": 0.6})
    _, up = rows_of("val/loss", found, ["base", "up"])
    assert up.against.verdict == "better"
    assert np.isnan(up.against.p_models)
    assert up.of.items == 1


def test_a_loss_under_wrong_conditions_is_neither_better_nor_worse():
    found = results({"base": 0.0, "up": 0.6})
    for one in found:
        one.numbers["val/loss_swapped"] = one.numbers["val/loss"]
    assert rows_of("val/loss_swapped", found, ["base", "up"])[1].against.verdict == "differs"


def test_only_seeds_that_both_have_are_compared():
    found = [one for one in results({"base": 0.0, "up": 0.6}) if (one.label, one.seed) not in {("base", 0), ("up", 1)}]
    base, up = rows_of(MEASURE, found, ["base", "up"])
    assert (list(base.seeds), list(up.seeds)) == ([1, 2], [0, 2])
    assert up.against.seeded.seeds == 1
    assert up.against.verdict == "unknown"
    assert rows_of(MEASURE, [one for one in found if one.seed != 2], ["base", "up"])[1].against is None


def test_an_arm_without_results_has_no_row_and_counts_for_no_correction():
    found = results({"base": 0.0, "up": 0.05})
    alone = rows_of(MEASURE, found, ["base", "up", "failed"])
    assert [row.label for row in alone] == ["base", "up"]
    assert alone[1].against.p == alone[1].against.seeded.p


def test_items_that_a_seed_lacks_are_left_out_of_all():
    found = results({"base": 0.0, "up": 0.6})
    del found[1].items[MEASURE]["item3"]
    base, up = rows_of(MEASURE, found, ["base", "up"])
    assert (base.of.items, up.of.items, up.against.seeded.items) == (27, 28, 27)


def test_the_record_is_json_and_says_null_of_what_is_not_known():
    found = results({"base": 0.0, "up": 0.6}, seeds=(0,))
    assert measures_of(found) == [MEASURE, "val/loss"]
    said = json.loads(json.dumps(plain({name: rows_of(name, found, ["base", "up"]) for name in measures_of(found)})))
    assert said[MEASURE][1]["against"]["p"] is None
    assert said[MEASURE][1]["of"]["mean"][0] == pytest.approx(3.6, abs=1)


def test_tables_show_what_is_known_and_nothing_else():
    found = results({"base": 0.0, "up": 0.6})
    rows = {name: rows_of(name, found, ["base", "up"]) for name in measures_of(found)}
    table = main_table("Try", MEASURE, rows[MEASURE], {"base": None}, found)
    base, up = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert (base["difference"], base["p"], base["parameters (M)"]) == ("", "", "")
    assert (base["step time, base 1"], up["step time, base 1"]) == ("1.00", "0.50")
    assert up[""] == "better"
    alone = main_table("Try", MEASURE, rows_of(MEASURE, found, ["up"]), {}, found)
    assert alone.rows[0][-1] == ""  # the base has no result
    assert "*" in short_table("Try", rows).rows[1][1]
    assert category_table("Try", MEASURE, rows[MEASURE]).header == ("arm", "kind0", "kind1", "kind2", "kind3")
    assert brief_table("Try", MEASURE, rows[MEASURE]).rows[1][5] == "better"
    assert {len(row) for row in table.rows} == {len(table.header)}
