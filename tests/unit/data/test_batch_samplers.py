from collections import Counter
from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiwi.data.batch_samplers import (
    MixtureBatchSampler,
    SequentialBatchSampler,
    compute_probabilities,
    shuffled_epochs,
    weighted_round_robin,
)
from kiwi.data.buckets import Bucket
from kiwi.encoded import TaskKind
from kiwi.errors import InputError

VIDEO, WIDE = Bucket(TaskKind.video, 32, 32, 5, 0), Bucket(TaskKind.video, 32, 64, 5, 0)
REFERENCE = Bucket(TaskKind.reference, 32, 32, 5, 1)
BUCKETS = [VIDEO] * 8 + [WIDE] * 4 + [REFERENCE] * 6
STRATA = [(0, "add")] * 4 + [(0, "remove")] * 8 + [(1, "none")] * 6


def sampler(weights=(None, None), categories=None, batch=2, **options):
    shares = compute_probabilities(STRATA, list(weights), categories or {})
    return MixtureBatchSampler(BUCKETS, STRATA, shares, batch, **{"seed": 0, **options})


def batches(sampler, count):
    """The first `count` batches, over as many epochs as are needed."""
    consumed = []
    sampler.get_batches_seen = lambda: len(consumed)
    while len(consumed) < count:
        consumed += list(sampler)
    return consumed[:count]


def counts_of(batches):
    return Counter(item.sample for item in chain(*batches))


def test_batches_are_homogeneous_and_numbered():
    sampled = batches(sampler(), 60)
    assert all(len({BUCKETS[item.sample] for item in batch}) == 1 for batch in sampled)
    assert [{item.batch for item in batch} for batch in sampled] == [{number} for number in range(60)]
    assert all(len(batch) == 2 for batch in sampled)


def test_an_epoch_has_just_enough_batches_for_all_samples_and_draws_nearly_each_once():
    assert len(sampler()) == 9
    counts = counts_of(batches(sampler(), 90))
    assert sum(counts.values()) == 180
    assert set(counts) == set(range(18))
    assert max(counts.values()) - min(counts.values()) <= 2


def test_sources_and_categories_are_drawn_by_their_weights():
    counts = counts_of(batches(sampler((3.0, 1.0), {"add": 2.0}), 400))
    share = {stratum: sum(counts[i] for i in range(18) if STRATA[i] == stratum) / 800 for stratum in set(STRATA)}
    assert share[1, "none"] == pytest.approx(0.25, abs=0.01)
    assert share[0, "add"] == pytest.approx(0.75 * 0.5, abs=0.01)
    assert share[0, "remove"] == pytest.approx(0.75 * 0.5, abs=0.01)
    assert max(counts_of(batches(sampler((1.0, 0.0)), 50))) < 12


def test_the_order_is_a_function_of_the_seed_alone():
    assert batches(sampler(), 30) == batches(sampler(), 30)
    assert batches(sampler(), 30) != batches(sampler(seed=1), 30)


@pytest.mark.parametrize("consumed", [0, 5, 9, 31])
def test_a_resumed_run_continues_after_the_batches_that_were_trained_on(consumed):
    whole = batches(sampler(), 45)
    rest = list(sampler(get_batches_seen=lambda: consumed))
    assert rest == whole[consumed : (consumed // 9 + 1) * 9]


def test_a_long_run_does_not_skip_all_earlier_batches_at_every_epoch():
    observed, restarts = sampler(), []
    make_batches = observed._generate_batches
    observed._generate_batches = lambda: restarts.append(True) or make_batches()
    assert batches(observed, 45) == batches(sampler(), 45)
    assert not restarts
    observed.get_batches_seen = lambda: 20
    assert list(observed) == batches(sampler(), 27)[20:]
    assert restarts == [True]


def test_ranks_have_the_same_kind_at_a_step_and_together_the_batch_of_one_rank():
    whole = batches(sampler(batch=4), 20)
    parts = [batches(sampler(batch=2, rank=rank, world_size=2), 20) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    assert len(sampler(batch=2, rank=1, world_size=2)) == len(sampler(batch=4)) == 5


def test_a_bucket_smaller_than_a_batch_repeats_its_samples():
    sampled = batches(sampler(batch=8), 9)
    assert all(len(batch) == 8 for batch in sampled)
    wide = next(batch for batch in sampled if BUCKETS[batch[0].sample] == WIDE)
    assert set(Counter(item.sample for item in wide).values()) == {2}


def test_the_hash_of_the_order_changes_with_everything_that_changes_the_batch_order():
    ids = [str(i) for i in range(18)]
    order_hash = sampler().hash_order(ids)
    assert order_hash == sampler(batch=1, world_size=2).hash_order(ids)
    others = [sampler(seed=1), sampler(batch=4), sampler((1.0, 2.0)), sampler(categories={"add": 2.0})]
    assert order_hash not in [other.hash_order(ids) for other in others]
    assert order_hash != sampler().hash_order([*ids[:-1], "new"])


def test_validation_has_every_sample_once_in_the_manifests_order():
    sampled = list(SequentialBatchSampler(BUCKETS, 3))
    assert sampled[:3] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert list(chain(*sampled)) == list(range(18))


def test_ranks_share_validation_and_take_the_same_number_of_batches():
    parts = [list(SequentialBatchSampler(BUCKETS, 3, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert set(chain(*chain(*parts))) == set(range(18))
    assert [len(list(SequentialBatchSampler(BUCKETS[:2], 2, rank=r, world_size=4))) for r in range(4)] == [1] * 4


# --- the mixture ---------------------------------------------------------------------------------------

MIXED = [(0, "add")] * 6 + [(0, "remove")] * 2 + [(1, "none")] * 2


def total_share(shares, *strata):
    return sum(share for share, stratum in zip(shares, MIXED, strict=True) if stratum in strata)


def test_without_weights_all_samples_have_equal_probabilities():
    assert compute_probabilities(MIXED, [None, None], {}) == pytest.approx([0.1] * 10)


def test_the_probability_of_a_source_is_its_weight_and_does_not_depend_on_its_size():
    shares = compute_probabilities(MIXED, [1.0, 3.0], {})
    assert total_share(shares, (1, "none")) == pytest.approx(0.75)
    assert total_share(shares, (0, "add")) == pytest.approx(0.25 * 6 / 8)


def test_category_weights_apply_within_a_source_and_do_not_change_the_sources_probability():
    shares = compute_probabilities(MIXED, [1.0, 1.0], {"remove": 3.0})
    assert total_share(shares, (1, "none")) == pytest.approx(0.5)
    assert total_share(shares, (0, "remove")) == pytest.approx(0.5 * 6 / 12)
    assert sum(compute_probabilities(MIXED, [None, None], {"remove": 0.0})[6:8]) == 0
    assert sum(compute_probabilities(MIXED, [None, None], {"remove": 0.0})) == pytest.approx(1)


@pytest.mark.parametrize(
    ("sources", "categories", "code", "value"),
    [
        ([1.0, None], {}, "missing-source-weight", r"\[1.0, None\]"),
        ([1.0, -1.0], {}, "out-of-range", "-1.0"),
        ([1.0, float("nan")], {}, "out-of-range", "nan"),
        ([None, None], {"add": float("inf")}, "out-of-range", "inf"),
        ([None, None], {"ad": 2.0}, "unknown-category", r"\['ad'\].*add"),
        ([0.0, 0.0], {}, "no-samples", "leave no samples"),
    ],
)
def test_invalid_weights_are_rejected(sources, categories, code, value):
    with pytest.raises(InputError, match=value, check=lambda error: error.code == code):
        compute_probabilities(MIXED, sources, categories)


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
