"""Decoding of video files to frames in presentation order, with an error for everything that is missing or damaged."""

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any

import av

from kiwi.errors import MediaError
from kiwi.media.container import describe_error, make_decoder, too_large_for_memory
from kiwi.media.image import MediaSource
from kiwi.media.timing import count_announced_frames, read_frame_rate


def decode_frames(container: Any, stream: Any, source: MediaSource) -> Iterator[tuple[Fraction, Any]]:
    """Yield frames in presentation order with their times in seconds after the first one.

    Raises a MediaError at the first damaged frame, and at the end if there are fewer frames than the file announces. A
    transport stream announces no number of frames: gaps are detected by packet counters, a missing end is not.
    """
    announced = count_announced_frames(container, stream)
    step = 1 / read_frame_rate(stream)
    decoder = make_decoder(stream)
    count = repeated = 0
    origin = previous = end = None
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:  # a gap in a transport stream, which has no frame count
                raise _damage_error(source, count, announced, "a part is missing or damaged")
            repeated += packet.size == 0 and packet.dts is not None  # how AVI marks repeated frames
            for frame in decoder.decode(packet):
                if frame.is_corrupt:
                    raise _damage_error(source, count, announced, "a frame is damaged")
                if frame.pts is None:
                    time = Fraction(0) if previous is None else previous + step
                else:
                    absolute = frame.pts * (frame.time_base or stream.time_base)
                    origin = absolute if origin is None else origin
                    time = absolute - origin
                    end = absolute + step
                previous = time if previous is None else max(time, previous)
                count += 1
                yield previous, frame
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise too_large_for_memory(source, stream.width, stream.height) from None
        with suppress(av.error.FFmpegError):  # intact frames that are still in the decoder
            count += sum(not frame.is_corrupt for frame in decoder.decode(None))
        raise _damage_error(source, count, announced, describe_error(error)) from None
    if announced is None:
        announced = _estimate_frames_by_duration(stream, count, end, step)
    if announced is not None and count + repeated < announced:
        raise _damage_error(source, count, announced, "the file ends early")
    if count == 0:
        raise MediaError(f"{source} has no frames", code="damaged-video")


def _damage_error(source: MediaSource, count: int, announced: int | None, reason: str) -> MediaError:
    total = f"of {announced} announced" if announced is not None else "(its header announces no number)"
    return MediaError(
        f"{source} is truncated or corrupt: {count} frames {total} could be decoded ({reason})",
        code="damaged-video",
        fix="get an undamaged copy of it, or read only its intact part with max_frames",
    )


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
