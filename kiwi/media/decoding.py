"""Decoding of video files to frames in presentation order, and conversion of frames to RGB.

The low-level part of `kiwi.media.video`, which handles truncated, damaged and rotated files and unusual colour spaces.
Outside this package, use `read_video`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation

from kiwi.errors import MediaError

# Without these flags swscale has errors of up to two grey levels, which differ between CPUs.
EXACT_SCALING = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
)

# ITU-T H.273 MatrixCoefficients that swscale does not support, and the nearest supported ones: reserved -> unspecified,
# BT.2020 constant luminance -> non-constant luminance.
_SUPPORTED_MATRICES = {3: 2, 10: 9}


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file and yield its container and video stream; errors of ffmpeg in the block are raised as MediaError."""
    try:
        # Local files only: a playlist with a video's suffix must not make ffmpeg fetch URLs.
        container = av.open(str(path.resolve()), options={"protocol_whitelist": "file"})
    except FileNotFoundError:  # av.error.FileNotFoundError, which is an FFmpegError too
        raise MediaError(f"the video {path} does not exist", code="missing-file", fix="check the path") from None
    except av.error.FFmpegError as error:
        got = _describe_error(error)
        raise MediaError(f"{path} cannot be opened as a video", code="unreadable-video", got=got) from None
    try:
        with container:
            stream = _select_video_stream(container, path)
            stream.thread_type = "AUTO"
            yield container, stream
    except av.error.FFmpegError as error:
        got = _describe_error(error)
        raise MediaError(f"{path} is truncated or corrupt", code="damaged-video", got=got) from None


def _select_video_stream(container: Any, path: Path) -> Any:
    # The cover art of an audio file is a video stream too.
    streams = [s for s in container.streams.video if "attached_pic" not in str(s.disposition).lower()]
    if not streams:
        kinds = ", ".join(sorted({str(s.type) for s in container.streams})) or "none"
        raise MediaError(f"{path} has no video stream", code="unreadable-video", got=f"streams: {kinds}")
    return streams[0]


def decode_frames(container: Any, stream: Any, path: Path) -> Iterator[tuple[Fraction, Any]]:
    """Yield frames in presentation order with their times in seconds after the first one.

    Raises a MediaError at the first damaged frame, and at the end if there are fewer frames than the file announces. A
    transport stream announces no number of frames: gaps are detected by packet counters, a missing end is not.
    """
    announced = count_announced_frames(container, stream)
    step = 1 / read_frame_rate(stream)
    count = repeated = 0
    origin = previous = end = None
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:  # a gap in a transport stream, which has no frame count
                raise _damage_error(path, count, announced, "a part is missing or damaged")
            repeated += packet.size == 0 and packet.dts is not None  # how AVI marks repeated frames
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise _damage_error(path, count, announced, "a frame is damaged")
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
    except av.error.FFmpegError as error:
        with suppress(av.error.FFmpegError):  # intact frames that are still in the decoder
            count += sum(not frame.is_corrupt for frame in stream.decode(None))
        raise _damage_error(path, count, announced, _describe_error(error)) from None
    if announced is None:
        announced = _estimate_frames_by_duration(stream, count, end, step)
    if announced is not None and count + repeated < announced:
        raise _damage_error(path, count, announced, "the file ends early")
    if count == 0:
        raise MediaError(f"{path} has no frames", code="damaged-video")


def _damage_error(path: Path, count: int, announced: int | None, reason: str) -> MediaError:
    total = f"of {announced} announced" if announced is not None else "(its header announces no number)"
    return MediaError(
        f"{path} is truncated or corrupt: {count} frames {total} could be decoded ({reason})",
        code="damaged-video",
        fix="get an undamaged copy of it, or read only its intact part with max_frames",
    )


def count_announced_frames(container: Any, stream: Any) -> int | None:
    """Count the frames that the header announces; None if it announces none."""
    if not stream.frames:
        return None
    if "mp4" in container.format.name:
        # The header counts all frames; the index marks those that an edit list hides.
        entries = stream.index_entries
        if len(entries) == stream.frames:
            return sum(not entry.is_discard for entry in entries)
        return len(entries) or None
    return int(stream.frames)


def _estimate_frames_by_duration(stream: Any, count: int, end: Fraction | None, step: Fraction) -> int | None:
    """Estimate the number of frames from the duration in Matroska and WebM; None unless over 1.5 frames are missing."""
    text = next((value for tag, value in stream.metadata.items() if tag.upper().split("-")[0] == "DURATION"), "")
    try:
        hours, minutes, seconds = text.split(":")
        duration = int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except ValueError:  # no duration, or in another form
        return None
    if end is None or duration - end < 1.5 * step:
        return None
    return count + round((duration - end) / step)


def count_packets(container: Any, stream: Any) -> int:
    """Count the packets of the stream, one per frame, without decoding."""
    return sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))


def read_frame_rate(stream: Any) -> Fraction:
    """Read the number of frames per second; 1 for a file without a rate, such as a single image."""
    return Fraction(stream.average_rate or stream.guessed_rate or 1)


def to_rgb(frame: Any, size: tuple[int, int], path: Path) -> np.ndarray:
    """Convert a decoded frame to uint8 RGB `[H, W, 3]`, with transparency on white; raises MediaError if it cannot be.

    Args:
        frame: decoded frame.
        size: width and height of the result before the frame is turned for display.
        path: file of the frame, for the message.
    """
    frame.colorspace = _SUPPORTED_MATRICES.get(frame.colorspace, frame.colorspace)
    has_alpha = any(component.is_alpha for component in frame.format.components)
    try:
        image = frame.to_ndarray(
            format="rgba" if has_alpha else "rgb24",
            width=size[0],  # the size may change within a stream
            height=size[1],
            interpolation=EXACT_SCALING,
            dst_color_range=ColorRange.JPEG,
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(
            f"{path} has colours that cannot be converted to RGB",
            code="unsupported-colours",
            got=f"{frame.format.name}, matrix {frame.colorspace} ({error})",
            fix="convert it to yuv420p with BT.709 colours first",
        ) from None
    if has_alpha:
        opacity = image[..., 3:].astype(np.uint16)
        image = ((image[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    orientation = read_orientation(frame)
    if orientation.transpose:
        image = image.transpose(1, 0, 2)
    return image[:: -1 if orientation.mirror_y else 1, :: -1 if orientation.mirror_x else 1]


class Orientation(NamedTuple):
    """How to display a decoded frame: whether to exchange x and y, and then whether to mirror x and y."""

    transpose: bool
    mirror_x: bool
    mirror_y: bool

    @property
    def rotation(self) -> int:
        """Clockwise rotation in degrees; of a mirrored orientation, 90 if it transposes and else 0."""
        rotations = {(True, True, False): 90, (False, True, True): 180, (True, False, True): 270}
        return rotations.get(self, 90 if self.transpose else 0)


def read_orientation(frame: Any) -> Orientation:
    """Read the orientation of a decoded frame, with rotations rounded to multiples of 90 degrees."""
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return Orientation(False, False, False)
    # The 3x3 matrix maps x to a x + c y and y to b x + d y.
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


def _describe_error(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
