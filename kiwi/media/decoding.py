"""Decoding: from a container on disk to single frames in presentation order, and from a frame to RGB.

The lower half of `kiwi.media.video`: files that are truncated, damaged, rotated or in unusual colour spaces are handled
here. Use `read_video` outside this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation

from kiwi.errors import MediaError

# Without these flags swscale is off by up to two grey levels, differently on different CPUs.
EXACT_SCALING = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
)

# Values of ITU-T H.273 MatrixCoefficients that swscale does not support, and the nearest that it does:
# reserved -> unspecified, BT.2020 constant luminance -> non-constant.
_MATRIX_STANDINS = {3: 2, 10: 9}


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file and yield its container and video stream; ffmpeg's errors in the block become a MediaError."""
    try:
        # Only local files: a playlist in disguise must not make the decoder fetch what it names.
        container = av.open(str(path.resolve()), options={"protocol_whitelist": "file"})
    except av.error.FFmpegError as problem:
        missing = isinstance(problem, FileNotFoundError)
        raise MediaError(
            f"{path} cannot be opened as a video",
            code="missing-file" if missing else "unreadable-video",
            got=_reason(problem),
            fix="check the path" if missing else "get an undamaged copy of it",
        ) from None
    try:
        with container:
            stream = _video_stream(container, path)
            stream.thread_type = "AUTO"
            yield container, stream
    except av.error.FFmpegError as problem:
        raise MediaError(
            f"{path} is truncated or corrupt",
            code="damaged-video",
            got=_reason(problem),
            fix="get an undamaged copy of it",
        ) from None


def _video_stream(container: Any, path: Path) -> Any:
    # The cover art of an audio file is a video stream of one image.
    streams = [s for s in container.streams.video if "attached_pic" not in str(s.disposition).lower()]
    if not streams:
        kinds = ", ".join(sorted({str(s.type) for s in container.streams})) or "none"
        raise MediaError(f"{path} has no video stream", code="unreadable-video", got=f"streams: {kinds}")
    return streams[0]


def decode(container: Any, stream: Any, path: Path) -> Iterator[tuple[Fraction, Any]]:
    """Frames in presentation order with their times in seconds after the first one.

    Raises a MediaError at the first damaged frame, and at the end if there were fewer frames than announced.
    A transport stream announces no number: a gap shows in its packet counter, a missing end cannot be detected.
    """
    announced = announced_frames(container, stream)
    step = 1 / frame_rate(stream)
    count = empty = 0
    origin = previous = end = None
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:  # a gap in a transport stream, whose frames no header counts
                raise _damaged(path, count, announced, "a part is missing or damaged")
            empty += packet.size == 0 and packet.dts is not None  # AVI marks repeated frames so
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise _damaged(path, count, announced, "a frame is damaged")
                if frame.pts is None:
                    time = Fraction(0) if previous is None else previous + step
                else:
                    absolute = frame.pts * frame.time_base
                    origin = absolute if origin is None else origin
                    time = absolute - origin
                    end = absolute + step
                previous = time if previous is None else max(time, previous)
                count += 1
                yield previous, frame
    except av.error.FFmpegError as problem:
        with suppress(av.error.FFmpegError):  # frames of the intact part that the decoder still buffers
            count += sum(not frame.is_corrupt for frame in stream.decode(None))
        raise _damaged(path, count, announced, _reason(problem)) from None
    if announced is None:
        announced = _announced_by_duration(stream, count, end, step)
    if announced is not None and count + empty < announced:
        raise _damaged(path, count, announced, "the file ends early")
    if count == 0:
        raise MediaError(f"{path} has no frames", code="damaged-video", fix="get a complete copy of it")


def _damaged(path: Path, count: int, announced: int | None, reason: str) -> MediaError:
    total = f"of {announced} announced" if announced is not None else "(its header announces no number)"
    return MediaError(
        f"{path} is truncated or corrupt: {count} frames {total} could be decoded ({reason})",
        code="damaged-video",
        fix="get an undamaged copy of it, or read only the intact part with max_frames",
    )


def announced_frames(container: Any, stream: Any) -> int | None:
    """The number of frames in the header, or None."""
    if not stream.frames:
        return None
    if "mp4" in container.format.name:
        # The header counts all samples; the index also marks those that an edit list hides.
        entries = stream.index_entries
        if len(entries) == stream.frames:
            return sum(not entry.is_discard for entry in entries)
        return len(entries) or None
    return int(stream.frames)


def _announced_by_duration(stream: Any, count: int, end: Fraction | None, step: Fraction) -> int | None:
    """Matroska and WebM announce no count but each stream's duration; more than 1.5 frames short means truncated."""
    duration = _tagged_duration(stream)
    if duration is None or end is None or duration - end < 1.5 * step:
        return None
    return count + round((duration - end) / step)


def _tagged_duration(stream: Any) -> Fraction | None:
    text = next((v for k, v in stream.metadata.items() if k.upper().split("-")[0] == "DURATION"), "")
    parts = text.split(":")
    with suppress(ValueError):
        if len(parts) == 3:
            return int(parts[0]) * 3600 + int(parts[1]) * 60 + Fraction(parts[2])
    return None


def duration_seconds(container: Any, stream: Any) -> float | None:
    """The stream's duration in seconds by its header or its tags, or None."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    tagged = _tagged_duration(stream)
    if tagged:
        return float(tagged)
    return container.duration / av.time_base if container.duration else None


def count_packets(container: Any, stream: Any) -> int:
    """The number of frames of the stream, counted by packets without decoding."""
    return sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))


def frame_rate(stream: Any) -> Fraction:
    """Frames a second; 1 where the file has no rate (a single image)."""
    return Fraction(stream.average_rate or stream.guessed_rate or 1)


def to_rgb(frame: Any, size: tuple[int, int], path: Path) -> np.ndarray:
    """A decoded frame as uint8 RGB `[H, W, 3]` of `size` (width, height), its matrix and range applied, alpha on white.

    Raises:
        MediaError: a pixel format that cannot be converted.
    """
    frame.colorspace = _MATRIX_STANDINS.get(frame.colorspace, frame.colorspace)
    alpha = any(component.is_alpha for component in frame.format.components)
    try:
        image = frame.to_ndarray(
            format="rgba" if alpha else "rgb24",
            width=size[0],  # a stream may change its size midway
            height=size[1],
            interpolation=EXACT_SCALING,
            dst_color_range=ColorRange.JPEG,
        )
    except (av.error.FFmpegError, ValueError) as problem:
        raise MediaError(
            f"{path} has colours that cannot be converted to RGB",
            code="unsupported-colours",
            got=f"{frame.format.name}, matrix {frame.colorspace} ({problem})",
            fix="convert it to yuv420p with BT.709 colours first",
        ) from None
    if alpha:
        opacity = image[..., 3:].astype(np.uint16)
        image = ((image[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    transposed, flip_x, flip_y = display_transform(frame)
    if transposed:
        image = image.transpose(1, 0, 2)
    return image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def display_transform(frame: Any) -> tuple[bool, bool, bool]:
    """How the decoded frame is displayed: (transpose, then mirror x, then mirror y).

    Read from the 3x3 display matrix (x' = a x + c y, y' = b x + d y); rotations are rounded to multiples of 90 degrees.
    """
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(matrix), np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _reason(problem: Exception) -> str:
    return str(getattr(problem, "strerror", None) or problem)
