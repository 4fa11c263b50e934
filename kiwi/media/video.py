"""Videos: probing, exact decoding to RGB frames, and encoding, with PyAV (ffmpeg's libraries).

A truncated clip is never accepted silently: fewer frames than its header announces are an error with both numbers.

Shape suffixes: F frames, H height, W width, C channels (3, RGB). Pixels are uint8 RGB, full range.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from kiwi.errors import InputError, MediaError
from kiwi.media.decoding import (
    EXACT_SCALING,
    count_announced_frames,
    count_packets,
    decode_frames,
    open_video,
    read_frame_rate,
    read_orientation,
    to_rgb,
)
from kiwi.media.files import atomic_path
from kiwi.media.image import read_image, require_rgb

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif"})

_H273_BT709 = 1
# Exact rates for the decimals 23.976 (or 23.98), 29.97 and so on, with which timestamps would drift.
_NTSC_RATES = tuple(Fraction(nominal * 1000, 1001) for nominal in (24, 30, 48, 60, 120))
# Videos whose short side is below this have chroma planes of full size, which fewer players support.
_MIN_SUBSAMPLED_SIDE = 128
_MAX_RATE_TERM = 2**31 - 1  # ffmpeg stores rates as two 32-bit integers


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """The properties of a video; the defaults are those of an image, which is a video of one frame.

    Args:
        frames: number of frames by the header, or else number of packets.
        height, width: size as displayed, after rotation.
        fps: frames per second.
        rotation: clockwise rotation for display in degrees (0, 90, 180, 270).
        pixel_format: ffmpeg's name of the stored pixel format.
    """

    frames: int = 1
    height: int
    width: int
    fps: Fraction = Fraction(1)
    rotation: int = 0
    pixel_format: str = "rgb24"


@dataclass(frozen=True, eq=False)
class Video:
    """Decoded frames `[F, H, W, 3]` (uint8 RGB) and their rate in frames per second."""

    frames_FHWC: np.ndarray
    fps: Fraction

    @property
    def frame_count(self) -> int:
        return int(self.frames_FHWC.shape[0])

    @property
    def height(self) -> int:
        return int(self.frames_FHWC.shape[1])

    @property
    def width(self) -> int:
        return int(self.frames_FHWC.shape[2])


def probe(path: str | Path) -> VideoInfo:
    """Read the properties of a video from its header and first frame; an image is a video of one frame at 1 fps.

    Raises:
        MediaError: the file does not exist, is not a video or has no frames.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        height, width, _ = read_image(path).shape
        return VideoInfo(height=height, width=width)
    with open_video(path) as (container, stream):
        frames = count_announced_frames(container, stream) or count_packets(container, stream)
    with open_video(path) as (container, stream):
        _, first = next(decode_frames(container, stream, path))
        orientation = read_orientation(first)
        height, width = (first.width, first.height) if orientation.transpose else (first.height, first.width)
        return VideoInfo(
            frames=frames,
            height=height,
            width=width,
            fps=read_frame_rate(stream),
            rotation=orientation.rotation,
            pixel_format=first.format.name,
        )


def read_video(
    path: str | Path, *, max_frames: int | None = None, start: int = 0, fps: float | Fraction | None = None
) -> Video:
    """Decode a video (or an image, as one frame at 1 fps) to RGB frames in presentation order.

    The display rotation is applied, transparency is composited on white, and the file's colour matrix and range are
    applied (untagged files are read as BT.601 limited range, as ffmpeg does). With `fps` the video is resampled: each
    output frame is the source frame nearest in time. `start` and `max_frames` select from the result; nothing after the
    last selected frame is decoded.

    Raises:
        InputError: `max_frames` or `fps` is not positive, or `start` is negative or beyond the end.
        MediaError: the file does not exist, is not a video, has no frames, or is truncated or damaged (the message has
            the number of frames that could be decoded).
    """
    path = Path(path)
    if max_frames is not None and max_frames < 1:
        raise InputError("max_frames must be at least 1", code="out-of-range", got=max_frames)
    if start < 0:
        raise InputError("start must not be negative", code="out-of-range", got=start)
    output_fps = None if fps is None else _to_rational_rate(fps)
    stop = None if max_frames is None else start + max_frames
    if path.suffix.lower() in IMAGE_SUFFIXES:
        if start:
            raise InputError(f"{path} is an image, which has no frame {start}", code="out-of-range", expected="start=0")
        return Video(read_image(path)[None], Fraction(1))
    with open_video(path) as (container, stream):
        frames = decode_frames(container, stream, path)
        if output_fps is None:
            selected = islice((frame for _, frame in frames), start, stop)
        else:
            selected = islice(_resample(frames, output_fps, 1 / read_frame_rate(stream)), start, stop)
        pixels = _convert_frames(selected, path)
        if not pixels:
            raise InputError(f"{path} has no frame {start}", code="out-of-range", expected="a smaller start")
        return Video(np.stack(pixels), output_fps or read_frame_rate(stream))


def write_video(path: str | Path, frames_FHWC: np.ndarray, fps: float | Fraction, *, crf: int = 18) -> None:
    """Encode uint8 RGB frames `[F, H, W, 3]` as H.264 in an mp4 with its index first (faststart), atomically.

    A Fraction or integer `fps` is kept exactly; a float becomes the NTSC rate that it approximates
    (23.976 -> 24000/1001), or else the nearest fraction with a denominator up to 1001. `crf` is x264's constant rate
    factor: 0 is lossless, 51 the worst quality.

    Raises:
        InputError: frames that are not uint8 `[F, H, W, 3]`, `fps` or `crf` out of range, a missing folder, or a suffix
            other than .mp4.
        MediaError: the encoder failed (for example at a size above H.264's limit); nothing is written.
    """
    path = Path(path)
    require_rgb(frames_FHWC, "FHWC")
    if path.suffix.lower() != ".mp4":
        raise InputError(f"cannot write the video {path}", code="wrong-suffix", expected="a path that ends in .mp4")
    if not 0 <= crf <= 51:
        raise InputError("crf is out of range", code="out-of-range", got=crf, expected="0 (lossless) to 51")
    rate = _to_rational_rate(fps)
    with atomic_path(path) as temporary:
        try:
            _encode_video(temporary, frames_FHWC, rate, crf)
        except av.error.FFmpegError as error:
            problem = f"{path} could not be encoded at {frames_FHWC.shape[2]}x{frames_FHWC.shape[1]}, {rate} fps"
            raise MediaError(problem, code="encoding-failed", got=error) from None


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Convert pixels of any shape from float [-1, 1] to uint8 [0, 255], rounded to the nearest level and clipped.

    Raises InputError unless all values are finite floating-point numbers.
    """
    if not np.issubdtype(video.dtype, np.floating):
        raise InputError("the video is not floating-point", code="invalid-pixels", got=video.dtype)
    # A copy, in float32 or wider because float16 cannot represent all steps of 1 / 127.5.
    values = video.astype(np.promote_types(video.dtype, np.float32))
    if invalid_count := int(values.size - np.isfinite(values).sum()):
        problem = f"the video has NaN or infinite values ({invalid_count} of {values.size})"
        raise InputError(problem, code="not-finite", fix="check the model's weights and its input")
    values += 1
    values *= 127.5
    return np.rint(values, out=values).clip(0, 255).astype(np.uint8)


def _resample(frames: Iterator[tuple[Fraction, Any]], fps: Fraction, step: Fraction) -> Iterator[Any]:
    """Yield for each time k / fps the frame nearest in time (the earlier of two that are equally near)."""
    instant = 0
    previous_time, previous = next(frames)
    for time, frame in frames:
        while Fraction(instant) / fps <= (previous_time + time) / 2:
            yield previous
            instant += 1
        previous_time, previous = time, frame
    # Containers round times (Matroska to 1 ms), so less than a tenth of an output frame at the end is dropped.
    total = max(1, math.ceil((previous_time + step) * fps - Fraction(1, 10)))
    for _ in range(instant, total):
        yield previous


def _convert_frames(frames: Iterator[Any], path: Path) -> list[np.ndarray]:
    """Convert frames to RGB arrays `[H, W, 3]` of the first frame's size; a repeated frame is converted once."""
    pixels: list[np.ndarray] = []
    previous, size = None, None
    for frame in frames:
        if frame is not previous:
            size = size or (frame.width, frame.height)
            image, previous = to_rgb(frame, size, path), frame
        pixels.append(image)
    return pixels


def _encode_video(path: Path, frames_FHWC: np.ndarray, rate: Fraction, crf: int) -> None:
    height, width = frames_FHWC.shape[1:3]
    # 4:2:0 subsampling halves the chroma planes: it needs even sizes, and blurs whole objects in small videos.
    subsampled = height % 2 == 0 and width % 2 == 0 and min(height, width) >= _MIN_SUBSAMPLED_SIDE
    pixel_format = "yuv420p" if subsampled else "yuv444p"
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = 1 / rate
        # Tag the matrix and range of the conversion below: untagged files are read as BT.601 by some players and as
        # BT.709 by others.
        stream.codec_context.colorspace = _H273_BT709
        stream.codec_context.color_primaries = ColorPrimaries.BT709
        stream.codec_context.color_trc = ColorTrc.BT709
        stream.codec_context.color_range = ColorRange.MPEG
        for index, pixels in enumerate(frames_FHWC):
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = rgb.reformat(
                format=pixel_format,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=EXACT_SCALING,
            )
            frame.color_primaries, frame.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            frame.pts, frame.time_base = index, 1 / rate
            frame.duration = 1  # otherwise the muxer guesses the duration of the last frame
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _to_rational_rate(fps: float | Fraction) -> Fraction:
    if not math.isfinite(fps) or fps <= 0:
        raise InputError("fps must be positive", code="out-of-range", got=fps, expected="such as 16 or 24000/1001")
    rate = Fraction(fps)
    if isinstance(fps, float):
        ntsc = next((r for r in _NTSC_RATES if abs(fps - r) < 0.005), None)
        rate = ntsc or rate.limit_denominator(1001)
    if rate <= 0 or max(rate.numerator, rate.denominator) > _MAX_RATE_TERM:
        raise InputError("fps is out of range", code="out-of-range", got=fps, expected="a fraction of 32-bit integers")
    return rate
