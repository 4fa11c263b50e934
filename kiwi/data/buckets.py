"""Buckets: groups of samples that can be batched together, because they agree in the fields of `Bucket`.

Frame counts are rounded down to 4k + 1 and sizes to the model's size multiple; the log lists what was rounded.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from kiwi.data.sources import Record
from kiwi.encoded import TaskKind
from kiwi.errors import ManifestError
from kiwi.media.resize import fit_size, snap_frames
from kiwi.media.video import VideoInfo, list_differences

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
    """Assign each record of a data source to a bucket, by the headers of its clips.

    Args:
        max_pixels: maximum height x width; larger videos are shrunk.
        max_frames: maximum number of frames, from the first; 1 turns videos into image pairs.
        multiple: size multiple in pixels for heights and widths.

    Raises:
        ManifestError: a source differs from its target in aspect ratio, or a mask in aspect ratio or length.
    """
    with ThreadPoolExecutor() as pool:
        assigned = list(pool.map(lambda r: _assign_bucket(r, max_pixels, max_frames, multiple), records))
    for note, count in Counter(note for _, note in assigned if note).items():
        log.info("%d of %d samples: %s", count, len(records), note)
    return [bucket for bucket, _ in assigned]


def _assign_bucket(record: Record, max_pixels: int, max_frames: int, multiple: int) -> tuple[Bucket, str]:
    """Return the bucket of a record and a note for the log, which is empty if its size and length are kept."""
    source = record.source.read_info()
    available, pairing_note = source.frames, ""
    if record.target is not None:
        target = record.target.read_info()
        # Codecs round sizes, so a few pixels are tolerated: both videos are cropped to the bucket anyway.
        if _differ_in_shape(source, target):
            message = f"{record.location}: source and target have different aspect ratios"
            got = f"{source.height}x{source.width} and {target.height}x{target.width}"
            fix = "crop one of them so that their pixels correspond"
            raise ManifestError(message, code="mismatched-shapes", got=got, fix=fix)
        available = min(available, target.frames)
        if record.mask is not None:
            _check_mask(record, target, record.mask.read_info())
        if differences := list_differences(source, target):
            differ = f"source and target differ in {' and '.join(differences)}"
            pairing_note = f"{differ}: paired frame by frame, over the frames that both have"
    frames = snap_frames(min(available, max_frames))
    height, width = fit_size(source.height, source.width, max_pixels=max_pixels, multiple=multiple)
    original = f"{source.height}x{source.width}, {available} frames"
    rounded = f"{height}x{width}, {frames} frames"
    size_note = f"snapped from {original} to {rounded}" if original != rounded else ""
    reference_count = len(record.references)
    return Bucket(TaskKind.of(frames, reference_count), height, width, frames, reference_count), "; ".join(
        filter(None, (size_note, pairing_note))
    )


def _differ_in_shape(a: VideoInfo, b: VideoInfo) -> bool:
    """Whether the aspect ratios of two videos differ by more than 2%."""
    return abs(a.height * b.width - a.width * b.height) > 0.02 * a.width * b.height


def _check_mask(record: Record, target: VideoInfo, mask: VideoInfo) -> None:
    """Check that a mask covers its target frame by frame and pixel by pixel."""
    if mask.frames != target.frames or _differ_in_shape(mask, target):
        got = f"{mask.frames} frames of {mask.height}x{mask.width}"
        expected = f"{target.frames} frames of {target.height}x{target.width}, or of the same aspect ratio"
        message = f"{record.location}: the mask does not match the target"
        raise ManifestError(message, code="mismatched-shapes", got=got, expected=expected)
