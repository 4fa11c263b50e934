"""Records of manifests as decoded samples of their buckets' sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from kiwi.data.buckets import Bucket
from kiwi.data.manifest import EditRecord
from kiwi.data.sample import EditSample, Pixels
from kiwi.errors import KiwiError, ManifestError
from kiwi.media.image import crop_resize, letterbox, read_image
from kiwi.media.video import read_video


class EditDataset(Dataset[EditSample]):
    """Decodes one record at a time. A sample that cannot be read stops the run; it is never replaced by another."""

    def __init__(self, records: Sequence[EditRecord], buckets: Sequence[Bucket]) -> None:
        assert len(records) == len(buckets)
        self.records, self.buckets = list(records), list(buckets)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> EditSample:
        """The sample at this place.

        Raises:
            ManifestError: its video or reference cannot be read, with the manifest's line.
        """
        record, bucket = self.records[index], self.buckets[index]
        try:
            pictures = tuple(read_image(r, name=f"the reference of {record.where}") for r in record.references)
            source = _clip(record.source, bucket)
            target = source[:0] if record.target is None else _clip(record.target, bucket)
        except KiwiError as problem:
            raise ManifestError(f"{record.where}: {problem}") from problem
        return EditSample(
            id=f"{record.id}/{bucket.frames}f",
            task=bucket.task,
            instruction=record.instruction,
            source_FHWC=source,
            target_FHWC=target,
            pictures=pictures,
            references_RHWC=letterboxed(pictures, bucket.height, bucket.width),
        )


def letterboxed(pictures: Sequence[Pixels], height: int, width: int) -> Pixels:
    """Reference images on white at the video's size, (R, H, W, 3); R may be 0."""
    empty = np.zeros((0, height, width, 3), np.uint8)
    return np.concatenate([empty, *(letterbox(picture, height, width)[None] for picture in pictures)])


def _clip(path: object, bucket: Bucket) -> Pixels:
    video = read_video(path, max_frames=bucket.frames)  # type: ignore[arg-type]
    return crop_resize(video.frames_FHWC, bucket.height, bucket.width)
