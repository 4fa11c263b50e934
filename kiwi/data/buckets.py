"""Buckets: the sizes of batches, and which sample belongs to which.

A batch holds samples of one task kind, one size, one frame count and one number of references. Frame
counts are snapped down to 4k + 1 and sizes to the model's multiple; the log lists what was snapped.
"""

from __future__ import annotations

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
    """What all samples of a batch have in common."""

    task: TaskKind
    height: int
    width: int
    frames: int
    references: int

    def __str__(self) -> str:
        return f"{self.task.value} {self.height}x{self.width}, {self.frames} frames, {self.references} references"


def assign_buckets(records: Sequence[Record], *, max_pixels: int, max_frames: int, multiple: int) -> list[Bucket]:
    """The bucket of each record, from the headers of its clips.

    Args:
        records: the samples of one data source.
        max_pixels: maximum height x width; larger videos are shrunk.
        max_frames: maximum number of frames, counted from the first; 1 makes image pairs of videos.
        multiple: heights and widths become multiples of this.

    Raises:
        ManifestError: a source and a target with different aspect ratios, which cannot be aligned, or a mask whose
            aspect ratio or length is not its target's.
    """
    with ThreadPoolExecutor() as pool:
        planned = list(pool.map(lambda r: _plan(r, max_pixels, max_frames, multiple), records))
    changes = Counter(change for _, change in planned if change)
    for change, count in changes.items():
        log.info("%d of %d samples: %s", count, len(records), change)
    return [bucket for bucket, _ in planned]


def _plan(record: Record, max_pixels: int, max_frames: int, multiple: int) -> tuple[Bucket, str]:
    """A record's bucket, and what had to be changed for it, in words; empty for nothing."""
    source = record.source.info()
    available = source.frames
    rates = ""
    if record.target is not None:
        target = record.target.info()
        # A codec may round sizes, so a few pixels are tolerated: both sides are cropped to the bucket anyway.
        if _differ_in_shape(source, target):
            raise ManifestError(
                f"{record.location}: source and target differ in shape",
                code="shape-mismatch",
                got=f"{source.height}x{source.width} and {target.height}x{target.width}",
                expected="the same aspect ratio, since the edit is learned pixel by pixel",
            )
        available = min(available, target.frames)
        if record.mask is not None:
            _check_mask(record, target, record.mask.info())
        if abs(source.fps / target.fps - 1) > 0.01:
            rates = f"; frame rates differ ({float(source.fps):g} and {float(target.fps):g}), paired frame by frame"
    frames = snap_frames(min(available, max_frames))
    height, width = fit_size(source.height, source.width, max_pixels=max_pixels, multiple=multiple)
    before, after = f"{source.height}x{source.width}, {available} frames", f"{height}x{width}, {frames} frames"
    snapped = f"snapped from {before} to {after}" if before != after else ""
    count = len(record.references)
    return Bucket(TaskKind.of(frames, count), height, width, frames, count), snapped + rates


def _differ_in_shape(a: VideoInfo, b: VideoInfo) -> bool:
    """Whether two videos have different aspect ratios, by more than 2%."""
    return abs(a.height * b.width - a.width * b.height) > 0.02 * a.width * b.height


def _check_mask(record: Record, target: VideoInfo, mask: VideoInfo) -> None:
    """Check that a mask covers its target frame by frame and pixel by pixel."""
    if mask.frames != target.frames or _differ_in_shape(mask, target):
        raise ManifestError(
            f"{record.location}: the mask does not match the target",
            code="shape-mismatch",
            got=f"{mask.frames} frames of {mask.height}x{mask.width}",
            expected=f"{target.frames} frames of {target.height}x{target.width}, or of the same aspect ratio",
        )
