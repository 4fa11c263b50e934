"""The LightningDataModule: manifests to loaders of homogeneous batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

from kiwi.data.buckets import BatchSampler, Bucket, assign
from kiwi.data.dataset import EditDataset
from kiwi.data.manifest import EditRecord, read_manifest
from kiwi.data.sample import EditBatch, collate
from kiwi.errors import InputError
from kiwi.keyed import key

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One manifest of a mixture.

    Args:
        path: CSV, JSONL or parquet, relative to the data module's root; its paths are relative to its folder.
        max_frames: frames of a clip at most; 1 takes the first frames as image pairs.
    """

    path: str
    max_frames: int = 81

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise InputError(f"max_frames of {self.path} must be at least 1", got=self.max_frames)


class EditData(L.LightningDataModule):
    """Edits for training and validation.

    Args:
        train: manifests that are trained on, read together.
        validation: manifests that are not.
        root: folder that the manifests' paths start from.
        max_pixels: height x width of a video at most; larger ones are shrunk.
        multiple: heights and widths are multiples of this; the command line takes it from the model.
        batch_size: samples a batch, of each process.
        holdout: this many source videos are taken out of `train`, with all their records, and validated on.
        num_workers: processes that decode.
        seed: of the order of batches.
    """

    def __init__(
        self,
        train: list[Manifest],
        validation: list[Manifest] | None = None,
        root: str = ".",
        max_pixels: int = 720 * 1280,
        multiple: int = 32,
        batch_size: int = 1,
        holdout: int = 0,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or holdout < 0 or not train:
            raise InputError("data needs manifests in train, batch_size >= 1 and holdout >= 0")
        self.train, self.validation, self.root = train, validation or [], Path(root)
        self.max_pixels, self.multiple, self.batch_size = max_pixels, multiple, batch_size
        self.holdout, self.num_workers, self.seed = holdout, num_workers, seed
        self.sets: dict[str, EditDataset] = {}

    def setup(self, stage: str = "fit") -> None:
        """Read and validate every manifest before any work starts."""
        if self.sets:
            return
        train, validation = self._read(self.train), self._read(self.validation)
        held_out = self._held_out({record.source for record, _ in train})
        validation += [item for item in train if item[0].source in held_out]
        train = [item for item in train if item[0].source not in held_out]
        self.sets = {"train": _dataset(train), "validation": _dataset(validation)}
        for name, dataset in self.sets.items():
            tasks = sorted({bucket.task.value for bucket in dataset.buckets})
            log.info("%s: %d samples (%s)", name, len(dataset), ", ".join(tasks) or "none")

    def train_dataloader(self) -> DataLoader[EditBatch]:
        """Batches in keyed random order."""
        return self._loader("train", shuffle=True, consumed=lambda: getattr(self._module(), "batches_seen", 0))

    def fresh_train_dataloader(self) -> DataLoader[EditBatch]:
        """One epoch of training batches from its start, apart from the loader that training goes through."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[EditBatch] | list[DataLoader[EditBatch]]:
        """Batches in a fixed order; none without validation data."""
        return self._loader("validation", shuffle=False) if len(self.sets["validation"]) else []

    def _read(self, manifests: Sequence[Manifest]) -> list[tuple[EditRecord, Bucket]]:
        items = []
        for manifest in manifests:
            records = read_manifest(self.root / manifest.path)
            buckets = assign(
                records, max_pixels=self.max_pixels, max_frames=manifest.max_frames, multiple=self.multiple
            )
            items += list(zip(records, buckets, strict=True))
        return items

    def _held_out(self, sources: set[Path]) -> set[Path]:
        if self.holdout >= len(sources):
            raise InputError(
                "data.holdout leaves nothing to train on", got=f"{self.holdout} of {len(sources)} source videos"
            )
        # By path, not by name alone, so that the choice is the same in every process.
        root = self.root.resolve()
        named = sorted((key(self.seed, "holdout", os.path.relpath(p.resolve(), root)), str(p), p) for p in sources)
        return {path for _, _, path in named[: self.holdout]}

    def _module(self) -> L.LightningModule | None:
        return self.trainer.lightning_module if self.trainer else None

    def _loader(self, name: str, shuffle: bool, consumed: Callable[[], int] = lambda: 0) -> DataLoader[EditBatch]:
        dataset = self.sets[name]
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = BatchSampler(
            dataset.buckets,
            self.batch_size,
            seed=self.seed,
            shuffle=shuffle,
            consumed=consumed,
            rank=rank,
            world=world,
        )
        return DataLoader(  # type: ignore[type-var]
            dataset,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def _dataset(items: Sequence[tuple[EditRecord, Bucket]]) -> EditDataset:
    return EditDataset([record for record, _ in items], [bucket for _, bucket in items])
