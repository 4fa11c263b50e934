"""Buckets: the sizes that batches come in, and which sample goes into which.

A batch holds samples of one task kind, one size, one frame count and one number of references. Frame
counts snap down to 4k + 1 and sizes to the model's multiple; what was snapped is said in the log.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kiwi.data.manifest import EditRecord
from kiwi.data.world import Rendered, WorldRecord
from kiwi.encoded import TaskKind
from kiwi.errors import ManifestError
from kiwi.media.image import fit_size, snap_frames
from kiwi.media.video import VideoInfo, probe

log = logging.getLogger(__name__)


Record = EditRecord | WorldRecord
"""An edit to learn from, from files or drawn."""


class Bucket(NamedTuple):
    """What all samples of a batch share."""

    task: TaskKind
    height: int
    width: int
    frames: int
    references: int

    def __str__(self) -> str:
        return f"{self.task.value} {self.height}x{self.width}, {self.frames} frames, {self.references} references"


def assign(records: Sequence[Record], *, max_pixels: int, max_frames: int, multiple: int) -> list[Bucket]:
    """The bucket of each record, from the headers of its files.

    Args:
        records: of one manifest or world.
        max_pixels: height x width at most; larger videos are shrunk.
        max_frames: frames at most, the first ones are taken; 1 makes image pairs of videos.
        multiple: heights and widths are multiples of this.

    Raises:
        ManifestError: a source and a target of different shape, which cannot be aligned, or a mask of another shape or
            length than its target.
    """
    with ThreadPoolExecutor() as pool:
        planned = list(pool.map(lambda r: _plan(r, max_pixels, max_frames, multiple), records))
    changes = Counter(change for _, change in planned if change)
    for change, count in changes.items():
        log.info("%d of %d samples: %s", count, len(records), change)
    return [bucket for bucket, _ in planned]


def _plan(record: Record, max_pixels: int, max_frames: int, multiple: int) -> tuple[Bucket, str]:
    source = _info(record.source)
    found = source.frames
    if record.target is not None:
        target = _info(record.target)
        # A codec may round sizes, so a few pixels are forgiven: both sides are cropped to the bucket anyway.
        if _differ(source, target):
            raise ManifestError(
                f"{record.where}: source and target differ in shape",
                got=f"{source.height}x{source.width} and {target.height}x{target.width}",
                wanted="the same height : width, since the edit is learned pixel by pixel",
            )
        found = min(found, target.frames)
        if record.mask is not None:
            _require_alike(record, target, _info(record.mask))
    frames = snap_frames(min(found, max_frames))
    height, width = fit_size(source.height, source.width, max_pixels=max_pixels, multiple=multiple)
    before, after = (
        f"{s[1]}x{s[2]}, {s[0]} frames" for s in ((found, source.height, source.width), (frames, height, width))
    )
    change = f"snapped from {before} to {after}" if before != after else ""
    if record.target is not None and abs(source.fps / target.fps - 1) > 0.01:
        change += f"; frame rates differ ({float(source.fps):g} and {float(target.fps):g}), paired frame by frame"
    count = len(record.references)
    return Bucket(TaskKind.of(frames, count), height, width, frames, count), change


def _info(place: Path | Rendered) -> VideoInfo:
    return place.info() if isinstance(place, Rendered) else probe(place)


def _differ(one: VideoInfo, other: VideoInfo) -> bool:
    """Whether two videos have different shapes."""
    return abs(one.height * other.width - one.width * other.height) > 0.02 * one.width * other.height


def _require_alike(record: Record, target: VideoInfo, mask: VideoInfo) -> None:
    """Refuse a mask that does not lie on its target, frame by frame and pixel by pixel."""
    if mask.frames != target.frames or _differ(mask, target):
        raise ManifestError(
            f"{record.where}: the mask does not fit the target",
            got=f"{mask.frames} frames of {mask.height}x{mask.width}",
            wanted=f"{target.frames} frames of {target.height}x{target.width}, or of the same height : width",
        )
