"""Batch samplers, and the mixture: how often each data source and edit category is sampled, and in what order.

All batches are homogeneous: their samples are of one bucket, also across ranks. Orders are infinite and deterministic
functions of a key, so that a resumed run continues at the exact batch. Weighted round robin replaces random draws, so
that the proportions hold at every moment of a run and in every arm (variant of the configuration) of an ablation.
"""

import hashlib
import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import NamedTuple, TypeVar

import torch
from torch.utils.data import Sampler

from kiwi.data.buckets import Bucket
from kiwi.errors import InputError
from kiwi.keyed import key, uniform

T = TypeVar("T")

Stratum = tuple[int, str]
"""The data source's index and the category of a group of samples; samples of one stratum have equal probabilities."""


class SampledIndex(NamedTuple):
    """The index of a sample and the number of its training batch, which is the key of its augmentation."""

    sample: int
    batch: int


class MixtureBatchSampler(Sampler[list[SampledIndex]]):
    """Endless batches for training, in an order that is a function of the seed alone.

    Buckets, and within each bucket data sources and categories, alternate in proportion to their probabilities. The
    samples of one source and category in one bucket are reshuffled after all of them were drawn; a bucket with fewer
    samples than a batch repeats them. An epoch has just enough batches to hold all samples once, in whole optimizer
    steps. Each rank takes its part of one global batch.

    Args:
        buckets: bucket of each sample.
        strata: data source and category of each sample.
        probabilities: sampling probability of each sample; samples with 0 are excluded.
        batch_size: number of samples per batch on each rank.
        seed: seed for the batch order.
        batches_per_step: number of batches per optimizer step. Lightning also steps after the last batch of an epoch,
            so that an epoch with another number of batches would end in a smaller step.
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
        batches_per_step: int = 1,
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
        self.rank, self.world_size, self.batches_per_step = rank, world_size, batches_per_step
        self.sample_count = sum(probability > 0 for probability in probabilities)
        # The stream is kept between epochs: skipping all earlier batches in every epoch would make long runs slow.
        self.stream, self.position = self._generate_batches(), 0

    def __len__(self) -> int:
        samples_per_step = self.batch_size * self.world_size * self.batches_per_step
        return -(-self.sample_count // samples_per_step) * self.batches_per_step

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

    def hash_order(self, ids: Sequence[str]) -> str:
        """Hash everything that determines the batch order, given the ids of the samples."""
        parts: list[object] = [self.seed, self.batch_size * self.world_size]
        for bucket, by_stratum in self.members.items():
            for stratum, members in by_stratum.items():
                weight = self.weights[bucket][stratum]
                parts.append((str(bucket), stratum, weight, [ids[member] for member in members]))
        return hashlib.sha256(repr(parts).encode()).hexdigest()


class SequentialBatchSampler(Sampler[list[int]]):
    """Batches for validation: every sample once, bucket by bucket; the last batch of a bucket may be smaller.

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


def compute_probabilities(
    strata: Sequence[Stratum], source_weights: Sequence[float | None], category_weights: Mapping[str, float]
) -> list[float]:
    """Compute the sampling probability of each sample; all probabilities sum to 1.

    Args:
        strata: stratum of each sample.
        source_weights: weight of each data source, relative to the sum of all weights. If all are None, data sources
            are sampled in proportion to their sizes.
        category_weights: weight of each category within a data source; 1 if not listed, and 0 excludes the category.

    Raises:
        InputError: only some sources have weights, a weight is negative or not finite, a category is unknown, or no
            samples are left.
    """
    known = sorted({category for _, category in strata})
    if unknown := sorted(set(category_weights) - set(known)):
        message = "data.categories lists categories that no training sample has"
        raise InputError(message, code="unknown-category", got=unknown, expected=f"categories from {known}")
    weights = [*category_weights.values(), *(weight for weight in source_weights if weight is not None)]
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        got = f"data.train {list(source_weights)}, data.categories {dict(category_weights)}"
        raise InputError("weights must be finite and not negative", code="out-of-range", got=got)
    if None in source_weights and any(weight is not None for weight in source_weights):
        message, fix = "data.train mixes sources with and without a weight", "give all of them a weight, or none"
        raise InputError(message, code="missing-source-weight", got=list(source_weights), fix=fix)
    weights_in_source = [category_weights.get(category, 1.0) for _, category in strata]
    totals: dict[int, float] = defaultdict(float)
    for (source, _), weight in zip(strata, weights_in_source, strict=True):
        totals[source] += weight
    scale = {source: _scale_source(source_weights[source], total) for source, total in totals.items()}
    unscaled = [scale[source] * weight for (source, _), weight in zip(strata, weights_in_source, strict=True)]
    if (total := sum(unscaled)) <= 0:
        raise InputError(
            "the weights of data.train and data.categories leave no samples to train on", code="no-samples"
        )
    return [weight / total for weight in unscaled]


def _scale_source(source_weight: float | None, total: float) -> float:
    """The factor by which a source's category weights, which sum to `total` over its samples, are scaled."""
    if source_weight is None:
        return 1.0
    return source_weight / total if total > 0 else 0.0


def weighted_round_robin(weights: Mapping[T, float], *key_parts: str | int) -> Iterator[T]:
    """Yield the keys of `weights`, without end and in proportion to their weights above 0 (stride scheduling).

    Among the first n values, the count of each key differs from its expected count by at most the number of keys.
    """
    names = list(weights)
    due = [(uniform(*key_parts, index) / weights[name], index) for index, name in enumerate(names)]
    heapq.heapify(due)
    while True:
        time, index = due[0]
        yield names[index]
        heapq.heapreplace(due, (time + 1.0 / weights[names[index]], index))


def shuffled_epochs(members: Sequence[T], *key_parts: str | int) -> Iterator[T]:
    """Yield all members again and again, in an order that depends on the key and the number of the repetition."""
    for epoch in count():
        generator = torch.Generator().manual_seed(key(*key_parts, epoch))
        for index in torch.randperm(len(members), generator=generator).tolist():
            yield members[index]
