from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiwi.data.mixture import passes, shares, turns
from kiwi.errors import InputError

CELLS = [(0, "add")] * 6 + [(0, "remove")] * 2 + [(1, "none")] * 2


def total(found, *where):
    return sum(share for share, cell in zip(found, CELLS, strict=True) if cell in where)


def test_without_weights_every_sample_is_drawn_alike():
    assert shares(CELLS, [None, None], {}) == pytest.approx([0.1] * 10)


def test_a_set_has_its_weights_share_whatever_its_size():
    found = shares(CELLS, [1.0, 3.0], {})
    assert total(found, (1, "none")) == pytest.approx(0.75)
    assert total(found, (0, "add")) == pytest.approx(0.25 * 6 / 8)


def test_a_categorys_weight_counts_within_its_set_and_leaves_the_sets_share():
    found = shares(CELLS, [1.0, 1.0], {"remove": 3.0})
    assert total(found, (1, "none")) == pytest.approx(0.5)
    assert total(found, (0, "remove")) == pytest.approx(0.5 * 6 / 12)
    assert sum(shares(CELLS, [None, None], {"remove": 0.0})[6:8]) == 0
    assert sum(shares(CELLS, [None, None], {"remove": 0.0})) == pytest.approx(1)


@pytest.mark.parametrize(
    ("sets", "categories", "told"),
    [
        ([1.0, None], {}, "every data set .* a weight, or none"),
        ([1.0, -1.0], {}, "negative"),
        ([1.0, float("nan")], {}, "finite"),
        ([None, None], {"add": float("inf")}, "finite"),
        ([None, None], {"ad": 2.0}, r"\['ad'\].*add"),
        ([0.0, 0.0], {}, "nothing to train on"),
    ],
)
def test_weights_that_say_nothing_are_refused(sets, categories, told):
    with pytest.raises(InputError, match=told):
        shares(CELLS, sets, categories)


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=6), st.integers(1, 400), st.integers(0, 9))
def test_of_any_number_of_turns_each_has_its_share_give_or_take_one_of_each_other(weights, count, seed):
    found = Counter(islice(turns(dict(enumerate(weights)), seed), count))
    for index, weight in enumerate(weights):
        assert abs(found[index] - count * weight / sum(weights)) <= len(weights)


def test_turns_follow_from_their_key():
    def first(*where):
        return list(islice(turns({"a": 1.0, "b": 1.3, "c": 0.4}, *where), 50))

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_every_pass_has_all_members_once_in_an_order_of_its_own():
    found = list(islice(passes("abcdefgh", 3), 24))
    assert [sorted(found[at : at + 8]) for at in (0, 8, 16)] == [sorted("abcdefgh")] * 3
    assert found[:8] != found[8:16]
    assert found == list(islice(passes("abcdefgh", 3), 24))
    assert found != list(islice(passes("abcdefgh", 4), 24))
