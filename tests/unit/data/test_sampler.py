from collections import Counter
from itertools import chain

import pytest

from kiwi.data.buckets import Bucket
from kiwi.data.mixture import sampling_probabilities
from kiwi.data.sampler import MixtureSampler, OnceSampler
from kiwi.encoded import TaskKind

VIDEO, WIDE = Bucket(TaskKind.video, 32, 32, 5, 0), Bucket(TaskKind.video, 32, 64, 5, 0)
REFERENCE = Bucket(TaskKind.reference, 32, 32, 5, 1)
BUCKETS = [VIDEO] * 8 + [WIDE] * 4 + [REFERENCE] * 6
STRATA = [(0, "add")] * 4 + [(0, "remove")] * 8 + [(1, "none")] * 6


def sampler(weights=(None, None), categories=None, batch=2, **options):
    shares = sampling_probabilities(STRATA, list(weights), categories or {})
    return MixtureSampler(BUCKETS, STRATA, shares, batch, **{"seed": 0, **options})


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


def test_the_fingerprint_changes_with_everything_that_changes_the_batch_order():
    ids = [str(i) for i in range(18)]
    fingerprint = sampler().fingerprint(ids)
    assert fingerprint == sampler(batch=1, world_size=2).fingerprint(ids)
    others = [sampler(seed=1), sampler(batch=4), sampler((1.0, 2.0)), sampler(categories={"add": 2.0})]
    assert fingerprint not in [other.fingerprint(ids) for other in others]
    assert fingerprint != sampler().fingerprint([*ids[:-1], "new"])


def test_validation_has_every_sample_once_in_the_manifests_order():
    sampled = list(OnceSampler(BUCKETS, 3))
    assert sampled[:3] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert list(chain(*sampled)) == list(range(18))


def test_ranks_share_validation_and_take_the_same_number_of_batches():
    parts = [list(OnceSampler(BUCKETS, 3, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert set(chain(*chain(*parts))) == set(range(18))
    assert [len(list(OnceSampler(BUCKETS[:2], 2, rank=r, world_size=4))) for r in range(4)] == [1] * 4
