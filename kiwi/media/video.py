"""Videos: probing, exact decoding to RGB frames, and encoding, with PyAV (ffmpeg's libraries).

A truncated clip is never accepted silently: fewer frames than its header announces are an error with both numbers.

Shape suffixes: F frames, H height, W width, C channels (3, RGB). Pixels are uint8 RGB, full range.
"""

import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from kiwi.errors import InputError, MediaError
from kiwi.media.container import open_video
from kiwi.media.decoding import decode_frames
from kiwi.media.display import (
    EXACT_SCALING,
    displayed_size,
    pixel_aspect_ratio,
    read_orientation,
    to_rgb,
    warn_of_unusual_frames,
    warn_once,
)
from kiwi.media.files import atomic_path
from kiwi.media.image import (
    EncodedMedia,
    MediaSource,
    count_animation_frames,
    read_animation,
    read_image,
    require_rgb,
)
from kiwi.media.timing import Timing, count_instants, resample, scan_timing, to_rational_rate

_H273_BT709 = 1
# swscale computes chroma samples centred between pixels, and files that do not say so are read as left-sited.
_CENTRED_CHROMA = ":chromaloc=1"
# With x264's macroblock tree, one video in some hundred small ones is encoded differently from run to run.
_REPRODUCIBLE = "mbtree=0"
# Videos whose short side is below this have chroma planes of full size, which fewer players support.
_MIN_SUBSAMPLED_SIDE = 128


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """The properties of a video; the defaults are those of an image, which is a video of one frame.

    Args:
        frames: number of frames that `read_video` returns.
        height, width: size as displayed, with square pixels and after rotation.
        fps: constant number of frames per second.
        rotation: clockwise rotation for display in degrees (0, 90, 180, 270).
        pixel_format: ffmpeg's name of the stored pixel format.
    """

    frames: int = 1
    height: int
    width: int
    fps: Fraction = Fraction(1)
    rotation: int = 0
    pixel_format: str = "rgb24"


def list_differences(first: VideoInfo, second: VideoInfo) -> list[str]:
    """List in which properties two videos differ whose frames are compared by number: length, frame rate, size.

    Frame rates that differ by at most 1%, such as 30 and 29.97, count as equal.
    """
    is_different = {
        "length": first.frames != second.frames,
        "frame rate": abs(first.fps / second.fps - 1) > Fraction(1, 100),
        "size": (first.height, first.width) != (second.height, second.width),
    }
    return [name for name, differs in is_different.items() if differs]


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


def probe(source: MediaSource | str) -> VideoInfo:
    """Read the properties of a video from its timestamps and first frame; an image is a video of one frame at 1 fps.

    Raises:
        MediaError: the file does not exist, is not a video or has no frames.
    """
    source = Path(source) if isinstance(source, str) else source
    image_frames = _count_images(source)
    if image_frames == 1:
        height, width, _ = read_image(source).shape
        return VideoInfo(height=height, width=width)
    if image_frames is not None:
        frames = [(pixels.shape, duration) for _, pixels, duration in read_animation(source)]
        height, width, _ = frames[0][0]
        timing = _time_animation([duration for _, duration in frames])
        return VideoInfo(frames=timing.frames, height=height, width=width, fps=timing.fps)
    with open_video(source) as (container, stream):
        timing = scan_timing(container, stream)
    with open_video(source) as (container, stream):
        _, first = next(decode_frames(container, stream, source))
        height, width = displayed_size(first, pixel_aspect_ratio(stream))
        return VideoInfo(
            frames=timing.frames,
            height=height,
            width=width,
            fps=timing.fps,
            rotation=read_orientation(first).rotation,
            pixel_format=first.format.name,
        )


def read_video(
    source: MediaSource | str, *, max_frames: int | None = None, start: int = 0, fps: float | Fraction | None = None
) -> Video:
    """Decode a video (or an image, as one frame at 1 fps) to RGB frames in presentation order, as displayed.

    The default video stream is read; rotation and the shape of the pixels are applied, transparency is composited on
    white, and the file's colour matrix, range and chroma siting are applied (untagged files are read as BT.601 limited
    range, as ffmpeg does). The result has a constant rate, `fps` or the rate of the file: each frame is the one nearest
    in time, so a variable rate keeps its duration. `start` and `max_frames` select from the result; nothing after the
    last selected frame is decoded.

    Raises:
        InputError: `max_frames` or `fps` is not positive, or `start` is negative or beyond the end.
        MediaError: the file does not exist, is not a video, has no frames, or is truncated or damaged (the message has
            the number of frames that could be decoded).
    """
    source = Path(source) if isinstance(source, str) else source
    if max_frames is not None and max_frames < 1:
        raise InputError("max_frames must be at least 1", code="out-of-range", got=max_frames)
    if start < 0:
        raise InputError("start must not be negative", code="out-of-range", got=start)
    rate = None if fps is None else to_rational_rate(fps)
    selection = slice(start, None if max_frames is None else start + max_frames)
    image_frames = _count_images(source)
    if image_frames == 1:
        pixels, rate = [read_image(source)][selection], Fraction(1)
    elif image_frames is not None:
        pixels, rate = _read_animation(source, rate, selection)
    else:
        pixels, rate = _read_container(source, rate, selection)
    if not pixels:
        expected = "start below its number of frames"
        raise InputError(f"{source} has no frame {start}", code="out-of-range", expected=expected)
    return Video(np.stack(pixels), rate)


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
    rate = to_rational_rate(fps)
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


def _count_images(source: MediaSource) -> int | None:
    """The number of frames of an image or animated image; None for a video."""
    if isinstance(source, EncodedMedia):
        return count_animation_frames(source)
    is_file = os.path.isfile(source)  # noqa: PTH113 (Path.is_file raises for names that are too long)
    return count_animation_frames(source) if is_file else None


def _time_animation(durations: Sequence[Fraction]) -> Timing:
    fps = to_rational_rate(float(1 / statistics.median_low(durations)))
    return Timing(fps, count_instants(sum(durations, Fraction(0)), fps), len(set(durations)) > 1)


def _read_animation(source: MediaSource, rate: Fraction | None, selection: slice) -> tuple[list[np.ndarray], Fraction]:
    frames = list(read_animation(source))
    timing = _time_animation([duration for _, _, duration in frames])
    _warn_of_variable_rate(source, timing, rate)
    rate = rate or timing.fps
    timed = ((time, pixels) for time, pixels, _ in frames)
    sampled = resample(timed, rate, timing, source, last=frames[-1][2])
    return list(islice(sampled, selection.start, selection.stop)), rate


def _read_container(source: MediaSource, rate: Fraction | None, selection: slice) -> tuple[list[np.ndarray], Fraction]:
    with open_video(source) as (container, stream):
        timing = scan_timing(container, stream)
    _warn_of_variable_rate(source, timing, rate)
    rate = rate or timing.fps
    with open_video(source) as (container, stream):
        aspect = pixel_aspect_ratio(stream)
        sampled = resample(decode_frames(container, stream, source), rate, timing, source)
        return _convert_frames(islice(sampled, selection.start, selection.stop), aspect, source), rate


def _warn_of_variable_rate(source: MediaSource, timing: Timing, rate: Fraction | None) -> None:
    if timing.is_variable and rate is None:
        warn_once(
            f"{source} has a variable frame rate; it is read at a constant {float(timing.fps):g} frames per second "
            f"({timing.frames} frames, {float(timing.frames / timing.fps):.2f} seconds)"
        )


def _convert_frames(frames: Iterator[Any], pixel_aspect: Fraction, source: MediaSource) -> list[np.ndarray]:
    """Convert frames to RGB arrays `[H, W, 3]` of the first frame's size; a repeated frame is converted once."""
    pixels: list[np.ndarray] = []
    previous, size = None, None
    for frame in frames:
        if frame is not previous:
            if size is None:
                size = (frame.width, frame.height)
                warn_of_unusual_frames(frame, source)
            image, previous = to_rgb(frame, size, pixel_aspect, source), frame
        pixels.append(image)
    return pixels


def _encode_video(path: Path, frames_FHWC: np.ndarray, rate: Fraction, crf: int) -> None:
    height, width = frames_FHWC.shape[1:3]
    # 4:2:0 subsampling halves the chroma planes: it needs even sizes, and blurs whole objects in small videos.
    subsampled = height % 2 == 0 and width % 2 == 0 and min(height, width) >= _MIN_SUBSAMPLED_SIDE
    pixel_format = "yuv420p" if subsampled else "yuv444p"
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        x264_params = _REPRODUCIBLE + (_CENTRED_CHROMA if subsampled else "")
        options = {"crf": str(crf), "x264-params": x264_params}
        stream: Any = container.add_stream("libx264", rate=rate, options=options)
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
