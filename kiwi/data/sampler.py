"""Samplers of homogeneous batches, of one task kind on all ranks; a resumed run continues at the exact batch."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from torch.utils.data import Sampler

from kiwi.data.buckets import Bucket
from kiwi.data.mixture import Stratum, shuffled_epochs, weighted_round_robin


class SampledIndex(NamedTuple):
    """The index of a sample and the number of its training batch, which is the key of its augmentation."""

    sample: int
    batch: int


class MixtureSampler(Sampler[list[SampledIndex]]):
    """Endless batches, each of one bucket, in an order that is a function of the seed alone.

    Buckets, and within each bucket data sources and categories, alternate in proportion to their probabilities. The
    samples of one source and category in one bucket are reshuffled after all of them were drawn; a bucket with fewer
    samples than a batch repeats them. An epoch has just enough batches to hold all samples once. Each rank takes its
    part of one global batch, so all ranks have the same task kind and size.

    Args:
        buckets: bucket of each sample.
        strata: data source and category of each sample.
        probabilities: sampling probability of each sample; samples with 0 are excluded.
        batch_size: number of samples per batch on each rank.
        seed: seed for the batch order.
        get_batches_seen: returns the number of batches trained on so far, where the next epoch continues.
        rank, world_size: rank of this process and number of ranks.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        strata: Sequence[Stratum],
        probabilities: Sequence[float],
        batch_size: int,
        *,
        seed: int,
        get_batches_seen: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.members: dict[Bucket, dict[Stratum, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.weights: dict[Bucket, dict[Stratum, float]] = defaultdict(lambda: defaultdict(float))
        for index, (bucket, stratum, probability) in enumerate(zip(buckets, strata, probabilities, strict=True)):
            if probability > 0:
                self.members[bucket][stratum].append(index)
                self.weights[bucket][stratum] += probability
        self.batch_size, self.seed, self.get_batches_seen = batch_size, seed, get_batches_seen
        self.rank, self.world_size = rank, world_size
        self.sample_count = sum(probability > 0 for probability in probabilities)
        # The stream is kept between epochs: skipping all earlier batches in every epoch would make long runs slow.
        self.stream, self.position = self._generate_batches(), 0

    def __len__(self) -> int:
        return -(-self.sample_count // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[SampledIndex]]:
        start = self.get_batches_seen()
        if start != self.position:
            self.stream, self.position = islice(self._generate_batches(), start, None), start
        end = (start // len(self) + 1) * len(self)
        rank_slice = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        while self.position < end:
            batch, number = next(self.stream), self.position
            self.position += 1
            yield [SampledIndex(sample, number) for sample in batch[rank_slice]]

    def _generate_batches(self) -> Iterator[list[int]]:
        """Global batches (over all ranks), from the first one of the run."""
        strata = {b: weighted_round_robin(weights, self.seed, "cells", str(b)) for b, weights in self.weights.items()}
        orders = {
            (bucket, stratum): shuffled_epochs(members, self.seed, "order", str(bucket), str(stratum))
            for bucket, by_stratum in self.members.items()
            for stratum, members in by_stratum.items()
        }
        bucket_weights = {bucket: sum(weights.values()) for bucket, weights in self.weights.items()}
        for bucket in weighted_round_robin(bucket_weights, self.seed, "buckets"):
            yield [next(orders[bucket, next(strata[bucket])]) for _ in range(self.batch_size * self.world_size)]

    def fingerprint(self, ids: Sequence[str]) -> str:
        """A hash of everything that determines the batch order, which must not change when a run is resumed.

        Args:
            ids: ids of the samples.
        """
        parts: list[object] = [self.seed, self.batch_size * self.world_size]
        for bucket, by_stratum in self.members.items():
            for stratum, members in by_stratum.items():
                weight = self.weights[bucket][stratum]
                parts.append((str(bucket), stratum, weight, [ids[member] for member in members]))
        return hashlib.sha256(repr(parts).encode()).hexdigest()


class OnceSampler(Sampler[list[int]]):
    """Homogeneous batches of every sample once, bucket by bucket; the last batch of a bucket may be smaller.

    Args:
        buckets: bucket of each sample.
        batch_size: maximum number of samples per batch.
        rank, world_size: rank of this process and number of ranks. Each rank takes every world_size-th batch; the first
            batches are repeated at the end, so that all ranks take the same number.
    """

    def __init__(self, buckets: Sequence[Bucket], batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        members: dict[Bucket, list[int]] = defaultdict(list)
        for index, bucket in enumerate(buckets):
            members[bucket].append(index)
        self.batches = [m[i : i + batch_size] for m in members.values() for i in range(0, len(m), batch_size)]
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(self.rank, len(self) * self.world_size, self.world_size):
            yield self.batches[index % len(self.batches)]
