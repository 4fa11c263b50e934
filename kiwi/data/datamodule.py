"""The LightningDataModule: manifests to loaders of homogeneous batches."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, Sampler

from kiwi.data.augmentation import AugmentationSpec, NoAugmentation, ShrinkReferences
from kiwi.data.buckets import Bucket, Record, assign
from kiwi.data.dataset import EditDataset
from kiwi.data.feature_cache import FeatureCache
from kiwi.data.manifest import read_manifest
from kiwi.data.mixture import Cell, shares
from kiwi.data.sample import EditBatch, collate
from kiwi.data.sampler import MixtureSampler, OnceSampler
from kiwi.data.world import Questions, World
from kiwi.errors import CheckpointError, InputError
from kiwi.keyed import key

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One manifest of a mixture.

    Args:
        path: CSV, JSONL or parquet, relative to the data module's root; its paths are relative to its folder.
        max_frames: frames of a clip at most; 1 takes the first frames as image pairs.
        weight: how often its samples are drawn, as a share of all manifests' weights; none for all of them: in
            proportion to their sizes. Not used in validation.
    """

    path: str
    max_frames: int = 81
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise InputError(f"max_frames of {self.path} must be at least 1", got=self.max_frames)


DataSet = Manifest | World | Questions
"""What a mixture is made of."""


def data_sets_of(rows: Any, where: str) -> list[DataSet]:
    """Manifests and worlds from an experiment's list of mappings.

    Raises:
        InputError: something else, unknown fields, or values of another type.
    """
    found: list[DataSet] = []
    for row in rows if isinstance(rows, list) else [rows]:
        kind = next((kind for name, kind in _KINDS.items() if isinstance(row, dict) and name in row), None)
        if not isinstance(rows, list) or kind is None or not row.keys() <= _HINTS[kind].keys():
            wanted = "; or ".join(f"{', '.join(hints)}" for hints in _HINTS.values())
            raise InputError(f"{where} holds no manifests or worlds", got=repr(row), wanted=f"mappings with {wanted}")
        if wrong := [name for name, value in row.items() if not isinstance(value, _HINTS[kind][name])]:
            raise InputError(f"{wrong[0]} of a data set in {where} has the wrong type", got=repr(row[wrong[0]]))
        found.append(kind(**row))
    return found


_KINDS: dict[str, type[DataSet]] = {"path": Manifest, "items": World, "questions": Questions}
"""By the field that tells them apart."""
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "int | None": (int, NoneType),
    "float | None": (int, float, NoneType),
    "list[str] | None": (list, NoneType),
}
_HINTS = {kind: {field.name: _TYPES[str(field.type)] for field in fields(kind)} for kind in _KINDS.values()}
"""What may stand in the fields of a data set."""


class EditData(L.LightningDataModule):
    """Edits for training and validation.

    Args:
        train: manifests, and worlds or questions of the sandbox, that are trained on, mixed by their weights.
        validation: such that are not.
        root: folder that the manifests' paths start from.
        max_pixels: height x width of a video at most; larger ones are shrunk.
        multiple: heights and widths are multiples of this; the command line takes it from the model.
        batch_size: samples a batch, of each process.
        holdout: this many source videos are taken out of `train`, with all their records, and validated on; of files
            alone, since worlds have splits of their own.
        categories: weights of edit categories (the manifests' column edited_type) within each manifest, 1 for those not
            named; samples without one are of the category "none".
        augmentation: of training samples.
        cache: folder that `kiwi cache` filled; what it holds is read instead of decoding clips and running VAE and
            vision tower.
        num_workers: processes that decode.
        seed: of the order of batches and of augmentation.
    """

    def __init__(
        self,
        train: list[DataSet],
        validation: list[DataSet] | None = None,
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
            raise InputError("data needs manifests in train, batch_size >= 1 and holdout >= 0")
        self.train, self.validation, self.root = train, validation or [], Path(root)
        self.max_pixels, self.multiple, self.batch_size = max_pixels, multiple, batch_size
        self.holdout, self.num_workers, self.seed = holdout, num_workers, seed
        self.categories, self.augmentation = categories or {}, augmentation
        self.cache = cache
        self.sets: dict[str, EditDataset] = {}
        self.cells: list[Cell] = []
        self.shares: list[float] = []

    def setup(self, stage: str = "fit") -> None:
        """Read and validate every manifest before any work starts."""
        if self.sets:
            return
        train, validation = self._read(self.train), self._read(self.validation)
        held_out = self._held_out({record.source for _, record, _ in train if isinstance(record.source, Path)})
        validation += [item for item in train if item[1].source in held_out]
        train = [item for item in train if item[1].source not in held_out]
        self.cells = [(number, record.category or "none") for number, record, _ in train]
        self.shares = shares(self.cells, [manifest.weight for manifest in self.train], self.categories)
        cache = None if self.cache is None else FeatureCache(self.cache)
        self.sets = {
            "train": _dataset(train, self.augmentation, self.seed, cache),
            "validation": _dataset(validation, NoAugmentation(), self.seed, cache),
        }
        if cache is not None:
            self._require_cached(cache)
        self._tell()

    def train_dataloader(self) -> DataLoader[EditBatch]:
        """Batches of the mixture, from where training stands."""
        rank, world = self._place()
        return self._loader("train", self._mixture(rank, world, lambda: getattr(self._module(), "batches_seen", 0)))

    def fresh_train_dataloader(self) -> DataLoader[EditBatch]:
        """One epoch of the mixture from its start, the same in every process, apart from what training goes through."""
        return self._loader("train", self._mixture(0, 1))

    def val_dataloader(self) -> DataLoader[EditBatch] | list[DataLoader[EditBatch]]:
        """Every validation sample once, in a fixed order; none without validation data."""
        dataset, (rank, world) = self.sets["validation"], self._place()
        if not len(dataset):
            return []
        return self._loader("validation", OnceSampler(dataset.buckets, self.batch_size, rank=rank, world=world))

    def state_dict(self) -> dict[str, Any]:
        """Which data, mixture and order a checkpoint stands in the middle of; how far is the module's to know."""
        return {"order": self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse to go on in the middle of another order.

        Raises:
            CheckpointError: the data or the way they are mixed has changed.
        """
        self.setup()
        if state.get("order") != self._order():
            raise CheckpointError(
                "the checkpoint was written while training on other data, or on the same in another order",
                fix="resume with the manifests, weights, seed, sizes and batch size (over all processes) that the run "
                "was started with; to train on other data start a new run from its model folder (model.init)",
            )

    def _require_cached(self, cache: FeatureCache) -> None:
        keys = {key for dataset in self.sets.values() for sample in dataset.keys for key in sample.all()}
        if missing := sum(key not in cache for key in keys):
            raise InputError(
                f"the cache {cache.folder} lacks entries of this run",
                got=f"{missing} of {len(keys)} are missing",
                fix="run `kiwi cache` with this run's configuration: it adds what is missing",
            )

    def _order(self) -> str:
        _, world = self._place()
        return self._mixture(0, world).fingerprint(self.sets["train"].ids)

    def _mixture(self, rank: int, world: int, consumed: Callable[[], int] = lambda: 0) -> MixtureSampler:
        return MixtureSampler(
            self.sets["train"].buckets,
            self.cells,
            self.shares,
            self.batch_size,
            seed=self.seed,
            consumed=consumed,
            rank=rank,
            world=world,
        )

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _tell(self) -> None:
        """Say what is trained and validated on, and in which proportions."""
        kinds, categories = Counter[str](), Counter[str]()
        for bucket, (number, category), share in zip(self.sets["train"].buckets, self.cells, self.shares, strict=True):
            kinds[f"{bucket.task.value} of {self.train[number].path}"] += share  # type: ignore[assignment]
            categories[category] += share  # type: ignore[assignment]
        for name, dataset in self.sets.items():
            tasks = sorted({bucket.task.value for bucket in dataset.buckets})
            log.info("%s: %d samples (%s)", name, len(dataset), ", ".join(tasks) or "none")
        for counter in (kinds, categories)[: 1 + (set(categories) != {"none"})]:
            log.info("mixture: %s", ", ".join(f"{share:.1%} {name}" for name, share in sorted(counter.items())))

    def _read(self, data_sets: Sequence[DataSet]) -> list[tuple[int, Record, Bucket]]:
        """Every record with the number of its data set and its bucket."""
        items = []
        for number, one in enumerate(data_sets):
            records: list[Record] = []
            records += read_manifest(self.root / one.path) if isinstance(one, Manifest) else one.records()
            buckets = assign(records, max_pixels=self.max_pixels, max_frames=one.max_frames, multiple=self.multiple)
            items += [(number, record, bucket) for record, bucket in zip(records, buckets, strict=True)]
        return items

    def _held_out(self, sources: set[Path]) -> set[Path]:
        if self.holdout and self.holdout >= len(sources):
            raise InputError(
                "data.holdout leaves nothing to train on", got=f"{self.holdout} of {len(sources)} source videos"
            )
        # By path, not by name alone, so that the choice is the same in every process.
        root = self.root.resolve()
        named = sorted((key(self.seed, "holdout", os.path.relpath(p.resolve(), root)), str(p), p) for p in sources)
        return {path for _, _, path in named[: self.holdout]}

    def _module(self) -> L.LightningModule | None:
        return self.trainer.lightning_module if self.trainer else None

    def _loader(self, name: str, sampler: Sampler[Any]) -> DataLoader[EditBatch]:
        return DataLoader(  # type: ignore[type-var]
            self.sets[name],  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def _dataset(items: Sequence[tuple[int, Record, Bucket]], *more: Any) -> EditDataset:
    return EditDataset([record for _, record, _ in items], [bucket for *_, bucket in items], *more)
