import numpy as np
import pytest
from scipy.stats import norm

from kiwi.errors import InputError
from kiwi.statistics.intervals import Interval, bootstrap_mean


def test_the_interval_of_many_items_approaches_the_normal_one():
    values = np.random.default_rng(1).normal(3.0, 0.5, 400)
    interval = bootstrap_mean([values])
    half = norm.ppf(0.975) * values.std() / 400**0.5
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.mean == pytest.approx(half, rel=0.15)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.15)


def test_strata_have_equal_weight_whatever_their_size():
    interval = bootstrap_mean([[1.0] * 90 + [2.0] * 10, [5.0] * 3])
    assert interval.mean == pytest.approx((1.1 + 5.0) / 2)
    assert interval.low < interval.mean < interval.high
    # Only one stratum varies, and has half of the weight: half of its width.
    varying = bootstrap_mean([[1.0] * 90 + [2.0] * 10])
    assert interval.high - interval.low == pytest.approx((varying.high - varying.low) / 2, rel=0.1)


def test_intervals_have_their_nominal_coverage():
    rng = np.random.default_rng(2)
    covered = [low <= 1.0 <= high for _, low, high in (bootstrap_mean([rng.exponential(1.0, 40)]) for _ in range(100))]
    assert 85 <= sum(covered) <= 99


def test_intervals_are_deterministic_and_wider_for_more_confidence():
    values = [1.0, 2.0, 4.0, 4.5, 5.0]
    assert bootstrap_mean([values]) == bootstrap_mean([values])
    narrow, wide = bootstrap_mean([values], 0.5), bootstrap_mean([values], 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("items", [2, 3, 5, 20])
def test_intervals_of_few_items_have_their_nominal_coverage(items):
    rng = np.random.default_rng(items)
    covered = [
        low <= 2.0 <= high
        for _, low, high in (bootstrap_mean(rng.normal(2, 1, (5, items)).tolist()) for _ in range(200))
    ]
    assert sum(covered) >= 182  # 160 for two items without the small-sample factor
    assert sum(covered) < 200 or items == 2


def test_equal_items_have_an_interval_of_width_zero():
    interval = bootstrap_mean([[2.0, 2.0], [4.0, 4.0, 4.0]])
    assert interval.low == interval.high == interval.mean == 3.0


@pytest.mark.parametrize(
    ("strata", "clusters"), [([[3.0]], None), ([[2.0, 2.0], [4.0]], None), ([[3, 3]], [["a", "a"]])]
)
def test_a_single_item_has_no_interval(strata, clusters):
    interval = bootstrap_mean(strata, clusters=clusters)
    assert interval.mean == 3
    assert np.isnan([interval.low, interval.high]).all()
    assert str(interval) == "3.00 ± ?"


def test_clusters_in_different_strata_are_still_resampled():
    interval = bootstrap_mean([[1.0, 5.0], [1.0, 5.0], [5.0, 1.0]], clusters=[["a", "b"], ["b", "c"], ["a", "c"]])
    assert interval.mean == 3
    assert interval.high - interval.low > 1


def test_an_interval_prints_as_mean_and_half_width():
    assert str(Interval(3.517, 3.4, 3.6)) == "3.52 ± 0.10"


@pytest.mark.parametrize("strata", [[], [[1.0], []]])
def test_an_empty_stratum_is_rejected(strata):
    with pytest.raises(InputError, check=lambda error: error.code == "no-items"):
        bootstrap_mean(strata)
