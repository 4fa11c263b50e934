"""The dataset, which decodes records to samples at the sizes of their buckets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from kiwi.data.augmentation import AugmentationSpec, NoAugmentation
from kiwi.data.batch_samplers import SampledIndex
from kiwi.data.buckets import Bucket
from kiwi.data.clips import Clip
from kiwi.data.feature_cache import FeatureCache
from kiwi.data.sample import EditSample
from kiwi.data.sources import Record
from kiwi.encoded import Pixels
from kiwi.errors import KiwiError, ManifestError
from kiwi.media.resize import crop_resize, letterbox


class CacheKeys(NamedTuple):
    """Keys of a sample's entries in a cache, named as in `EditSample`; empty if the cache has no such encoder."""

    source_posterior: str
    target_posterior: str
    source_features: str
    reference_features: tuple[str, ...]

    def all(self) -> Iterator[str]:
        """Yield the keys that are not empty."""
        yield from filter(None, (*self[:3], *self.reference_features))


class EncodingJob(NamedTuple):
    """A clip or image to encode for a cache, with the keys of the results; the key of a result not needed is empty."""

    load: Callable[[], Pixels]
    """Decodes the clip: (F, H, W, 3)."""
    posterior_key: str
    features_key: str
    is_reference: bool


class EditDataset(Dataset[EditSample]):
    """Decodes one record at a time. A sample that cannot be read raises an error; it is never replaced by another one.

    Args:
        records: edits and questions to decode.
        buckets: bucket of each record, with the size to decode it to.
        augmentation: augmentation of samples in training batches.
        seed: seed for the augmentation.
        cache: cache of the encoders' outputs; a clip whose outputs it holds is not decoded.
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
        self.augmentation, self.seed, self.cache = augmentation, seed, cache
        self.keys: list[CacheKeys] = []
        self.content_hashes: list[str] = []
        """Hashes of the clips of each record, which only a cache makes cheap; without one, an empty list."""
        if cache is not None:
            hashes = self._hash_contents(cache)
            self.keys = self._compute_keys(cache, hashes)
            self.content_hashes = [" ".join(hashes[clip] for clip in list_clips(record)) for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def ids(self) -> list[str]:
        """Sample ids, each made of the record's id and the number of frames."""
        return [_make_sample_id(record, bucket) for record, bucket in zip(self.records, self.buckets, strict=True)]

    def __getitem__(self, index: int | SampledIndex) -> EditSample:
        """Decode a sample, or read its encodings from the cache; augmented if the index is a `SampledIndex`.

        Raises:
            ManifestError: a video or reference cannot be read; the message names the record's location.
        """
        position, batch = index if isinstance(index, SampledIndex) else (index, None)
        if self.cache is None:
            return self._decode(position, batch)
        cache, keys = self.cache, self.keys[position]
        has_source = bool(keys.source_posterior and keys.source_features)
        sample = self._decode(position, batch, source=not has_source, target=not keys.target_posterior)
        if keys.source_features:
            references = tuple(cache.read_features(key) for key in keys.reference_features)
            source = cache.read_features(keys.source_features)
            sample = replace(sample, source_features=source, reference_features=references)
        return replace(
            sample,
            source_posterior=cache.read_posterior(keys.source_posterior) if keys.source_posterior else None,
            target_posterior=cache.read_posterior(keys.target_posterior) if keys.target_posterior else None,
        )

    def decode(self, index: int) -> EditSample:
        """Decode a sample as at inference: all clips and the mask, without cache and augmentation."""
        sample, record = self._decode(index), self.records[index]
        if record.mask is None:
            return sample
        with _errors_at(record):
            mask_FHWC = _decode_clip(record.mask, self.buckets[index])
        # The edit may change pixels where the mask is white, that is at least half as bright as white.
        return replace(sample, mask_FHW=mask_FHWC.mean(axis=-1, dtype=np.float32) >= 127.5)

    def list_encoding_jobs(self, cache: FeatureCache) -> dict[str, EncodingJob]:
        """List the encoding jobs that fill a cache for all samples, by the first key of each job."""
        jobs: dict[str, EncodingJob] = {}
        all_keys = self._compute_keys(cache, self._hash_contents(cache))
        for record, bucket, keys in zip(self.records, self.buckets, all_keys, strict=True):
            # A clip is decoded once for both encoders, and once for all samples that use it.
            load = partial(_decode_clip, record.source, bucket)
            job = EncodingJob(load, keys.source_posterior, keys.source_features, False)
            jobs[job.posterior_key or job.features_key] = job
            if keys.target_posterior and record.target is not None:
                load = partial(_decode_clip, record.target, bucket)
                jobs.setdefault(keys.target_posterior, EncodingJob(load, keys.target_posterior, "", False))
            for reference, key in zip(record.references, keys.reference_features, strict=bool(keys.reference_features)):
                jobs[key] = EncodingJob(reference.decode, "", key, True)
        return jobs

    def _hash_contents(self, cache: FeatureCache) -> dict[Clip, str]:
        return cache.hash_contents(clip for record in self.records for clip in list_clips(record))

    def _compute_keys(self, cache: FeatureCache, hashes: Mapping[Clip, str]) -> list[CacheKeys]:
        keys = []
        for record, bucket in zip(self.records, self.buckets, strict=True):
            source, target = hashes[record.source], None if record.target is None else hashes[record.target]
            references = [cache.make_features_key(hashes[reference], None) for reference in record.references]
            record_keys = CacheKeys(
                source_posterior=cache.make_posterior_key(source, bucket),
                target_posterior="" if target is None else cache.make_posterior_key(target, bucket),
                source_features=cache.make_features_key(source, bucket),
                reference_features=tuple(filter(None, references)),
            )
            keys.append(record_keys)
        return keys

    def _decode(self, index: int, batch: int | None = None, *, source: bool = True, target: bool = True) -> EditSample:
        """Decode a sample without the cache, augmented for a training batch with this number; None: not augmented."""
        record, bucket = self.records[index], self.buckets[index]
        sample_id = _make_sample_id(record, bucket)
        shrink_factors = [
            1.0
            if batch is None
            else self.augmentation.draw_shrink_factor(self.seed, "shrink", batch, sample_id, number)
            for number in range(len(record.references))
        ]
        empty = np.zeros((0, bucket.height, bucket.width, 3), np.uint8)
        with _errors_at(record):
            images = tuple(reference.decode()[0] for reference in record.references)
            source_FHWC = _decode_clip(record.source, bucket) if source else empty
            target_FHWC = _decode_clip(record.target, bucket) if target and record.target is not None else empty
        return EditSample(
            id=sample_id,
            task=bucket.task,
            instruction=record.instruction,
            size=(bucket.frames, bucket.height, bucket.width),
            category=record.category or "none",
            answer=record.answer,
            caption=record.caption,
            source_FHWC=source_FHWC,
            target_FHWC=target_FHWC,
            reference_images=images,
            references_RHWC=letterbox_references(images, bucket.height, bucket.width, shrink_factors),
        )


def letterbox_references(
    images: Sequence[Pixels], height: int, width: int, shrink_factors: Sequence[float] | None = None
) -> Pixels:
    """Letterbox reference images on white at the video's size, each shrunk by its factor: (R, H, W, 3), R may be 0."""
    factors = shrink_factors or [1.0] * len(images)
    boxed = [letterbox(image, height, width, shrink=factor) for image, factor in zip(images, factors, strict=True)]
    return np.stack(boxed) if boxed else np.zeros((0, height, width, 3), np.uint8)


def _make_sample_id(record: Record, bucket: Bucket) -> str:
    return f"{record.id}/{bucket.frames}f"


def list_clips(record: Record) -> list[Clip]:
    """The clips of a record that a model sees in training; the mask is not among them."""
    return [clip for clip in (record.source, record.target, *record.references) if clip is not None]


def _decode_clip(clip: Clip, bucket: Bucket) -> Pixels:
    return crop_resize(clip.decode(bucket.frames), bucket.height, bucket.width)


@contextmanager
def _errors_at(record: Record) -> Iterator[None]:
    """Add the location of a record to errors in the block."""
    try:
        yield
    except KiwiError as error:
        raise ManifestError(f"{record.location}: {error}", code=error.code) from error
