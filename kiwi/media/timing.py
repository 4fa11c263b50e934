"""Frame rates, durations and numbers of frames, from the timestamps of a video rather than from its header alone."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Any, TypeVar

import av

from kiwi.errors import InputError, MediaError
from kiwi.media.image import MediaSource

# Exact rates for the decimals 23.976 (or 23.98), 29.97 and so on, with which timestamps would drift.
_NTSC_RATES = tuple(Fraction(nominal * 1000, 1001) for nominal in (24, 30, 48, 60, 120))
_MAX_RATE_TERM = 2**31 - 1  # ffmpeg stores rates as two 32-bit integers
# A variable rate becomes a constant one of at most this many frames per second.
_MAX_RATE = 120
# Timestamps with a longer gap between two frames (in seconds) are treated as damaged.
_MAX_GAP = 600
# Bitstreams without a container: their rate is stated by the codec only.
_ELEMENTARY_STREAMS = ("h264", "hevc", "mpegvideo", "m4v")

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """The constant frame rate at which a video is read, and the number of frames at that rate.

    `is_variable` says that the distances between frames differ, so that frames are repeated or skipped.
    """

    fps: Fraction
    frames: int
    is_variable: bool


def scan_timing(container: Any, stream: Any) -> Timing:
    """Read the timestamps of all packets, without decoding.

    The rate in the header is used if the timestamps agree with it. The rate is computed from the timestamps if the
    usual distance between frames differs from that in the header, or if a variable rate is often faster.
    """
    nominal = read_frame_rate(stream)
    announced = count_announced_frames(container, stream)
    times, count = [], 0
    with suppress(av.error.FFmpegError):  # decoding reports damage
        for packet in container.demux(stream):
            if packet.size == 0 and packet.dts is None:
                continue  # the end of the stream
            count += packet.size > 0 and not packet.is_discard
            if packet.pts is not None and not packet.is_discard:
                times.append(packet.pts * packet.time_base)
    if len(times) < max(2, count):  # some frames have no timestamp
        return Timing(nominal, announced or count, False)
    times.sort()
    gaps = sorted(after - before for before, after in pairwise(times) if after > before)
    usual = gaps[len(gaps) // 2] if gaps else 1 / nominal
    # VP8 stores hidden frames as packets with almost the time of the next one.
    is_variable = any(gap > 1.5 * usual or 0.1 * usual < gap < 0.5 * usual for gap in gaps)
    if is_variable:
        usual = gaps[len(gaps) // 10]  # no frame of the fast parts is skipped
    # The container rounds timestamps to units of time_base, and rates that differ by less than 2% are taken as equal.
    is_nominal = abs(usual - 1 / nominal) <= max(stream.time_base * 1.01, usual / 50)
    fps = nominal if is_nominal else min(to_rational_rate(float(1 / usual)), Fraction(_MAX_RATE))
    return Timing(fps, count_instants(times[-1] - times[0] + 1 / fps, fps), is_variable)


def count_instants(duration: Fraction, fps: Fraction) -> int:
    """The number of frames of a constant rate that fill `duration` seconds, at least 1.

    Containers round times (Matroska to 1 ms), so less than a tenth of a frame at the end is dropped.
    """
    return max(1, ceil(duration * fps - Fraction(1, 10)))


def resample(
    frames: Iterable[tuple[Fraction, T]],
    fps: Fraction,
    timing: Timing,
    source: MediaSource,
    last: Fraction | None = None,
) -> Iterator[T]:
    """For each time k / fps, yield the frame that is displayed then.

    A frame counts as displayed from half a usual step before its time, which evens out small irregularities of
    timestamps. At a constant rate, this selects the frame nearest in time (the earlier of two that are equally near).

    Args:
        frames: times in seconds after the first frame, and frames, in order.
        fps: constant rate of the result.
        timing: timing of the frames.
        source: video that an error names.
        last: how long the last frame is displayed, in seconds; by default one usual step.

    Raises:
        MediaError: two frames are more than ten minutes apart.
    """
    iterator = iter(frames)
    step = 1 / timing.fps
    instant = 0
    previous_time, previous = next(iterator)
    for time, frame in iterator:
        if time - previous_time > _MAX_GAP:
            problem = f"{source} has damaged timestamps: two frames are {float(time - previous_time):.0f} seconds apart"
            raise MediaError(problem, code="damaged-video", fix="re-encode it, or cut it into clips")
        while instant / fps + step / 2 <= time:
            yield previous
            instant += 1
        previous_time, previous = time, frame
    for _ in range(instant, count_instants(previous_time + (last or step), fps)):
        yield previous


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


def read_frame_rate(stream: Any) -> Fraction:
    """Read the number of frames per second; 1 for a file without a rate, such as a single image."""
    average, guessed = stream.average_rate, stream.guessed_rate
    if stream.container.format.name in _ELEMENTARY_STREAMS:
        average, guessed = guessed, average  # ffmpeg sets their average to 25, whatever the codec says
    return Fraction(average or guessed or 1)


def to_rational_rate(fps: float | Fraction) -> Fraction:
    """The exact rate that a number of frames per second stands for: 23.976 becomes 24000/1001.

    Raises:
        InputError: a rate that is not positive or not a fraction of 32-bit integers.
    """
    if not 0 < fps < float("inf"):
        raise InputError("fps must be positive", code="out-of-range", got=fps, expected="such as 16 or 24000/1001")
    rate = Fraction(fps)
    if isinstance(fps, float):
        ntsc = next((r for r in _NTSC_RATES if abs(fps - r) < 0.005), None)
        rate = ntsc or rate.limit_denominator(1001)
    if rate <= 0 or max(rate.numerator, rate.denominator) > _MAX_RATE_TERM:
        raise InputError("fps is out of range", code="out-of-range", got=fps, expected="a fraction of 32-bit integers")
    return rate
