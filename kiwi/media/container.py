"""Opening of video files: which containers are read, which stream is displayed, and by which decoder."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from kiwi.errors import MediaError
from kiwi.media.image import MAX_IMAGE_PIXELS, EncodedMedia, MediaSource, is_acceptable_size
from kiwi.reading import require_file

# Containers that are complete in one file. Playlists (HLS, ffconcat) and patterns of image files are not among them,
# because they name other files, which may lie outside the folder that a manifest may use.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,h264,hevc,av1,obu,m4v,ivf,nut,mxf,yuv4mpegpipe,rm,dv"
)
# ffmpeg's own decoders of these codecs ignore the alpha channel of WebM files.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@contextmanager
def open_video(source: MediaSource) -> Iterator[tuple[Any, Any]]:
    """Open a video and yield its container and stream; errors of ffmpeg in the block are raised as MediaError."""
    try:
        # What is in memory may open no file at all.
        file, protocols = (
            (io.BytesIO(source.data), "none") if isinstance(source, EncodedMedia) else (_require_file(source), "file")
        )
        container = av.open(file, options={"protocol_whitelist": protocols, "format_whitelist": _CONTAINERS})
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(
            f"{source} cannot be opened as a video",
            code="unreadable-video",
            got=describe_error(error),
            expected="an undamaged MP4, MOV, WebM, Matroska, AVI, MPEG or other single-file video",
        ) from None
    try:
        with container:
            stream = _select_stream(container, source)
            stream.thread_type = "AUTO"
            yield container, stream
    except av.error.FFmpegError as error:
        raise MediaError(
            f"{source} is truncated or corrupt",
            code="damaged-video",
            got=describe_error(error),
            fix="get an undamaged copy of it",
        ) from None


def _require_file(path: Path) -> str:
    """The absolute path of a file as text. Raises MediaError if it is missing, or a folder or device."""
    try:
        require_file(path, MediaError, what="video")
    except MediaError as error:
        if error.code == "missing-file":
            raise
        problem = f"{path} cannot be opened as a video"
        got = "a directory" if error.code == "not-a-file" and path.is_dir() else error.got or error.problem
        raise MediaError(problem, code="unreadable-video", got=got, fix=error.fix) from None
    return str(path.resolve())


def _select_stream(container: Any, source: MediaSource) -> Any:
    """The video stream that players display: the one marked as default, or else ffmpeg's choice."""
    # The cover art of an audio file is a video stream too.
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({str(s.type) for s in container.streams})) or "none"
        raise MediaError(f"{source} has no video stream", code="unreadable-video", got=f"streams: {kinds}")
    candidates = [s for s in streams if s.disposition & Disposition.default] or streams
    best = container.streams.best("video")
    stream = best if best in candidates else candidates[0]
    if not is_acceptable_size(stream.width, stream.height):
        problem, got = f"{source} has frames that are too large", f"{stream.width}x{stream.height}"
        expected = f"at most {MAX_IMAGE_PIXELS / 1e6:.0f} megapixels"
        raise MediaError(problem, code="video-too-large", got=got, expected=expected, fix="downscale it first")
    return stream


def make_decoder(stream: Any) -> Any:
    """The decoder of a stream, or one that also decodes the alpha channel if the file declares one."""
    name = _ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) != "1":
        return stream
    decoder = av.CodecContext.create(name, "r")
    if stream.codec_context.extradata:
        decoder.extradata = stream.codec_context.extradata
    return decoder


def describe_error(error: Exception) -> str:
    """The reason that an exception of ffmpeg states."""
    return str(getattr(error, "strerror", None) or error)


def too_large_for_memory(source: MediaSource, width: int, height: int) -> MediaError:
    """The error of a video whose frames could not be allocated."""
    problem = f"{source} has frames that do not fit into memory"
    return MediaError(problem, code="video-too-large", got=f"{width}x{height}", fix="downscale it first")
