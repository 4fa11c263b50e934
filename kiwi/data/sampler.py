"""Samplers: homogeneous batches, of the same kind on all ranks, which resume at the exact batch."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from torch.utils.data import Sampler

from kiwi.data.buckets import Bucket
from kiwi.data.mixture import Stratum, shuffled_epochs, weighted_round_robin


class SampledIndex(NamedTuple):
    """The index of a sample, and the number of the batch that it was drawn for: the key of its augmentation."""

    sample: int
    batch: int


class MixtureSampler(Sampler[list[SampledIndex]]):
    """Endless batches, each of one bucket, in an order that is a function of the seed alone.

    Buckets, and within each bucket data sources and categories, alternate by their shares; the samples of one source
    and category in one bucket are shuffled anew each time that all of them were drawn. A bucket with fewer samples than
    a batch repeats them. An epoch has as many batches as hold all samples once. All ranks take their parts of the same
    batch: they have the same task kind and size at a step, and one rank with the batch of all sees the same numbers.

    Args:
        buckets: of each sample.
        strata: data source and category of each sample.
        shares: how often each sample is drawn; 0 for never.
        batch_size: samples of a batch on one rank.
        seed: of the order.
        get_batches_seen: returns the number of batches trained on so far; the next epoch, or a resumed one, continues
            there.
        rank, world: this process's rank, and the number of ranks.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        strata: Sequence[Stratum],
        shares: Sequence[float],
        batch_size: int,
        *,
        seed: int,
        get_batches_seen: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.members: dict[Bucket, dict[Stratum, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.weights: dict[Bucket, dict[Stratum, float]] = defaultdict(lambda: defaultdict(float))
        for index, (bucket, stratum, share) in enumerate(zip(buckets, strata, shares, strict=True)):
            if share > 0:
                self.members[bucket][stratum].append(index)
                self.weights[bucket][stratum] += share
        self.batch_size, self.seed, self.get_batches_seen = batch_size, seed, get_batches_seen
        self.rank, self.world = rank, world
        self.samples = sum(share > 0 for share in shares)
        # Kept from one epoch to the next: skipping all earlier batches at each would make long runs slow.
        self.stream, self.at = self._batches(), 0

    def __len__(self) -> int:
        return -(-self.samples // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[SampledIndex]]:
        start = self.get_batches_seen()
        if start != self.at:
            self.stream, self.at = islice(self._batches(), start, None), start
        end = (start // len(self) + 1) * len(self)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        while self.at < end:
            batch, number = next(self.stream), self.at
            self.at += 1
            yield [SampledIndex(sample, number) for sample in batch[mine]]

    def _batches(self) -> Iterator[list[int]]:
        """Batches of all ranks together, from the first one of the run."""
        strata = {b: weighted_round_robin(weights, self.seed, "cells", str(b)) for b, weights in self.weights.items()}
        orders = {
            (bucket, stratum): shuffled_epochs(members, self.seed, "order", str(bucket), str(stratum))
            for bucket, by_stratum in self.members.items()
            for stratum, members in by_stratum.items()
        }
        shares = {bucket: sum(weights.values()) for bucket, weights in self.weights.items()}
        for bucket in weighted_round_robin(shares, self.seed, "buckets"):
            yield [next(orders[bucket, next(strata[bucket])]) for _ in range(self.batch_size * self.world)]

    def fingerprint(self, ids: Sequence[str]) -> str:
        """A hash of everything that determines the order, by which a resumed run knows that it is unchanged.

        Args:
            ids: of the samples.
        """
        facts: list[object] = [self.seed, self.batch_size * self.world]
        for bucket, by_stratum in self.members.items():
            for stratum, members in by_stratum.items():
                weight = self.weights[bucket][stratum]
                facts.append((str(bucket), stratum, weight, [ids[member] for member in members]))
        return hashlib.sha256(repr(facts).encode()).hexdigest()


class OnceSampler(Sampler[list[int]]):
    """Every sample once, in the order of the manifests; homogeneous batches, the last of a bucket may be smaller.

    Args:
        buckets: of each sample.
        batch_size: samples of a batch.
        rank, world: each rank takes every world-th batch; the first ones are repeated at the end so that all ranks take
            the same number.
    """

    def __init__(self, buckets: Sequence[Bucket], batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        members: dict[Bucket, list[int]] = defaultdict(list)
        for index, bucket in enumerate(buckets):
            members[bucket].append(index)
        self.batches = [m[at : at + batch_size] for m in members.values() for at in range(0, len(m), batch_size)]
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world)

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(self.rank, len(self) * self.world, self.world):
            yield self.batches[index % len(self.batches)]
