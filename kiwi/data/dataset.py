"""Records of manifests as decoded samples of their buckets' sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from kiwi.data.augmentation import AugmentationSpec, NoAugmentation
from kiwi.data.buckets import Bucket
from kiwi.data.latent_cache import LatentCache
from kiwi.data.manifest import EditRecord
from kiwi.data.sample import EditSample, Pixels
from kiwi.data.sampler import Draw
from kiwi.errors import KiwiError, ManifestError
from kiwi.media.image import crop_resize, letterbox, read_image
from kiwi.media.video import read_video


class EditDataset(Dataset[EditSample]):
    """Decodes one record at a time. A sample that cannot be read stops the run; it is never replaced by another.

    Args:
        records: the edits.
        buckets: of each, the size that it is brought to.
        augmentation: of what is drawn for a batch of training.
        seed: of the augmentation.
        cache: of latents; targets that are in it are not decoded.
    """

    def __init__(
        self,
        records: Sequence[EditRecord],
        buckets: Sequence[Bucket],
        augmentation: AugmentationSpec = NoAugmentation(),  # noqa: B008  (frozen)
        seed: int = 0,
        cache: LatentCache | None = None,
    ) -> None:
        assert len(records) == len(buckets)
        self.records, self.buckets = list(records), list(buckets)
        self.augmentation, self.seed = augmentation, seed
        self.cache = cache
        self.keys = [] if cache is None else self._keys(cache)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def ids(self) -> list[str]:
        """Of every sample: the record's, and the length that it is cut to."""
        return [_id(record, bucket) for record, bucket in zip(self.records, self.buckets, strict=True)]

    def __getitem__(self, at: int | Draw) -> EditSample:
        """The sample at a place; augmented where it is drawn for a batch; latents from the cache if there is one.

        Raises:
            ManifestError: its video or reference cannot be read, with the manifest's line.
        """
        index, *drawn = at if isinstance(at, Draw) else (at,)
        if self.cache is None:
            return self._sample(index, drawn, self.records[index].target)
        source, target = (None if key is None else self.cache.read(key) for key in self.keys[index])
        return replace(self._sample(index, drawn, None), source_latents=source, target_latents=target)

    def decoded(self, index: int) -> EditSample:
        """The sample as it is in editing: all of it decoded, nothing augmented."""
        return self._sample(index, [], self.records[index].target)

    def clips(self, cache: LatentCache) -> dict[str, Callable[[], Pixels]]:
        """Every clip that a cache of these samples must have, by key, and what decodes it."""
        found: dict[str, Callable[[], Pixels]] = {}
        for record, bucket, keys in zip(self.records, self.buckets, self._keys(cache), strict=True):
            for path, key in zip((record.source, record.target), keys, strict=True):
                if path is not None and key is not None:
                    found[key] = partial(_clip, path, bucket)
        return found

    def _keys(self, cache: LatentCache) -> list[tuple[str, str | None]]:
        """Keys of source and target of every sample."""
        paths = {path for r in self.records for path in (r.source, r.target) if path is not None}
        contents = cache.contents(sorted(paths))
        return [
            (cache.key(contents[r.source], b), None if r.target is None else cache.key(contents[r.target], b))
            for r, b in zip(self.records, self.buckets, strict=True)
        ]

    def _sample(self, index: int, drawn: Sequence[int], target: Path | None) -> EditSample:
        """A sample, decoded; without frames of the target where none is asked for."""
        record, bucket = self.records[index], self.buckets[index]
        name = _id(record, bucket)
        shrinks = [
            self.augmentation.shrink(self.seed, "shrink", *drawn, name, i) if drawn else 1.0
            for i in range(len(record.references))
        ]
        try:
            pictures = tuple(read_image(r, name=f"the reference of {record.where}") for r in record.references)
            source = _clip(record.source, bucket)
            decoded = source[:0] if target is None else _clip(target, bucket)
        except KiwiError as problem:
            raise ManifestError(f"{record.where}: {problem}") from problem
        return EditSample(
            id=name,
            task=bucket.task,
            instruction=record.instruction,
            source_FHWC=source,
            target_FHWC=decoded,
            pictures=pictures,
            references_RHWC=letterboxed(pictures, bucket.height, bucket.width, shrinks),
        )


def letterboxed(pictures: Sequence[Pixels], height: int, width: int, shrinks: Sequence[float] | None = None) -> Pixels:
    """Reference images on white at the video's size, (R, H, W, 3), each shrunk by its factor; R may be 0."""
    factors = shrinks or [1.0] * len(pictures)
    boxed = [letterbox(p, height, width, shrink=factor) for p, factor in zip(pictures, factors, strict=True)]
    return np.stack(boxed) if boxed else np.zeros((0, height, width, 3), np.uint8)


def _id(record: EditRecord, bucket: Bucket) -> str:
    return f"{record.id}/{bucket.frames}f"


def _clip(path: Path, bucket: Bucket) -> Pixels:
    video = read_video(path, max_frames=bucket.frames)
    return crop_resize(video.frames_FHWC, bucket.height, bucket.width)
