"""Clips: videos and images that are decoded, or rendered, when they are needed. No torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from kiwi.media.files import sha256
from kiwi.media.image import read_image
from kiwi.media.video import VideoInfo, probe, read_video


class Clip(Protocol):
    """A video, or an image as a video of one frame."""

    @property
    def path(self) -> Path | None:
        """Its file; None if it does not have one of its own."""

    def info(self) -> VideoInfo:
        """Size, length and frame rate, without decoding the frames of a video."""

    def decode(self, max_frames: int | None = None) -> NDArray[np.uint8]:
        """Decode the first frames: (F, H, W, 3), RGB."""

    def content_hash(self) -> str:
        """A hash that two clips share only if they show the same."""


@dataclass(frozen=True)
class VideoFile:
    """A video file, or an image file as a video of one frame."""

    path: Path

    def info(self) -> VideoInfo:
        return probe(self.path)

    def decode(self, max_frames: int | None = None) -> NDArray[np.uint8]:
        return read_video(self.path, max_frames=max_frames).frames_FHWC

    def content_hash(self) -> str:
        return sha256(self.path)


class ImageFile(VideoFile):
    """An image file, whatever its suffix."""

    def info(self) -> VideoInfo:
        return _image_info(self.decode())

    def decode(self, max_frames: int | None = None) -> NDArray[np.uint8]:
        return read_image(self.path)[None]


@dataclass(frozen=True)
class EncodedImage:
    """An image that a manifest holds in encoded form (PNG, JPEG, ...).

    Args:
        data: the encoded image.
        name: what messages call it.
    """

    data: bytes
    name: str = field(compare=False)
    path: ClassVar[None] = None

    def info(self) -> VideoInfo:
        return _image_info(self.decode())

    def decode(self, max_frames: int | None = None) -> NDArray[np.uint8]:
        return read_image(self.data, name=self.name)[None]

    def content_hash(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def _image_info(frames_FHWC: NDArray[np.uint8]) -> VideoInfo:
    _, height, width, _ = frames_FHWC.shape
    return VideoInfo(
        frames=1, height=height, width=width, fps=Fraction(1), duration=1.0, rotation=0,
        pixel_format="rgb24", codec="image",
    )  # fmt: skip
