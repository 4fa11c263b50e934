"""Differences of two editors: intervals that hold, tests that are exact where they can be."""

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.statistics.paired import flip_rate, holm, items_needed, paired_difference, repeat_std


def test_p_values_of_few_items_are_exact():
    found = paired_difference([[1.0, 2.0, 3.0]])
    assert found.mean.mean == 2
    assert found.p == 2 / 8  # all plus, all minus
    assert paired_difference([[1.0, 1.0, -2.0]]).p == 1
    assert paired_difference([[0.0, 0.0]]).p == 1


def test_strata_have_equal_weight_whatever_their_size():
    found = paired_difference([[1.0] * 30, [0.0, 0.5] * 5])
    assert found.mean.mean == pytest.approx((1 + 0.25) / 2)
    assert found.items == 40
    assert found.mean.low < found.mean.mean < found.mean.high
    assert 0 < found.p < 0.001


def test_edits_of_one_video_are_not_independent():
    rng = np.random.default_rng(1)
    videos = rng.normal(0.2, 1, 12)
    values, owners = [np.repeat(videos, 10).tolist()], [np.repeat(np.arange(12), 10).tolist()]
    alone, together = paired_difference(values), paired_difference(values, owners)
    assert together.detectable / alone.detectable == pytest.approx(np.sqrt(10) * 1.17, rel=0.1)  # 12 videos are few
    assert together.p > 10 * alone.p
    assert together.p == pytest.approx(paired_difference([videos.tolist()]).p)


def test_a_video_may_have_edits_of_several_categories():
    found = paired_difference([[1.0, 2.0, 3.0], [1.0, 3.0]], [["a", "b", "c"], ["a", "b"]])
    assert found.mean.mean == 2
    assert found.mean.low < 2 < found.mean.high


def test_equal_editors_differ_significantly_at_the_nominal_rate():
    rng = np.random.default_rng(2)
    ps = [paired_difference([rng.normal(0, 1, 12).tolist()]).p for _ in range(200)]
    assert np.mean(np.array(ps) <= 0.05) <= 0.09  # 200 draws of a chance of 0.05: 99.5% are below
    assert 0.4 < np.mean(ps) < 0.6


def test_a_detectable_difference_is_detected_with_power_0_8():
    rng = np.random.default_rng(3)
    detectable = paired_difference([rng.normal(0, 1, 60).tolist()]).detectable
    assert detectable == pytest.approx(2.8 / np.sqrt(60), rel=0.25)
    found = [paired_difference([rng.normal(2.8 / np.sqrt(60), 1, 60).tolist()]).p <= 0.05 for _ in range(60)]
    assert 0.6 < np.mean(found) < 0.95


def test_half_the_difference_needs_four_times_the_items():
    found = paired_difference([np.random.default_rng(4).normal(0, 1, 50).tolist()])
    assert items_needed(found, found.detectable / 2) == pytest.approx(200, abs=1)
    with pytest.raises(InputError):
        items_needed(found, 0)


def test_holm_matches_a_calculation_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_variation_of_repeats():
    assert repeat_std([[1, 3], [2, 2], [5]]) == pytest.approx(1)
    assert flip_rate([[1, 3], [2, 2], [5]]) == 0.5
    assert repeat_std([[1], [2]]) is flip_rate([[1]]) is None


@pytest.mark.parametrize("groups", [[], [[1.0], []]])
def test_empty_strata_and_mismatched_clusters_are_refused(groups):
    with pytest.raises(InputError, check=lambda error: error.code == "no-items"):
        paired_difference(groups)
    with pytest.raises(InputError, check=lambda error: error.code == "length-mismatch"):
        paired_difference([[1.0, 2.0]], [["a"]])
