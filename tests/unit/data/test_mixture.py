from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiwi.data.mixture import sampling_probabilities, shuffled_epochs, weighted_round_robin
from kiwi.errors import InputError

STRATA = [(0, "add")] * 6 + [(0, "remove")] * 2 + [(1, "none")] * 2


def total(shares, *strata):
    return sum(share for share, stratum in zip(shares, STRATA, strict=True) if stratum in strata)


def test_without_weights_all_samples_have_equal_probabilities():
    assert sampling_probabilities(STRATA, [None, None], {}) == pytest.approx([0.1] * 10)


def test_the_probability_of_a_source_is_its_weight_and_does_not_depend_on_its_size():
    shares = sampling_probabilities(STRATA, [1.0, 3.0], {})
    assert total(shares, (1, "none")) == pytest.approx(0.75)
    assert total(shares, (0, "add")) == pytest.approx(0.25 * 6 / 8)


def test_category_weights_apply_within_a_source_and_do_not_change_the_sources_probability():
    shares = sampling_probabilities(STRATA, [1.0, 1.0], {"remove": 3.0})
    assert total(shares, (1, "none")) == pytest.approx(0.5)
    assert total(shares, (0, "remove")) == pytest.approx(0.5 * 6 / 12)
    assert sum(sampling_probabilities(STRATA, [None, None], {"remove": 0.0})[6:8]) == 0
    assert sum(sampling_probabilities(STRATA, [None, None], {"remove": 0.0})) == pytest.approx(1)


@pytest.mark.parametrize(
    ("sources", "categories", "code", "value"),
    [
        ([1.0, None], {}, "missing-source-weight", r"\[1.0, None\]"),
        ([1.0, -1.0], {}, "out-of-range", "-1.0"),
        ([1.0, float("nan")], {}, "out-of-range", "nan"),
        ([None, None], {"add": float("inf")}, "out-of-range", "inf"),
        ([None, None], {"ad": 2.0}, "unknown-category", r"\['ad'\].*add"),
        ([0.0, 0.0], {}, "no-samples", ""),
    ],
)
def test_invalid_weights_are_rejected(sources, categories, code, value):
    with pytest.raises(InputError, match=value, check=lambda error: error.code == code):
        sampling_probabilities(STRATA, sources, categories)


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=6), st.integers(1, 400), st.integers(0, 9))
def test_after_any_number_of_draws_counts_differ_from_the_proportions_by_at_most_the_number_of_names(
    weights, count, seed
):
    counts = Counter(islice(weighted_round_robin(dict(enumerate(weights)), seed), count))
    for index, weight in enumerate(weights):
        assert abs(counts[index] - count * weight / sum(weights)) <= len(weights)


def test_the_round_robin_is_a_function_of_its_key():
    def first_names(*key_parts):
        return list(islice(weighted_round_robin({"a": 1.0, "b": 1.3, "c": 0.4}, *key_parts), 50))

    assert first_names(1) == first_names(1)
    assert first_names(1) != first_names(2)


def test_every_epoch_has_all_members_once_in_a_different_order():
    drawn = list(islice(shuffled_epochs("abcdefgh", 3), 24))
    assert [sorted(drawn[start : start + 8]) for start in (0, 8, 16)] == [sorted("abcdefgh")] * 3
    assert drawn[:8] != drawn[8:16]
    assert drawn == list(islice(shuffled_epochs("abcdefgh", 3), 24))
    assert drawn != list(islice(shuffled_epochs("abcdefgh", 4), 24))
