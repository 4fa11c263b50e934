"""The LightningDataModule: from data sources to loaders of homogeneous batches."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from torch.utils.data import DataLoader, Sampler

import kiwi.data.sandbox  # noqa: F401  (its data sources can be chosen by name)
from kiwi.data.augmentation import AugmentationSpec, NoAugmentation, ShrinkReferences
from kiwi.data.buckets import Bucket, assign_buckets
from kiwi.data.dataset import EditDataset
from kiwi.data.feature_cache import FeatureCache
from kiwi.data.mixture import Stratum, sampling_probabilities
from kiwi.data.sample import EditBatch, collate
from kiwi.data.sampler import MixtureSampler, OnceSampler
from kiwi.data.sources import DataSource, Record
from kiwi.errors import CheckpointError, InputError
from kiwi.keyed import key

log = logging.getLogger(__name__)


class _Sample(NamedTuple):
    """A record, the index of its data source, and its bucket."""

    source: int
    record: Record
    bucket: Bucket


class EditData(L.LightningDataModule):
    """Edits for training and validation.

    Args:
        train: manifests, or edits and questions of the sandbox, mixed by their weights.
        validation: the same, to validate on.
        root: folder that the manifests' paths are relative to.
        max_pixels: maximum height x width of a video; larger ones are shrunk.
        multiple: heights and widths are multiples of this; the command line takes it from the model.
        batch_size: samples of a batch on each rank.
        holdout: number of source videos that are moved from `train` to `validation`, with all their records; only
            videos in files, since the sandbox has splits of its own.
        categories: weights of edit categories (the manifests' column edited_type) within each data source, 1 for those
            not listed; samples without a category have the category "none".
        augmentation: of training samples.
        cache: folder that `kiwi cache` filled, whose entries are read instead of decoding clips and running the VAE and
            the vision tower.
        num_workers: number of processes that decode.
        seed: of the order of batches and of augmentation.
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
        if batch_size < 1 or holdout < 0 or not train:
            got = f"{len(train)} sources, batch_size {batch_size}, holdout {holdout}"
            problem = "data needs at least one source in train, batch_size >= 1 and holdout >= 0"
            raise InputError(problem, code="out-of-range", got=got)
        self.train, self.validation, self.root = train, validation or [], Path(root)
        self.max_pixels, self.multiple, self.batch_size = max_pixels, multiple, batch_size
        self.holdout, self.num_workers, self.seed = holdout, num_workers, seed
        self.categories, self.augmentation = categories or {}, augmentation
        self.cache = cache
        self.datasets: dict[str, EditDataset] = {}
        self.strata: list[Stratum] = []
        self.sampling_probabilities: list[float] = []

    def setup(self, stage: str = "fit") -> None:
        """Read and check all data before any work starts."""
        if self.datasets:
            return
        train, validation = self._read(self.train), self._read(self.validation)
        held_out = self._held_out({path for sample in train if (path := sample.record.source.path) is not None})
        validation += [sample for sample in train if sample.record.source.path in held_out]
        train = [sample for sample in train if sample.record.source.path not in held_out]
        self.strata = [(sample.source, sample.record.category or "none") for sample in train]
        self.sampling_probabilities = sampling_probabilities(
            self.strata, [source.weight for source in self.train], self.categories
        )
        cache = None if self.cache is None else FeatureCache(self.cache)
        self.datasets = {
            "train": _dataset(train, self.augmentation, self.seed, cache),
            "validation": _dataset(validation, NoAugmentation(), self.seed, cache),
        }
        if cache is not None:
            self._check_cache(cache)
        self._log_mixture()

    def train_dataloader(self) -> DataLoader[EditBatch]:
        """Batches of the mixture, starting after those that were trained on."""
        rank, world = self._rank_and_world()
        return self._loader("train", self._mixture(rank, world, lambda: getattr(self._module(), "batches_seen", 0)))

    def fresh_train_dataloader(self) -> DataLoader[EditBatch]:
        """One epoch of the mixture from its start, the same on every rank, without effect on the training batches."""
        return self._loader("train", self._mixture(0, 1))

    def val_dataloader(self) -> DataLoader[EditBatch] | list[DataLoader[EditBatch]]:
        """Every validation sample once, in a fixed order; none without validation data."""
        dataset, (rank, world) = self.datasets["validation"], self._rank_and_world()
        if not len(dataset):
            return []
        return self._loader("validation", OnceSampler(dataset.buckets, self.batch_size, rank=rank, world=world))

    def state_dict(self) -> dict[str, Any]:
        """A fingerprint of the data, the mixture and the order; the module counts the batches."""
        return {"order": self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse to resume with another order of batches.

        Raises:
            CheckpointError: the data or their mixture have changed.
        """
        self.setup()
        if state.get("order") != self._order():
            raise CheckpointError(
                "cannot resume: the training data or their order have changed",
                code="changed-data",
                fix="resume with the same data sources, weights, seed, sizes and batch size (over all ranks); to train "
                "on other data start a new run from this run's model folder (model.init)",
            )

    def _check_cache(self, cache: FeatureCache) -> None:
        keys = {key for dataset in self.datasets.values() for sample in dataset.keys for key in sample.all()}
        if missing := sum(key not in cache for key in keys):
            raise InputError(
                f"the cache {cache.folder} lacks entries of this run",
                code="missing-entry",
                got=f"{missing} of {len(keys)} are missing",
                fix="run `kiwi cache` with this run's configuration: it adds what is missing",
            )

    def _order(self) -> str:
        _, world = self._rank_and_world()
        return self._mixture(0, world).fingerprint(self.datasets["train"].ids)

    def _mixture(self, rank: int, world: int, get_batches_seen: Callable[[], int] = lambda: 0) -> MixtureSampler:
        return MixtureSampler(
            self.datasets["train"].buckets,
            self.strata,
            self.sampling_probabilities,
            self.batch_size,
            seed=self.seed,
            get_batches_seen=get_batches_seen,
            rank=rank,
            world=world,
        )

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _log_mixture(self) -> None:
        """Log the number of samples, and the shares of data sources and categories."""
        sources, categories = Counter[str](), Counter[str]()
        buckets = self.datasets["train"].buckets
        for bucket, (source, category), share in zip(buckets, self.strata, self.sampling_probabilities, strict=True):
            sources[f"{bucket.task.value} of {self.train[source].label}"] += share  # type: ignore[assignment]
            categories[category] += share  # type: ignore[assignment]
        for name, dataset in self.datasets.items():
            tasks = sorted({bucket.task.value for bucket in dataset.buckets})
            log.info("%s: %d samples (%s)", name, len(dataset), ", ".join(tasks) or "none")
        for counter in (sources, categories)[: 1 + (set(categories) != {"none"})]:
            log.info("mixture: %s", ", ".join(f"{share:.1%} {name}" for name, share in sorted(counter.items())))

    def _read(self, sources: Sequence[DataSource]) -> list[_Sample]:
        samples = []
        for number, source in enumerate(sources):
            records = source.records(self.root)
            buckets = assign_buckets(
                records, max_pixels=self.max_pixels, max_frames=source.max_frames, multiple=self.multiple
            )
            samples += [_Sample(number, record, bucket) for record, bucket in zip(records, buckets, strict=True)]
        return samples

    def _held_out(self, sources: set[Path]) -> set[Path]:
        """The source videos that are moved to validation."""
        if self.holdout and self.holdout >= len(sources):
            got = f"{self.holdout} of {len(sources)} source videos"
            raise InputError("data.holdout leaves nothing to train on", code="no-samples", got=got)
        # By path, not by name alone, so that the choice is the same in every process.
        root = self.root.resolve()
        keyed = sorted((key(self.seed, "holdout", os.path.relpath(p.resolve(), root)), str(p), p) for p in sources)
        return {path for _, _, path in keyed[: self.holdout]}

    def _module(self) -> L.LightningModule | None:
        return self.trainer.lightning_module if self.trainer else None

    def _loader(self, name: str, sampler: Sampler[Any]) -> DataLoader[EditBatch]:
        return DataLoader(
            self.datasets[name],  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def _dataset(samples: Sequence[_Sample], *arguments: Any) -> EditDataset:
    return EditDataset([sample.record for sample in samples], [sample.bucket for sample in samples], *arguments)
