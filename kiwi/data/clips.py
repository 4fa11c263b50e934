"""Clips: videos and images that are decoded or rendered on demand. This module does not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from kiwi.media.files import sha256
from kiwi.media.image import EncodedMedia, read_image
from kiwi.media.video import VideoInfo, probe, read_video


class Clip(Protocol):
    """A video, or an image as a video of one frame."""

    @property
    def path(self) -> Path | None:
        """Path of the clip's file; None for a clip that is not a file of its own."""

    def read_info(self) -> VideoInfo:
        """Read size, length and frame rate, without decoding a whole video."""

    def decode(self, max_frames: int | None = None) -> NDArray[np.uint8]:
        """Decode all frames, or the first `max_frames`: (F, H, W, 3), RGB."""

    def hash_content(self) -> str:
        """Hash the content; hashes are equal only for equal clips."""


@dataclass(frozen=True)
class VideoFile:
    """A video file, or an image file as a video of one frame."""

    path: Path

    def read_info(self) -> VideoInfo:
        return probe(self.path)

    def decode(self, max_frames: int | None = None) -> NDArray[np.uint8]:
        return read_video(self.path, max_frames=max_frames).frames_FHWC

    def hash_content(self) -> str:
        return sha256(self.path)


class ImageFile(VideoFile):
    """An image file of any suffix."""

    def read_info(self) -> VideoInfo:
        return _make_image_info(self.decode())

    def decode(self, max_frames: int | None = None) -> NDArray[np.uint8]:
        return read_image(self.path)[None]


@dataclass(frozen=True)
class EncodedVideo:
    """An encoded video (MP4, ...) or image, as a video of one frame, that is stored inside a manifest."""

    media: EncodedMedia
    path: ClassVar[None] = None

    def read_info(self) -> VideoInfo:
        return probe(self.media)

    def decode(self, max_frames: int | None = None) -> NDArray[np.uint8]:
        return read_video(self.media, max_frames=max_frames).frames_FHWC

    def hash_content(self) -> str:
        return self.media.content_hash


class EncodedImage(EncodedVideo):
    """An encoded image (PNG, JPEG, ...) that is stored inside a manifest."""

    def read_info(self) -> VideoInfo:
        return _make_image_info(self.decode())

    def decode(self, max_frames: int | None = None) -> NDArray[np.uint8]:
        return read_image(self.media)[None]


def _make_image_info(frames_FHWC: NDArray[np.uint8]) -> VideoInfo:
    _, height, width, _ = frames_FHWC.shape
    return VideoInfo(height=height, width=width)
