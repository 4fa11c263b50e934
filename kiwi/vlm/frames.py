"""Frames of clips, sampled here and not by a provider, so that the same model behind two providers sees the same."""

import hashlib
import io
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from kiwi.errors import InputError
from kiwi.media.image import to_pil
from kiwi.media.resize import fit_size, resize
from kiwi.media.video import probe, read_video
from kiwi.spec import Spec

ImageFormat = Literal["png", "jpeg"]
"""Encoding of images in requests: png is lossless, so that every provider sees the same pixels; jpeg is smaller."""


@dataclass(frozen=True, eq=False)
class SampledClip:
    """Frames of a clip `[F, H, W, 3]` (uint8 RGB) and their times in seconds."""

    frames_FHWC: np.ndarray
    times: tuple[float, ...]

    @cached_property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of pixels, shape and times."""
        text = repr((self.frames_FHWC.shape, self.times)).encode()
        return hashlib.sha256(text + np.ascontiguousarray(self.frames_FHWC).tobytes()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class FrameSampling(Spec):
    """Frames at a constant rate over the whole clip, from its first frame on.

    Args:
        fps: frames per second; lower for clips that would have more than `max_frames`.
        max_frames: maximum number of frames of a clip.
        max_pixels: maximum number of pixels of a frame or reference image, which is scaled down keeping its shape.
    """

    fps: float = 4.0
    max_frames: int = 24
    max_pixels: int = 399_360

    def __post_init__(self) -> None:
        for name in ("fps", "max_frames", "max_pixels"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} of the frame sampling must be positive", code="out-of-range", got=value)

    def __str__(self) -> str:
        return f"{self.fps:g} fps, at most {self.max_frames} frames of {self.max_pixels:,} pixels"

    def sample(self, path: Path) -> SampledClip:
        """Sample a clip's frames, each the nearest in time, with their times in seconds. Raises as `read_video`."""
        info = probe(path)
        duration = info.frames / info.fps
        rate = min(Fraction(self.fps).limit_denominator(1000), info.fps, Fraction(self.max_frames) / duration)
        frames_FHWC = self.shrink(read_video(path, fps=rate, max_frames=self.max_frames).frames_FHWC)
        return SampledClip(frames_FHWC, tuple(float(index / rate) for index in range(len(frames_FHWC))))

    def shrink(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """Scale frames down to at most `max_pixels`."""
        height, width = frames_FHWC.shape[1:3]
        return resize(frames_FHWC, *fit_size(height, width, max_pixels=self.max_pixels, multiple=1))


def encode_image(image_HWC: np.ndarray, image_format: ImageFormat) -> bytes:
    """Encode an image for a request."""
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if image_format == "jpeg" else {"compress_level": 3}
    to_pil(image_HWC).save(buffer, image_format.upper(), **options)
    return buffer.getvalue()
