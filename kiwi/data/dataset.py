"""Records of manifests as decoded samples of their buckets' sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from kiwi.data.augmentation import AugmentationSpec, NoAugmentation
from kiwi.data.buckets import Bucket, Record
from kiwi.data.feature_cache import FeatureCache
from kiwi.data.sample import EditSample
from kiwi.data.sampler import Draw
from kiwi.data.world import Rendered
from kiwi.encoded import Pixels
from kiwi.errors import KiwiError, ManifestError
from kiwi.media.image import crop_resize, letterbox, read_image
from kiwi.media.video import read_video


class Keys(NamedTuple):
    """Of a sample's entries in a cache; empty where it keeps none."""

    source: str
    target: str
    source_features: str
    reference_features: tuple[str, ...]

    def all(self) -> Iterator[str]:
        """Those that are not empty."""
        yield from filter(None, (*self[:3], *self.reference_features))


class Encodable(NamedTuple):
    """A clip or a picture, and the keys of what a cache wants to know of it; empty for nothing."""

    load: Callable[[], Pixels]
    """Decodes it: (F, H, W, 3)."""
    latents: str
    seen: str
    is_reference: bool


class EditDataset(Dataset[EditSample]):
    """Decodes one record at a time. A sample that cannot be read stops the run; it is never replaced by another.

    Args:
        records: the edits.
        buckets: of each, the size that it is brought to.
        augmentation: of what is drawn for a batch of training.
        seed: of the augmentation.
        cache: of latents and features; what it holds all of is not decoded.
    """

    def __init__(
        self,
        records: Sequence[Record],
        buckets: Sequence[Bucket],
        augmentation: AugmentationSpec = NoAugmentation(),  # noqa: B008  (frozen)
        seed: int = 0,
        cache: FeatureCache | None = None,
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
            return self._sample(index, drawn)
        cache, keys = self.cache, self.keys[index]
        sample = self._sample(index, drawn, source=not (keys.source and keys.source_features), target=not keys.target)
        return replace(
            sample,
            source_latents=cache.latents(keys.source) if keys.source else None,
            target_latents=cache.latents(keys.target) if keys.target else None,
            source_features=cache.seen(keys.source_features) if keys.source_features else None,
            reference_features=tuple(map(cache.seen, keys.reference_features)) if keys.source_features else None,
        )

    def decoded(self, index: int) -> EditSample:
        """The sample as it is in editing: all of it decoded, its mask too, nothing augmented."""
        sample, record = self._sample(index), self.records[index]
        return sample if record.mask is None else replace(sample, mask_FHW=_mask(record, self.buckets[index]))

    def encodable(self, cache: FeatureCache) -> dict[str, Encodable]:
        """Everything that a cache must know to stand for these samples, under names that tell it apart."""
        found: dict[str, Encodable] = {}
        for record, bucket, keys in zip(self.records, self.buckets, self._keys(cache), strict=True):
            # A clip is decoded once for both encoders, and once for all samples that it is in.
            found[keys.source or keys.source_features] = Encodable(
                partial(_clip, record.source, bucket), keys.source, keys.source_features, False
            )
            if keys.target and record.target is not None:
                found.setdefault(keys.target, Encodable(partial(_clip, record.target, bucket), keys.target, "", False))
            for reference, key in zip(record.references, keys.reference_features, strict=bool(keys.reference_features)):
                found[key] = Encodable(partial(_picture, reference, record.where), "", key, True)
        return found

    def _keys(self, cache: FeatureCache) -> list[Keys]:
        """Keys of every sample."""
        files = {file for r in self.records for file in (r.source, r.target, *r.references) if file is not None}
        contents = cache.contents(files)
        return [
            Keys(
                source=cache.latents_key(contents[record.source], bucket),
                target="" if record.target is None else cache.latents_key(contents[record.target], bucket),
                source_features=cache.seen_key(contents[record.source], bucket),
                reference_features=tuple(filter(None, (cache.seen_key(contents[r], None) for r in record.references))),
            )
            for record, bucket in zip(self.records, self.buckets, strict=True)
        ]

    def _sample(self, index: int, drawn: Sequence[int] = (), *, source: bool = True, target: bool = True) -> EditSample:
        """A sample from its files alone, augmented only where it is drawn for training.

        Args:
            index: which one.
            drawn: for which draw of it.
            source, target: whether their frames are wanted.
        """
        record, bucket = self.records[index], self.buckets[index]
        name = _id(record, bucket)
        shrinks = [
            self.augmentation.shrink(self.seed, "shrink", *drawn, name, i) if drawn else 1.0
            for i in range(len(record.references))
        ]
        try:
            pictures = tuple(_picture(reference, record.where)[0] for reference in record.references)
            nothing = np.zeros((0, bucket.height, bucket.width, 3), np.uint8)
            source_FHWC = _clip(record.source, bucket) if source else nothing
            target_FHWC = _clip(record.target, bucket) if target and record.target is not None else nothing
        except KiwiError as problem:
            raise ManifestError(f"{record.where}: {problem}") from problem
        return EditSample(
            id=name,
            task=bucket.task,
            instruction=record.instruction,
            size=(bucket.frames, bucket.height, bucket.width),
            category=record.category or "none",
            answer=record.answer,
            caption=record.caption,
            source_FHWC=source_FHWC,
            target_FHWC=target_FHWC,
            reference_images=pictures,
            references_RHWC=letterboxed(pictures, bucket.height, bucket.width, shrinks),
        )


def letterboxed(pictures: Sequence[Pixels], height: int, width: int, shrinks: Sequence[float] | None = None) -> Pixels:
    """Reference images on white at the video's size, (R, H, W, 3), each shrunk by its factor; R may be 0."""
    factors = shrinks or [1.0] * len(pictures)
    boxed = [letterbox(p, height, width, shrink=factor) for p, factor in zip(pictures, factors, strict=True)]
    return np.stack(boxed) if boxed else np.zeros((0, height, width, 3), np.uint8)


def _id(record: Record, bucket: Bucket) -> str:
    return f"{record.id}/{bucket.frames}f"


def _clip(place: Path | Rendered, bucket: Bucket) -> Pixels:
    if isinstance(place, Rendered):
        frames = place.frames()[: bucket.frames]
    else:
        frames = read_video(place, max_frames=bucket.frames).frames_FHWC
    return crop_resize(frames, bucket.height, bucket.width)


def _picture(place: Path | bytes | Rendered, where: str) -> Pixels:
    """A reference image as one frame, (1, H, W, 3)."""
    if isinstance(place, Rendered):
        return place.frames()
    return read_image(place, name=f"the reference of {where}")[None]


def _mask(record: Record, bucket: Bucket) -> NDArray[np.bool_]:
    """Where the edit may show, (F, H, W): the mask as a clip of its bucket, white from half up.

    Raises:
        ManifestError: it cannot be read, with the manifest's line.
    """
    assert record.mask is not None
    try:
        return _clip(record.mask, bucket).mean(axis=-1, dtype=np.float32) >= 127.5
    except KiwiError as problem:
        raise ManifestError(f"{record.where}: {problem}") from problem
