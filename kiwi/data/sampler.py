"""Which samples make which batch: homogeneous batches, the same kind on all processes, resumable to the batch."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from torch.utils.data import Sampler

from kiwi.data.buckets import Bucket
from kiwi.data.mixture import Cell, passes, turns


class Draw(NamedTuple):
    """A sample, and the number of the batch that it was drawn for: the key of what is random about it."""

    sample: int
    batch: int


class MixtureSampler(Sampler[list[Draw]]):
    """Endless batches, each of one bucket, in an order that is a function of the seed alone.

    A bucket's turns and, within it, those of its data sets and categories are dealt out by their shares; the samples
    of one data set and category in one bucket come in passes, each once a pass. A bucket with fewer samples than a
    batch repeats them. An epoch is as many batches as hold all samples once. With several processes, each takes its
    part of the same batch, so that all have the same task kind and size at a step, and one process with the batch of
    all of them sees the same numbers.

    Args:
        buckets: of each sample.
        cells: data set and category of each sample.
        shares: how often each is drawn; 0 for never.
        batch_size: samples a batch of one process.
        seed: of the order.
        consumed: tells how many batches were trained on so far; the next epoch, or a resumed one, goes on there.
        rank, world: which of how many processes this is.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        cells: Sequence[Cell],
        shares: Sequence[float],
        batch_size: int,
        *,
        seed: int,
        consumed: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.members: dict[Bucket, dict[Cell, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.weights: dict[Bucket, dict[Cell, float]] = defaultdict(lambda: defaultdict(float))
        for index, (bucket, cell, share) in enumerate(zip(buckets, cells, shares, strict=True)):
            if share > 0:
                self.members[bucket][cell].append(index)
                self.weights[bucket][cell] += share
        self.batch_size, self.seed, self.consumed = batch_size, seed, consumed
        self.rank, self.world = rank, world
        self.samples = sum(share > 0 for share in shares)
        # Kept from one epoch to the next: passing by all earlier batches at each would make long runs slow.
        self.stream, self.at = self._batches(), 0

    def __len__(self) -> int:
        return -(-self.samples // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[Draw]]:
        start = self.consumed()
        if start != self.at:
            self.stream, self.at = islice(self._batches(), start, None), start
        end = (start // len(self) + 1) * len(self)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        while self.at < end:
            batch, number = next(self.stream), self.at
            self.at += 1
            yield [Draw(sample, number) for sample in batch[mine]]

    def _batches(self) -> Iterator[list[int]]:
        """Batches of all processes together, from the first; a resumed run passes by those before it."""
        cells = {b: turns(weights, self.seed, "cells", str(b)) for b, weights in self.weights.items()}
        orders = {
            (bucket, cell): passes(members, self.seed, "order", str(bucket), str(cell))
            for bucket, sets in self.members.items()
            for cell, members in sets.items()
        }
        shares = {bucket: sum(weights.values()) for bucket, weights in self.weights.items()}
        for bucket in turns(shares, self.seed, "buckets"):
            yield [next(orders[bucket, next(cells[bucket])]) for _ in range(self.batch_size * self.world)]

    def fingerprint(self, ids: Sequence[str]) -> str:
        """Of everything that the order follows from, so that a resumed run can tell that it is still the same.

        Args:
            ids: of the samples.
        """
        facts: list[object] = [self.seed, self.batch_size * self.world]
        for bucket, sets in self.members.items():
            for cell, members in sets.items():
                facts.append((str(bucket), cell, self.weights[bucket][cell], [ids[member] for member in members]))
        return hashlib.sha256(repr(facts).encode()).hexdigest()


class OnceSampler(Sampler[list[int]]):
    """Every sample once, in the order of the manifests; homogeneous batches, the last of a bucket may be smaller.

    Args:
        buckets: of each sample.
        batch_size: samples a batch.
        rank, world: with several processes, each takes every world-th batch, and the last round is filled up from the
            first ones so that all take equally many.
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
        for place in range(self.rank, len(self) * self.world, self.world):
            yield self.batches[place % len(self.batches)]
