"""The LightningDataModule: turns data sources into data loaders of homogeneous batches."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from torch.utils.data import DataLoader, Sampler

import kiwi.data.sandbox  # noqa: F401  (registers the sandbox's data sources as specs)
from kiwi.data.augmentation import AugmentationSpec, NoAugmentation, ShrinkReferences
from kiwi.data.batch_samplers import MixtureBatchSampler, SequentialBatchSampler, Stratum, compute_probabilities
from kiwi.data.buckets import Bucket, assign_buckets
from kiwi.data.dataset import EditDataset
from kiwi.data.feature_cache import FeatureCache
from kiwi.data.fingerprint import (
    CHANGED_DATA_FIX,
    DataFingerprint,
    compute_fingerprint,
    identify_source,
    require_same_data,
)
from kiwi.data.sample import EditBatch, collate
from kiwi.data.sources import DataSource, Record
from kiwi.errors import CheckpointError, InputError
from kiwi.keyed import key
from kiwi.processes import end_with_parent
from kiwi.reading import follow_links
from kiwi.spec import LARGEST

log = logging.getLogger(__name__)

_MAX_WORKERS = 1024


class _Sample(NamedTuple):
    """A record with the index of its data source and its bucket."""

    data_source_index: int
    record: Record
    bucket: Bucket


class EditData(L.LightningDataModule):
    """Edits for training and validation.

    Args:
        train: data sources (manifests, sandbox edits, sandbox visual question answering), sampled by weight.
        validation: data sources for validation, of the same types.
        root: folder that the manifests' paths are relative to.
        max_pixels: maximum height x width of a video; larger ones are shrunk.
        multiple: size multiple in pixels for heights and widths; the command line takes it from the model.
        batch_size: number of samples per batch on each rank.
        holdout: number of source videos to move from `train` to `validation`, with all records that use them; only
            video files count, since the sandbox has its own splits.
        categories: sampling weights of edit categories (the manifests' column edited_type) within each data source;
            1 if not listed. Samples without a category have the category "none".
        augmentation: augmentation of training samples.
        cache: folder that `kiwi cache` filled; its entries are read instead of decoding clips and running the VAE and
            the vision tower.
        num_workers: number of worker processes that decode.
        seed: seed for the batch order and augmentation.
    """

    def __init__(
        self,
        train: list[DataSource],
        validation: list[DataSource] | None = None,
        root: str = ".",
        max_pixels: int = 720 * 1280,
        multiple: int = 32,
        batch_size: int = 1,
        holdout: int = 0,
        categories: dict[str, float] | None = None,
        augmentation: AugmentationSpec = ShrinkReferences(),  # noqa: B008  (frozen)
        cache: str | None = None,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not train:
            raise InputError("data.train needs at least one source", code="out-of-range", got="none")
        for name, minimum, maximum, value in (
            ("batch_size", 1, LARGEST, batch_size), ("holdout", 0, LARGEST, holdout),
            ("max_pixels", 1, LARGEST, max_pixels), ("num_workers", 0, _MAX_WORKERS, num_workers),
        ):  # fmt: skip
            if not minimum <= value <= maximum:
                expected = f"{minimum} to {maximum:,}"
                raise InputError(f"data.{name} is out of range", code="out-of-range", got=value, expected=expected)
        self.train, self.validation, self.root = train, validation or [], Path(root)
        self.max_pixels, self.multiple, self.batch_size = max_pixels, multiple, batch_size
        self.holdout, self.num_workers, self.seed = holdout, num_workers, seed
        self.categories, self.augmentation, self.cache = categories or {}, augmentation, cache
        self.datasets: dict[str, EditDataset] = {}
        self.fingerprint = DataFingerprint("", "", "")
        self.strata: list[Stratum] = []
        self.sampling_probabilities: list[float] = []

    def setup(self, stage: str = "fit") -> None:
        """Read and check the records of all data sources."""
        if self.datasets:
            return
        train, validation = self._read_samples(self.train), self._read_samples(self.validation)
        if self.holdout:
            sources = [identify_source(sample.record.source, follow_links(self.root)) for sample in train]
            held_out = self._choose_holdout({source for source in sources if source is not None})
            validation += [sample for sample, source in zip(train, sources, strict=True) if source in held_out]
            train = [sample for sample, source in zip(train, sources, strict=True) if source not in held_out]
        self.strata = [(sample.data_source_index, sample.record.category or "none") for sample in train]
        weights = [source.weight for source in self.train]
        self.sampling_probabilities = compute_probabilities(self.strata, weights, self.categories)
        cache = None if self.cache is None else FeatureCache(self.cache)
        self.datasets = {
            "train": _make_dataset(train, self.augmentation, self.seed, cache),
            "validation": _make_dataset(validation, NoAugmentation(), self.seed, cache),
        }
        if cache is not None:
            self._check_cache(cache)
        self.fingerprint = compute_fingerprint(self.datasets["train"], self._source_indices, self.root)
        self._log_mixture()

    def train_dataloader(self) -> DataLoader[EditBatch]:
        """Training batches, continuing after those already consumed."""
        module = self.trainer.lightning_module if self.trainer else None
        sampler = self._make_train_sampler(*self._get_rank_and_world_size(), lambda: getattr(module, "batches_seen", 0))
        return self._make_loader("train", sampler)

    def fresh_train_dataloader(self) -> DataLoader[EditBatch]:
        """The first epoch of training batches, all of them on every rank; `train_dataloader` does not advance."""
        return self._make_loader("train", self._make_train_sampler(0, 1))

    def val_dataloader(self) -> DataLoader[EditBatch] | list[DataLoader[EditBatch]]:
        """Every validation sample once, in a fixed order; an empty list without validation data."""
        dataset, (rank, world_size) = self.datasets["validation"], self._get_rank_and_world_size()
        if not len(dataset):
            return []
        sampler = SequentialBatchSampler(dataset.buckets, self.batch_size, rank=rank, world_size=world_size)
        return self._make_loader("validation", sampler)

    def state_dict(self) -> dict[str, Any]:
        """Return hashes of the training data and their order; the LightningModule counts the batches."""
        return {"order": self._hash_batch_order(), **self.fingerprint._asdict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a resumed run has the same batch order and the same data.

        Raises:
            CheckpointError: the data or their mixture changed.
        """
        self.setup()
        if state.get("order") != self._hash_batch_order():
            raise CheckpointError(
                "cannot resume: the training data or their order changed",
                code="changed-data",
                expected="the same data sources, weights, seed, sizes and global batch size",
                fix=CHANGED_DATA_FIX,
            )
        if self.trainer is None or self.trainer.state.fn == "fit":
            require_same_data(self.datasets["train"], self._source_indices, self.fingerprint, state)

    def _check_cache(self, cache: FeatureCache) -> None:
        entries = {entry for dataset in self.datasets.values() for keys in dataset.keys for entry in keys.all()}
        if missing := sum(entry not in cache for entry in entries):
            message, got = f"the cache {cache.folder} lacks entries", f"{missing} of {len(entries)} are missing"
            fix = "run `kiwi cache` with this run's configuration, which adds them"
            raise InputError(message, code="missing-entry", got=got, fix=fix)

    def _hash_batch_order(self) -> str:
        _, world_size = self._get_rank_and_world_size()
        return self._make_train_sampler(0, world_size).hash_order(self.datasets["train"].ids)

    def _make_train_sampler(
        self, rank: int, world_size: int, get_batches_seen: Callable[[], int] = lambda: 0
    ) -> MixtureBatchSampler:
        return MixtureBatchSampler(
            self.datasets["train"].buckets, self.strata, self.sampling_probabilities, self.batch_size,
            seed=self.seed, batches_per_step=self.trainer.accumulate_grad_batches if self.trainer else 1,
            get_batches_seen=get_batches_seen, rank=rank, world_size=world_size,
        )  # fmt: skip

    def _get_rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _log_mixture(self) -> None:
        """Log the number of samples, and how often each data source and category is sampled."""
        by_source: dict[str, float] = defaultdict(float)
        by_category: dict[str, float] = defaultdict(float)
        buckets = self.datasets["train"].buckets
        for bucket, stratum, share in zip(buckets, self.strata, self.sampling_probabilities, strict=True):
            source_index, category = stratum
            by_source[f"{bucket.task.value} of {self.train[source_index].label}"] += share
            by_category[category] += share
        for name, dataset in self.datasets.items():
            tasks = sorted({bucket.task.value for bucket in dataset.buckets})
            log.info("%s: %d samples (%s)", name, len(dataset), ", ".join(tasks) or "none")
        for shares in (by_source, by_category) if set(by_category) != {"none"} else (by_source,):
            log.info("mixture: %s", ", ".join(f"{share:.1%} {name}" for name, share in sorted(shares.items())))

    def _read_samples(self, sources: Sequence[DataSource]) -> list[_Sample]:
        samples = []
        for index, source in enumerate(sources):
            records = source.list_records(self.root)
            buckets = assign_buckets(
                records, max_pixels=self.max_pixels, max_frames=source.max_frames, multiple=self.multiple
            )
            samples += [_Sample(index, record, bucket) for record, bucket in zip(records, buckets, strict=True)]
        return samples

    @property
    def _source_indices(self) -> list[int]:
        return [index for index, _ in self.strata]

    def _choose_holdout(self, source_videos: set[str]) -> set[str]:
        """Choose the source videos that are moved to validation."""
        if self.holdout >= len(source_videos):
            got = f"{self.holdout} of {len(source_videos)} source videos"
            raise InputError("data.holdout leaves no video to train on", code="no-samples", got=got)
        # Keyed by the path relative to root, so that the choice does not depend on the machine or on file order.
        return set(sorted(source_videos, key=lambda name: (key(self.seed, "holdout", name), name))[: self.holdout])

    def _make_loader(self, name: str, sampler: Sampler[Any]) -> DataLoader[EditBatch]:
        return DataLoader(
            self.datasets[name],  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            worker_init_fn=end_with_parent,
            persistent_workers=self.num_workers > 0,
        )


def _make_dataset(samples: Sequence[_Sample], *arguments: Any) -> EditDataset:
    return EditDataset([sample.record for sample in samples], [sample.bucket for sample in samples], *arguments)
