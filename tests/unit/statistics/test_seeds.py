"""Random-effects means: seeds and items are both random, and intervals have their nominal coverage."""

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.statistics.paired import estimate_difference
from kiwi.statistics.seeds import estimate_mean, pool_seed_variance

ITEMS = 40


def runs(rng, seeds, training, items=0.3, rest=1.0, mean=0.0):
    """Differences of paired runs, with standard deviations of training, items, and items within a run."""
    table = mean + training * rng.normal(size=(seeds, 1)) + items * rng.normal(size=(1, ITEMS))
    table = table + rest * rng.normal(size=(seeds, ITEMS))
    return [{str(index): float(value) for index, value in enumerate(row)} for row in table]


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("training", [0.0, 0.1, 0.5])
def test_false_positives_occur_at_the_nominal_rate(seeds, training):
    rng = np.random.default_rng(seeds)
    estimates = [estimate_mean(runs(rng, seeds, training)) for _ in range(400)]
    rate = np.mean([estimate.p <= 0.05 for estimate in estimates])
    assert rate <= 0.08  # 99.5% of binomials (400, 0.05) are below
    covered = [estimate.interval.low <= 0 <= estimate.interval.high for estimate in estimates]
    assert np.mean(covered) == pytest.approx(1 - rate, abs=0.003)


def test_intervals_over_items_alone_have_too_many_false_positives():
    """The reason for `kiwi.statistics.seeds`: an interval over items ignores the variation between training seeds."""
    rng = np.random.default_rng(0)
    rate = 0.0
    for _ in range(200):
        item_means = np.mean([[*run.values()] for run in runs(rng, 2, 0.5)], axis=0)
        rate += (estimate_difference([item_means.tolist()]).p <= 0.05) / 200
    assert rate > 0.3


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.15), (3, 0.15)])
def test_a_bootstrap_over_items_and_few_seeds_has_too_many_false_positives(seeds, least):
    rng = np.random.default_rng(0)
    rate = 0.0
    for _ in range(200):
        table = np.array([[*run.values()] for run in runs(rng, seeds, 0.5)])
        seed_weights = rng.multinomial(seeds, [1 / seeds] * seeds, 300) / seeds
        item_weights = rng.multinomial(ITEMS, [1 / ITEMS] * ITEMS, 300) / ITEMS
        low, high = np.percentile(np.einsum("bs,si,bi->b", seed_weights, table, item_weights), [2.5, 97.5])
        rate += (low > 0 or high < 0) / 200
    assert rate > least


def test_a_detectable_difference_is_detected_with_power_0_8():
    rng = np.random.default_rng(1)
    detectable = np.median([estimate_mean(runs(rng, 3, 0.2)).detectable_difference(3) for _ in range(100)])
    significant = [estimate_mean(runs(rng, 3, 0.2, mean=detectable)).p <= 0.05 for _ in range(200)]
    assert 0.6 < np.mean(significant) < 0.95


def subtract(arm, base):
    return [{name: value - b[name] for name, value in a.items()} for a, b in zip(arm, base, strict=True)]


@pytest.mark.parametrize("level", [0.05, 0.005])
def test_a_pilot_of_two_seeds_and_ten_arms_predicts_the_power_of_three_seeds(level):
    """For differences from a shared base arm, also at a level corrected for multiple tests."""
    rng = np.random.default_rng(6)
    power = []
    for _ in range(30):
        base = runs(rng, 2, 0.2)
        arms = [estimate_mean(subtract(runs(rng, 2, 0.2), base)) for _ in range(10)]
        detectable = float(np.median([arm.detectable_difference(3, pool_seed_variance(arms), level) for arm in arms]))
        later = (estimate_mean(subtract(runs(rng, 3, 0.2, mean=detectable), runs(rng, 3, 0.2))).p for _ in range(40))
        power.append(np.mean([p <= level for p in later]))
    assert 0.6 < np.mean(power) < 0.9
    assert np.isnan(pool_seed_variance([estimate_mean([{"a": 1.0, "b": 2.0}])]))


def test_an_outlier_arm_does_not_change_the_pooled_variance():
    rng = np.random.default_rng(7)
    arms = [estimate_mean(runs(rng, 3, 0.1)) for _ in range(9)]
    outlier = estimate_mean(runs(rng, 3, 3.0))
    assert pool_seed_variance([*arms, outlier]) == pytest.approx(pool_seed_variance(arms), abs=0.02)


def test_the_pooled_variance_is_unbiased_and_never_negative():
    equal = estimate_mean([{"a": 1.0, "b": -1.0, "c": 0.0}, {"a": -1.0, "b": 1.0, "c": 0.0}])
    assert pool_seed_variance([equal]) == 0
    scalars = estimate_mean([{"loss": 1.0}, {"loss": 3.0}])
    assert pool_seed_variance([scalars]) == pytest.approx(2 / 0.4549, rel=1e-3)  # a variance of 2, and chi2's median


def test_degrees_of_freedom_are_those_of_the_varying_factor():
    """By hand, from Student's t: equal runs have those of the items; pure noise has less than one, so one."""
    items = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 5.0}
    equal = estimate_mean([items] * 50)
    std = np.std(list(items.values()), ddof=1)
    assert equal.interval.high - equal.interval.mean == pytest.approx(3.182 * std / 2, rel=1e-3)  # t of three degrees
    noise = estimate_mean([{"a": 1.0, "b": -1.0, "c": 1.0, "d": -1.0}, {"a": -1.0, "b": 1.0, "c": -1.0, "d": 1.0}])
    # The variance of items within a run is 2 x 4 / 3; that of a mean over 4 items and 2 seeds is an eighth of it.
    assert noise.interval.high == pytest.approx(12.706 * (8 / 3 / 8) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("clusters", "categories", "df"),
    [("aaaaaaaaab", "x" * 10, 1), ("abcdef", "xxxyyy", 4), ("abcdabcd", "xxxxyyyy", 3)],
)
def test_degrees_of_freedom_of_items(clusters, categories, df):
    """One for a large and a small cluster; added over categories with separate clusters; once for shared clusters."""
    names = [str(index) for index in range(len(clusters))]
    values = dict(zip(names, [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 5.0], strict=False))
    estimate = estimate_mean(
        [values] * 2, dict(zip(names, categories, strict=True)), dict(zip(names, clusters, strict=True))
    )
    assert estimate.item_df == pytest.approx(df)


def test_more_seeds_detect_smaller_differences_up_to_the_limit_of_the_items():
    estimate = estimate_mean(runs(np.random.default_rng(2), 3, 0.5))
    sizes = [estimate.detectable_difference(seeds) for seeds in (2, 3, 5, 10, 1000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 2.8 * estimate.item_variance**0.5
    assert np.isnan(estimate.detectable_difference(1))


def test_categories_have_equal_weight_and_are_fixed_effects():
    levels = {f"{kind}{index}": float(kind) for kind in range(2) for index in range(3 + 5 * kind)}
    noise = np.random.default_rng(3).normal(0, 0.01, (3, len(levels)))
    seeds = [{name: value + float(e) for (name, value), e in zip(levels.items(), row, strict=True)} for row in noise]
    estimate = estimate_mean(seeds, {name: name[0] for name in levels})
    assert estimate.interval.mean == pytest.approx(0.5, abs=0.01)
    assert estimate.interval.high - estimate.interval.low < 0.05
    assert estimate_mean(seeds).interval.mean == pytest.approx(8 / 11, abs=0.01)


@pytest.mark.parametrize(
    ("sizes", "videos"),
    [([8] * 7, None), ([3, 3, 60], None), ([28, 28, 28, 7], None), ([10] * 5, 10), ([7] * 7, 7), ([40], "one large")],
)
def test_false_positives_stay_at_the_nominal_rate_for_unbalanced_categories_and_clusters(sizes, videos):
    names = [f"{kind}-{index}" for kind, count in enumerate(sizes) for index in range(count)]
    categories = {name: name.partition("-")[0] for name in names}
    number = {name: int(name.partition("-")[2]) for name in names}
    clusters = {name: name if videos is None else number[name] for name in names}
    if videos == "one large":
        clusters = {name: max(0, number[name] - 30) for name in names}
    rng = np.random.default_rng(0)
    ps = []
    for _ in range(200):
        cluster_effect = {cluster: rng.normal(0, 0.5) for cluster in sorted(set(clusters.values()), key=str)}
        seed_runs = []
        for _ in range(3):
            seed_effect = rng.normal(0, 0.1)
            seed_runs.append(
                {name: float(seed_effect + cluster_effect[clusters[name]] + rng.normal(0, 0.3)) for name in names}
            )
        ps.append(estimate_mean(seed_runs, categories, clusters).p)
    assert not np.isnan(ps).any()
    assert np.mean(np.array(ps) <= 0.05) <= 0.09  # 99.5% of binomials (200, 0.05) are below


def test_edits_of_one_video_are_not_independent():
    rng = np.random.default_rng(4)
    videos = rng.normal(0.2, 1, 12)
    names = {f"{video}-{edit}": video for video in range(12) for edit in range(10)}
    seeds = [{name: float(videos[video] + rng.normal(0, 0.1)) for name, video in names.items()} for _ in range(3)]
    independent, clustered = estimate_mean(seeds), estimate_mean(seeds, clusters=names)
    assert clustered.item_variance / independent.item_variance == pytest.approx(10 * (12 / 11) / (120 / 119), rel=0.02)
    assert clustered.item_df == pytest.approx(11)


def test_a_scalar_of_each_run_has_no_item_variance():
    estimate = estimate_mean([{"loss": value} for value in (1.0, 2.0, 3.0)])
    assert estimate.seed_std == 1
    assert estimate.interval.mean == 2
    assert estimate.interval.high - 2 == pytest.approx(4.303 / 3**0.5, rel=1e-3)  # Student's t of two degrees


def test_one_seed_has_no_interval():
    estimate = estimate_mean(runs(np.random.default_rng(5), 1, 0.0))
    assert str(estimate.interval).endswith("± ?")
    assert np.isnan([estimate.p, estimate.seed_std, estimate.detectable_difference(3)]).all()


def test_one_item_in_a_category_has_no_interval():
    estimate = estimate_mean([{"a": 1.0, "b": 2.0}, {"a": 1.5, "b": 2.0}], {"a": "one", "b": "two"})
    assert np.isnan([estimate.p, estimate.interval.low, estimate.detectable_difference(3)]).all()
    assert estimate.seed_std > 0


def test_equal_runs_have_no_variance():
    estimate = estimate_mean([{"a": 0.0, "b": 0.0}] * 2)
    assert (estimate.p, estimate.interval) == (1.0, (0, 0, 0))
    assert np.isnan(estimate.detectable_difference(5))
    assert estimate_mean([{"a": 1.0, "b": 1.0}] * 2).p == 0


@pytest.mark.parametrize(
    ("runs", "code"),
    [
        ([], "mismatched-items"),
        ([{}], "mismatched-items"),
        ([{"a": 1.0}, {"b": 1.0}], "mismatched-items"),
        ([{"a": 1.0}, {"a": float("nan")}], "not-finite"),
    ],
)
def test_runs_without_a_mean_are_rejected(runs, code):
    with pytest.raises(InputError, check=lambda error: error.code == code):
        estimate_mean(runs)
