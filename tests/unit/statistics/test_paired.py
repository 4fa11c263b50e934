"""Paired differences: coverage of intervals, exact and random permutation tests, detectable differences."""

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.statistics.paired import adjust_by_holm, count_items_needed, estimate_difference, flip_rate, repeat_std


def test_p_values_of_few_items_are_exact():
    difference = estimate_difference([[1.0, 2.0, 3.0]])
    assert difference.interval.mean == 2
    assert difference.p == 2 / 8  # all signs + or all signs -
    assert estimate_difference([[1.0, 1.0, -2.0]]).p == 1
    assert estimate_difference([[0.0, 0.0]]).p == 1


def test_strata_have_equal_weight_whatever_their_size():
    difference = estimate_difference([[1.0] * 30, [0.0, 0.5] * 5])
    assert difference.interval.mean == pytest.approx((1 + 0.25) / 2)
    assert difference.items == 40
    assert difference.interval.low < difference.interval.mean < difference.interval.high
    assert 0 < difference.p < 0.001


def test_edits_of_one_video_are_not_independent():
    rng = np.random.default_rng(1)
    videos = rng.normal(0.2, 1, 12)
    values, clusters = [np.repeat(videos, 10).tolist()], [np.repeat(np.arange(12), 10).tolist()]
    independent, clustered = estimate_difference(values), estimate_difference(values, clusters)
    assert clustered.detectable / independent.detectable == pytest.approx(
        np.sqrt(10) * 1.17, rel=0.1
    )  # 1.17: small-sample factor of 12 videos
    assert clustered.p > 10 * independent.p
    assert clustered.p == pytest.approx(estimate_difference([videos.tolist()]).p)


def test_a_video_may_have_edits_of_several_categories():
    difference = estimate_difference([[1.0, 2.0, 3.0], [1.0, 3.0]], [["a", "b", "c"], ["a", "b"]])
    assert difference.interval.mean == 2
    assert difference.interval.low < 2 < difference.interval.high


def test_equal_editors_differ_significantly_at_the_nominal_rate():
    rng = np.random.default_rng(2)
    ps = [estimate_difference([rng.normal(0, 1, 12).tolist()]).p for _ in range(200)]
    assert np.mean(np.array(ps) <= 0.05) <= 0.09  # 99.5% of binomials (200, 0.05) are below
    assert 0.4 < np.mean(ps) < 0.6


def test_a_detectable_difference_is_detected_with_power_0_8():
    rng = np.random.default_rng(3)
    detectable = estimate_difference([rng.normal(0, 1, 60).tolist()]).detectable
    assert detectable == pytest.approx(2.8 / np.sqrt(60), rel=0.25)
    significant = [estimate_difference([rng.normal(2.8 / np.sqrt(60), 1, 60).tolist()]).p <= 0.05 for _ in range(60)]
    assert 0.6 < np.mean(significant) < 0.95


def test_half_the_difference_needs_four_times_the_items():
    difference = estimate_difference([np.random.default_rng(4).normal(0, 1, 50).tolist()])
    assert count_items_needed(difference, difference.detectable / 2) == pytest.approx(200, abs=1)
    with pytest.raises(InputError):
        count_items_needed(difference, 0)


def test_holm_matches_a_calculation_by_hand():
    assert adjust_by_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_by_holm([0.6, 0.9]) == [1.0, 1.0]
    assert adjust_by_holm([]) == []


def test_variation_of_repeats():
    assert repeat_std([[1, 3], [2, 2], [5]]) == pytest.approx(1)
    assert flip_rate([[1, 3], [2, 2], [5]]) == 0.5
    assert repeat_std([[1], [2]]) is flip_rate([[1]]) is None


@pytest.mark.parametrize("strata", [[], [[1.0], []]])
def test_empty_strata_and_mismatched_clusters_are_rejected(strata):
    with pytest.raises(InputError, check=lambda error: error.code == "no-items"):
        estimate_difference(strata)
    with pytest.raises(InputError, check=lambda error: error.code == "mismatched-lengths"):
        estimate_difference([[1.0, 2.0]], [["a"]])
