"""Records of manifests as decoded samples of their buckets' sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from kiwi.data.augmentation import AugmentationSpec, NoAugmentation
from kiwi.data.buckets import Bucket
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
    """

    def __init__(
        self,
        records: Sequence[EditRecord],
        buckets: Sequence[Bucket],
        augmentation: AugmentationSpec = NoAugmentation(),  # noqa: B008  (frozen)
        seed: int = 0,
    ) -> None:
        assert len(records) == len(buckets)
        self.records, self.buckets = list(records), list(buckets)
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.records)

    @property
    def ids(self) -> list[str]:
        """Of every sample: the record's, and the length that it is cut to."""
        return [f"{r.id}/{bucket.frames}f" for r, bucket in zip(self.records, self.buckets, strict=True)]

    def __getitem__(self, at: int | Draw) -> EditSample:
        """The sample at a place; augmented where it is drawn for a batch.

        Raises:
            ManifestError: its video or reference cannot be read, with the manifest's line.
        """
        index, *drawn = at if isinstance(at, Draw) else (at,)
        record, bucket = self.records[index], self.buckets[index]
        name = f"{record.id}/{bucket.frames}f"
        shrinks = [
            self.augmentation.shrink(self.seed, "shrink", *drawn, name, i) if drawn else 1.0
            for i in range(len(record.references))
        ]
        try:
            pictures = tuple(read_image(r, name=f"the reference of {record.where}") for r in record.references)
            source = _clip(record.source, bucket)
            target = source[:0] if record.target is None else _clip(record.target, bucket)
        except KiwiError as problem:
            raise ManifestError(f"{record.where}: {problem}") from problem
        return EditSample(
            id=name,
            task=bucket.task,
            instruction=record.instruction,
            source_FHWC=source,
            target_FHWC=target,
            pictures=pictures,
            references_RHWC=letterboxed(pictures, bucket.height, bucket.width, shrinks),
        )


def letterboxed(pictures: Sequence[Pixels], height: int, width: int, shrinks: Sequence[float] | None = None) -> Pixels:
    """Reference images on white at the video's size, (R, H, W, 3), each shrunk by its factor; R may be 0."""
    factors = shrinks or [1.0] * len(pictures)
    boxed = [letterbox(p, height, width, shrink=factor) for p, factor in zip(pictures, factors, strict=True)]
    return np.stack(boxed) if boxed else np.zeros((0, height, width, 3), np.uint8)


def _clip(path: object, bucket: Bucket) -> Pixels:
    video = read_video(path, max_frames=bucket.frames)  # type: ignore[arg-type]
    return crop_resize(video.frames_FHWC, bucket.height, bucket.width)
