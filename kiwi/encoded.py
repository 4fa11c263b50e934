"""Types that `kiwi.data` and `kiwi.models` share, so that neither imports the other.

B samples, C latent channels, F frames, h w latent height and width; L levels of vision features, N visual tokens,
M the MLLM's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
"""uint8 RGB frames (F, H, W, 3), or one image (H, W, 3) where a docstring says so."""

Size = tuple[int, int, int]
"""Number of frames, height and width."""

IMAGE, VIDEO = 1, 2
"""Types of visual tokens in the MLLM's prompt; the type of text is 0."""


class TaskKind(StrEnum):
    """The kind of an edit, which selects the learnable queries and the prompt template."""

    image = "image"
    video = "video"
    reference = "reference"

    @classmethod
    def of(cls, frames: int, references: int) -> TaskKind:
        """The kind of an edit of this many frames with this many reference images."""
        return cls.reference if references else cls.image if frames == 1 else cls.video


class LatentDistribution(NamedTuple):
    """The VAE encoder's posterior: mean and standard deviation of a Gaussian for every normalised latent, in float32.

    Shape (C, F, h, w) of a clip, (B, C, F, h, w) of a batch.
    """

    mean: Tensor
    std: Tensor

    def mode(self) -> Tensor:
        """The most likely latents."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """Draw latents, given standard normal noise of their shape."""
        return self.mean + self.std * noise

    @classmethod
    def stack(cls, clips: Sequence[LatentDistribution | None]) -> LatentDistribution | None:
        """The distribution of a batch from those of its clips, or None if all of them are None."""
        present = [clip for clip in clips if clip is not None]
        assert len(present) in (0, len(clips)), "either all clips of a batch have latents, or none"
        return cls(*(torch.stack(parts) for parts in zip(*present, strict=True))) if present else None


class VisionFeatures(NamedTuple):
    """Output of the MLLM's vision tower for one image or video, which the MLLM accepts instead of pixels."""

    kind: int
    """`IMAGE` or `VIDEO`."""
    size: Size
    """Size of the image or video as input of the vision tower."""
    features_LNM: Tensor


PixelsOrFeatures = Pixels | VisionFeatures
"""An image or video for the MLLM: its pixels, or its vision features from a cache."""
