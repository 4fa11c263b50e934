"""Buckets: groups of samples that can be batched together.

All samples of a bucket have the same task kind, size, frame count and number of references. Frame counts are rounded
down to 4k + 1 and sizes to the model's size multiple; the log lists what was rounded.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from kiwi.data.sources import Record
from kiwi.encoded import TaskKind
from kiwi.errors import ManifestError
from kiwi.media.image import fit_size, snap_frames
from kiwi.media.video import VideoInfo

log = logging.getLogger(__name__)


class Bucket(NamedTuple):
    """The properties that all samples of a batch share."""

    task: TaskKind
    height: int
    width: int
    frames: int
    references: int

    def __str__(self) -> str:
        return f"{self.task.value} {self.height}x{self.width}, {self.frames} frames, {self.references} references"


def assign_buckets(records: Sequence[Record], *, max_pixels: int, max_frames: int, multiple: int) -> list[Bucket]:
    """Assign each record to a bucket, by the headers of its clips.

    Args:
        records: records of one data source.
        max_pixels: maximum height x width; larger videos are shrunk.
        max_frames: maximum number of frames, from the first; 1 turns videos into image pairs.
        multiple: size multiple in pixels for heights and widths.

    Raises:
        ManifestError: source and target have different aspect ratios, so they cannot be aligned, or a mask differs from
            its target in aspect ratio or length.
    """
    with ThreadPoolExecutor() as pool:
        assigned = list(pool.map(lambda r: _assign_bucket(r, max_pixels, max_frames, multiple), records))
    changes = Counter(change for _, change in assigned if change)
    for change, count in changes.items():
        log.info("%d of %d samples: %s", count, len(records), change)
    return [bucket for bucket, _ in assigned]


def _assign_bucket(record: Record, max_pixels: int, max_frames: int, multiple: int) -> tuple[Bucket, str]:
    """The bucket of a record, and a description of the changes to its size and length; empty without changes."""
    source = record.source.info()
    available = source.frames
    rate_note = ""
    if record.target is not None:
        target = record.target.info()
        # Codecs round sizes, so a few pixels are tolerated: both videos are cropped to the bucket anyway.
        if _differ_in_shape(source, target):
            raise ManifestError(
                f"{record.location}: source and target differ in shape",
                code="mismatched-shapes",
                got=f"{source.height}x{source.width} and {target.height}x{target.width}",
                expected="the same aspect ratio, since source and target are aligned pixel by pixel",
            )
        available = min(available, target.frames)
        if record.mask is not None:
            _check_mask(record, target, record.mask.info())
        if abs(source.fps / target.fps - 1) > 0.01:
            rate_note = f"; frame rates differ ({float(source.fps):g} and {float(target.fps):g}), paired frame by frame"
    frames = snap_frames(min(available, max_frames))
    height, width = fit_size(source.height, source.width, max_pixels=max_pixels, multiple=multiple)
    original, rounded = f"{source.height}x{source.width}, {available} frames", f"{height}x{width}, {frames} frames"
    size_note = f"snapped from {original} to {rounded}" if original != rounded else ""
    reference_count = len(record.references)
    return Bucket(TaskKind.of(frames, reference_count), height, width, frames, reference_count), size_note + rate_note


def _differ_in_shape(a: VideoInfo, b: VideoInfo) -> bool:
    """Whether two videos have different aspect ratios, by more than 2%."""
    return abs(a.height * b.width - a.width * b.height) > 0.02 * a.width * b.height


def _check_mask(record: Record, target: VideoInfo, mask: VideoInfo) -> None:
    """Check that a mask covers its target frame by frame and pixel by pixel."""
    if mask.frames != target.frames or _differ_in_shape(mask, target):
        raise ManifestError(
            f"{record.location}: the mask does not match the target",
            code="mismatched-shapes",
            got=f"{mask.frames} frames of {mask.height}x{mask.width}",
            expected=f"{target.frames} frames of {target.height}x{target.width}, or of the same aspect ratio",
        )
