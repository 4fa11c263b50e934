"""Samples and batches of edits.

A sample can also be a question about a video or an image, on which the MLLM is trained: the instruction then is the
question, and there is no target. Shape suffixes: F frames, H height, W width, R reference images, B samples, C = 3
colours. Samples hold uint8 pixels, batches float32 in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiwi.encoded import LatentDistribution, Pixels, Size, TaskKind, VisionFeatures
from kiwi.media.video import to_uint8


@dataclass(frozen=True)
class EditSample:
    """One edit or question, decoded and resized to its bucket's size."""

    id: str
    task: TaskKind
    instruction: str
    size: Size
    """Number of frames, height and width of source and target."""
    source_FHWC: Pixels
    """Zero frames if a cache holds the source's posterior and features."""
    target_FHWC: Pixels
    """Zero frames if there is no target, or if a cache holds its posterior."""
    reference_images: tuple[Pixels, ...]
    """Reference images at their original sizes, (H, W, 3), for the MLLM."""
    references_RHWC: Pixels
    """Reference images letterboxed to the video's size, for the VAE."""
    source_posterior: LatentDistribution | None = None
    target_posterior: LatentDistribution | None = None
    source_features: VisionFeatures | None = None
    reference_features: tuple[VisionFeatures, ...] | None = None
    """This field and the three above it are read from a cache; they are None without one."""
    category: str = "none"
    """Category of the edit, or task of the question."""
    answer: str = ""
    """Answer to the question; empty for edits."""
    caption: str = ""
    """Description of the target video, if known."""
    mask_FHW: NDArray[np.bool_] | None = None
    """Pixels that the edit may change, if known; only `EditDataset.decode` reads them."""


@dataclass
class EditBatch:
    """A batch of edits or questions of one task kind and one size."""

    ids: list[str]
    task: TaskKind
    instructions: list[str]
    size: Size
    """Number of frames, height and width of sources and targets."""
    source_frames: list[Pixels | VisionFeatures]
    """The MLLM's input for each source: uint8 frames, or their vision features."""
    reference_images: list[tuple[Pixels | VisionFeatures, ...]]
    source_BCFHW: Tensor
    """Zero frames if a cache holds the sources' posteriors and features."""
    target_BCFHW: Tensor
    """Zero frames if there are no targets, or if a cache holds their posteriors."""
    references_BRCHW: Tensor
    source_posterior: LatentDistribution | None = None
    target_posterior: LatentDistribution | None = None
    """The VAE's posteriors of sources and targets from a cache, or None without one."""
    categories: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    source_dropped: list[int] = field(default_factory=list)
    """Indices of samples whose source is dropped although `source_posterior` still describes it."""


def collate(samples: Sequence[EditSample]) -> EditBatch:
    """Stack samples of one task kind and size."""
    first = samples[0]
    assert all(s.task == first.task and s.size == first.size for s in samples)
    return EditBatch(
        ids=[s.id for s in samples],
        task=first.task,
        instructions=[s.instruction for s in samples],
        size=first.size,
        source_frames=[s.source_FHWC if s.source_features is None else s.source_features for s in samples],
        reference_images=[
            s.reference_images if s.reference_features is None else s.reference_features for s in samples
        ],
        source_BCFHW=to_video_tensor(np.stack([s.source_FHWC for s in samples])),
        target_BCFHW=to_video_tensor(np.stack([s.target_FHWC for s in samples])),
        references_BRCHW=to_video_tensor(np.stack([s.references_RHWC for s in samples])).transpose(1, 2),
        source_posterior=LatentDistribution.stack([s.source_posterior for s in samples]),
        target_posterior=LatentDistribution.stack([s.target_posterior for s in samples]),
        categories=[s.category for s in samples],
        answers=[s.answer for s in samples],
        captions=[s.caption for s in samples],
    )


def to_video_tensor(pixels_BFHWC: Pixels) -> Tensor:
    """Convert uint8 (B, F, H, W, C) to float32 (B, C, F, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels_BFHWC).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def to_pixels(video_CFHW: Tensor) -> Pixels:
    """Convert one video (C, F, H, W) in [-1, 1] to uint8 (F, H, W, C), rounded to the nearest level."""
    return to_uint8(video_CFHW.permute(1, 2, 3, 0).float().cpu().numpy())
