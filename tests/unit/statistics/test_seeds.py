"""Means over items and seeds: what is left to chance by training counts, and no more of it than there is."""

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.statistics.paired import paired_difference
from kiwi.statistics.seeds import pooled_seed_variance, random_effects_mean

ITEMS = 40


def runs(rng, seeds, training, items=0.3, rest=1.0, mean=0.0):
    """Differences of paired runs: what training, an item, and an item in a run each add."""
    table = mean + training * rng.normal(size=(seeds, 1)) + items * rng.normal(size=(1, ITEMS))
    table = table + rest * rng.normal(size=(seeds, ITEMS))
    return [{str(index): float(value) for index, value in enumerate(row)} for row in table]


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("training", [0.0, 0.1, 0.5])
def test_false_positives_occur_at_the_nominal_rate(seeds, training):
    rng = np.random.default_rng(seeds)
    found = [random_effects_mean(runs(rng, seeds, training)) for _ in range(400)]
    rate = np.mean([one.p <= 0.05 for one in found])
    assert rate <= 0.08  # 400 draws of a chance of 0.05: 99.5% are below
    covered = [one.mean.low <= 0 <= one.mean.high for one in found]
    assert np.mean(covered) == pytest.approx(1 - rate, abs=0.003)


def test_intervals_over_items_alone_have_too_many_false_positives():
    """Why this module is there: training varies, and the items know nothing of it."""
    rng = np.random.default_rng(0)
    rate = 0.0
    for _ in range(200):
        of_items = np.mean([[*one.values()] for one in runs(rng, 2, 0.5)], axis=0)
        rate += (paired_difference([of_items.tolist()]).p <= 0.05) / 200
    assert rate > 0.3


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.15), (3, 0.15)])
def test_a_bootstrap_over_items_and_few_seeds_has_too_many_false_positives(seeds, least):
    rng = np.random.default_rng(0)
    rate = 0.0
    for _ in range(200):
        table = np.array([[*one.values()] for one in runs(rng, seeds, 0.5)])
        drawn = rng.multinomial(seeds, [1 / seeds] * seeds, 300) / seeds
        items = rng.multinomial(ITEMS, [1 / ITEMS] * ITEMS, 300) / ITEMS
        low, high = np.percentile(np.einsum("bs,si,bi->b", drawn, table, items), [2.5, 97.5])
        rate += (low > 0 or high < 0) / 200
    assert rate > least


def test_a_detectable_difference_is_detected_with_power_0_8():
    rng = np.random.default_rng(1)
    detectable = np.median([random_effects_mean(runs(rng, 3, 0.2)).detectable_difference(3) for _ in range(100)])
    found = [random_effects_mean(runs(rng, 3, 0.2, mean=detectable)).p <= 0.05 for _ in range(200)]
    assert 0.6 < np.mean(found) < 0.95


def less(one, base):
    return [{name: value - other[name] for name, value in seed.items()} for seed, other in zip(one, base, strict=True)]


@pytest.mark.parametrize("level", [0.05, 0.005])
def test_a_pilot_of_two_seeds_and_ten_arms_predicts_the_power_of_three_seeds(level):
    """Of differences to a base that all arms share, after correction for their number too."""
    rng = np.random.default_rng(6)
    power = []
    for _ in range(30):
        base = runs(rng, 2, 0.2)
        arms = [random_effects_mean(less(runs(rng, 2, 0.2), base)) for _ in range(10)]
        seen = float(np.median([arm.detectable_difference(3, pooled_seed_variance(arms), level) for arm in arms]))
        later = (random_effects_mean(less(runs(rng, 3, 0.2, mean=seen), runs(rng, 3, 0.2))).p for _ in range(40))
        power.append(np.mean([p <= level for p in later]))
    assert 0.6 < np.mean(power) < 0.9
    assert np.isnan(pooled_seed_variance([random_effects_mean([{"a": 1.0, "b": 2.0}])]))


def test_an_outlier_arm_does_not_change_the_pooled_variance():
    rng = np.random.default_rng(7)
    arms = [random_effects_mean(runs(rng, 3, 0.1)) for _ in range(9)]
    wild = random_effects_mean(runs(rng, 3, 3.0))
    assert pooled_seed_variance([*arms, wild]) == pytest.approx(pooled_seed_variance(arms), abs=0.02)


def test_the_pooled_variance_is_unbiased_and_never_negative():
    alike = random_effects_mean([{"a": 1.0, "b": -1.0, "c": 0.0}, {"a": -1.0, "b": 1.0, "c": 0.0}])
    assert pooled_seed_variance([alike]) == 0
    apart = random_effects_mean([{"loss": 1.0}, {"loss": 3.0}])
    assert pooled_seed_variance([apart]) == pytest.approx(2 / 0.4549, rel=1e-3)  # a variance of 2, and chi2's median


def test_degrees_of_freedom_are_those_of_the_varying_factor():
    """By hand, from Student's t: of runs that are alike the items', of pure noise less than one, so one."""
    items = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 5.0}
    alike = random_effects_mean([items] * 50)
    deviation = np.std(list(items.values()), ddof=1)
    assert alike.mean.high - alike.mean.mean == pytest.approx(3.182 * deviation / 2, rel=1e-3)  # t of three degrees
    noise = random_effects_mean(
        [{"a": 1.0, "b": -1.0, "c": 1.0, "d": -1.0}, {"a": -1.0, "b": 1.0, "c": -1.0, "d": 1.0}]
    )
    # The item's variance in a run is 2 x 4 / 3; of a mean over 4 items and 2 seeds an eighth of it.
    assert noise.mean.high == pytest.approx(12.706 * (8 / 3 / 8) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("owners", "kinds", "freedom"),
    [("aaaaaaaaab", "x" * 10, 1), ("abcdef", "xxxyyy", 4), ("abcdabcd", "xxxxyyyy", 3)],
)
def test_degrees_of_freedom_of_items(owners, kinds, freedom):
    """One large owner beside a small one is worth one; categories of their own owners add; shared owners count once."""
    names = [str(index) for index in range(len(owners))]
    values = dict(zip(names, [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 5.0], strict=False))
    found = random_effects_mean(
        [values] * 2, dict(zip(names, kinds, strict=True)), dict(zip(names, owners, strict=True))
    )
    assert found.item_df == pytest.approx(freedom)


def test_more_seeds_detect_smaller_differences_up_to_the_limit_of_the_items():
    found = random_effects_mean(runs(np.random.default_rng(2), 3, 0.5))
    sizes = [found.detectable_difference(seeds) for seeds in (2, 3, 5, 10, 1000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 2.8 * found.item_variance**0.5
    assert np.isnan(found.detectable_difference(1))


def test_categories_have_equal_weight_and_are_fixed_effects():
    numbers = {f"{kind}{index}": float(kind) for kind in range(2) for index in range(3 + 5 * kind)}
    noise = np.random.default_rng(3).normal(0, 0.01, (3, len(numbers)))
    seeds = [{name: value + float(e) for (name, value), e in zip(numbers.items(), row, strict=True)} for row in noise]
    found = random_effects_mean(seeds, {name: name[0] for name in numbers})
    assert found.mean.mean == pytest.approx(0.5, abs=0.01)
    assert found.mean.high - found.mean.low < 0.05
    assert random_effects_mean(seeds).mean.mean == pytest.approx(8 / 11, abs=0.01)


@pytest.mark.parametrize(
    ("sizes", "videos"),
    [([8] * 7, None), ([3, 3, 60], None), ([28, 28, 28, 7], None), ([10] * 5, 10), ([7] * 7, 7), ([40], "one large")],
)
def test_false_positives_stay_at_the_nominal_rate_for_unbalanced_categories_and_clusters(sizes, videos):
    names = [f"{kind}-{index}" for kind, count in enumerate(sizes) for index in range(count)]
    categories = {name: name.partition("-")[0] for name in names}
    number = {name: int(name.partition("-")[2]) for name in names}
    owners = {name: name if videos is None else number[name] for name in names}
    if videos == "one large":
        owners = {name: max(0, number[name] - 30) for name in names}
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        chance = {owner: rng.normal(0, 0.5) for owner in sorted(set(owners.values()), key=str)}
        numbers = []
        for _ in range(3):
            moved = rng.normal(0, 0.1)
            numbers.append({name: float(moved + chance[owners[name]] + rng.normal(0, 0.3)) for name in names})
        found.append(random_effects_mean(numbers, categories, owners).p)
    assert not np.isnan(found).any()
    assert np.mean(np.array(found) <= 0.05) <= 0.09  # 200 draws of a chance of 0.05: 99.5% are below


def test_edits_of_one_video_are_not_independent():
    rng = np.random.default_rng(4)
    videos = rng.normal(0.2, 1, 12)
    names = {f"{video}-{edit}": video for video in range(12) for edit in range(10)}
    seeds = [{name: float(videos[video] + rng.normal(0, 0.1)) for name, video in names.items()} for _ in range(3)]
    alone, together = random_effects_mean(seeds), random_effects_mean(seeds, clusters=names)
    assert together.item_variance / alone.item_variance == pytest.approx(10 * (12 / 11) / (120 / 119), rel=0.02)
    assert together.item_df == pytest.approx(11)


def test_a_scalar_of_each_run_has_no_item_variance():
    found = random_effects_mean([{"loss": value} for value in (1.0, 2.0, 3.0)])
    assert found.seed_std == 1
    assert found.mean.mean == 2
    assert found.mean.high - 2 == pytest.approx(4.303 / 3**0.5, rel=1e-3)  # Student's t of two degrees


def test_one_seed_has_no_interval():
    found = random_effects_mean(runs(np.random.default_rng(5), 1, 0.0))
    assert str(found.mean).endswith("± ?")
    assert np.isnan([found.p, found.seed_std, found.detectable_difference(3)]).all()


def test_one_item_in_a_category_has_no_interval():
    found = random_effects_mean([{"a": 1.0, "b": 2.0}, {"a": 1.5, "b": 2.0}], {"a": "one", "b": "two"})
    assert np.isnan([found.p, found.mean.low, found.detectable_difference(3)]).all()
    assert found.seed_std > 0


def test_equal_runs_have_no_variance():
    found = random_effects_mean([{"a": 0.0, "b": 0.0}] * 2)
    assert (found.p, found.mean) == (1.0, (0, 0, 0))
    assert np.isnan(found.detectable_difference(5))
    assert random_effects_mean([{"a": 1.0, "b": 1.0}] * 2).p == 0


@pytest.mark.parametrize(
    ("runs", "code"),
    [
        ([], "item-mismatch"),
        ([{}], "item-mismatch"),
        ([{"a": 1.0}, {"b": 1.0}], "item-mismatch"),
        ([{"a": 1.0}, {"a": float("nan")}], "not-finite"),
    ],
)
def test_runs_without_a_mean_are_refused(runs, code):
    with pytest.raises(InputError, check=lambda error: error.code == code):
        random_effects_mean(runs)
