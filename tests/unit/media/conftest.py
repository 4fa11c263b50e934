"""Tiny videos made with PyAV, whose pixels and timestamps the tests know exactly."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

Encoder = Callable[..., Path]


def numbered_frames(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames `[F, H, W, 3]` of grey level 10 + 7k for frame k, with a white top-left corner."""
    frames = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        frames[index] = 10 + 7 * index
    frames[:, : height // 4, : width // 4] = 255
    return frames


def frame_numbers(frames_FHWC: np.ndarray) -> list[int]:
    """The numbers that `numbered_frames` wrote, read from the centres."""
    height, width = frames_FHWC.shape[1:3]
    centre = frames_FHWC[:, height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2].mean(axis=(1, 2, 3))
    return [round((level - 10) / 7) for level in centre.tolist()]


@pytest.fixture
def encode(tmp_path: Path) -> Encoder:
    """encode(name, frames, ...) -> path: writes a video with the given codec, pixel format, times and tags.

    `times` are in units of 1 / fps, `turn` in clockwise degrees, `matrix` is an ITU-T H.273 code (2: unspecified).
    """

    def write(
        name: str,
        frames_FHWC: np.ndarray,
        *,
        codec: str = "libx264",
        pixel_format: str = "yuv420p",
        fps: Fraction | int = 24,
        times: Sequence[int] | None = None,
        turn: int | None = None,
        mirror: bool = False,
        matrix: int = 2,
        full_range: bool = False,
        codec_options: dict[str, str] | None = None,
        container_options: dict[str, str] | None = None,
        with_audio: bool = False,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options=container_options or {}) as container:
            stream: Any = container.add_stream(codec, rate=fps, options=codec_options or {})
            stream.height, stream.width = frames_FHWC.shape[1:3]
            stream.pix_fmt = pixel_format
            if turn is not None:
                stream.set_display_rotation(-turn, hflip=mirror)
            stream.codec_context.colorspace = matrix
            stream.codec_context.color_range = 2 if full_range else 1  # AVCOL_RANGE_JPEG, _MPEG
            audio: Any = container.add_stream("aac", rate=44100) if with_audio else None
            if audio is not None:
                container.mux(audio.encode(_silence(44100 * 2)))
                container.mux(audio.encode(None))
            for index, pixels in enumerate(frames_FHWC):
                rgb = av.VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.shape[2] == 3 else "rgba")
                options: dict[str, Any] = {}
                if matrix != 2:
                    options = {"dst_colorspace": matrix, "dst_color_range": 2 if full_range else 1}
                elif full_range:
                    options = {"dst_color_range": 2}
                frame = rgb.reformat(format=pixel_format, **options)
                frame.pts = index if times is None else times[index]
                frame.time_base = 1 / Fraction(fps)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture
def audio_only(tmp_path: Path) -> Path:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        container.mux(stream.encode(_silence(4096)))
        container.mux(stream.encode(None))
    return path


def _silence(samples: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 44100, 0
    return frame
