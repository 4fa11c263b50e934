"""Augmentation and condition dropout of training samples, as functions of a key: a resumed run repeats them exactly.

Dropout replaces conditions by empty ones, as classifier-free guidance requires: an empty instruction, a grey video and
a white image. Guidance at inference must use the same ones for its prediction without a condition.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kiwi.data.sample import EditBatch
from kiwi.encoded import Pixels, Size, VisionFeatures
from kiwi.errors import SpecError
from kiwi.keyed import uniform
from kiwi.spec import Spec

GREY, WHITE = 128, 255
"""Pixel levels of empty frames and images as input of the MLLM. The VAE reads the same levels as 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class AugmentationSpec(Spec, ABC):
    """Base class of all augmentation specs; they change the reference images that the VAE encodes."""

    @abstractmethod
    def draw_shrink_factor(self, *key_parts: str | int) -> float:
        """Draw the factor in (0, 1] by which a reference image is shrunk on its white canvas: a function of the key."""


@dataclass(frozen=True, kw_only=True)
class NoAugmentation(AugmentationSpec):
    """No augmentation: reference images are as large as fits, as at inference."""

    def draw_shrink_factor(self, *key_parts: str | int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class ShrinkReferences(AugmentationSpec):
    """Shrink reference images by a factor drawn uniformly from [low, high], as published.

    The size of a reference carries no information, and the model must not rely on it.

    Args:
        low, high: bounds of the factor, in (0, 1].
    """

    low: float = 0.7
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise SpecError("shrink factors must satisfy 0 < low <= high <= 1", code="out-of-range", got=self)

    def draw_shrink_factor(self, *key_parts: str | int) -> float:
        return self.low + (self.high - self.low) * uniform(*key_parts)


@dataclass(frozen=True, kw_only=True)
class ConditionDropout(Spec):
    """The probability with which each condition of a training sample is dropped, independently of the others.

    Args:
        instruction, source, reference: probability of dropping this condition, in [0, 1].
    """

    instruction: float = 0.0
    source: float = 0.0
    reference: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= p <= 1 for p in (self.instruction, self.source, self.reference)):
            raise SpecError("condition dropout needs probabilities in [0, 1]", code="out-of-range", got=self)

    def apply(self, batch: EditBatch, *key_parts: str | int) -> EditBatch:
        """Drop conditions of a training batch: a function of (key_parts, condition, sample id)."""

        def choose(condition: str, probability: float) -> list[bool]:
            return [uniform(*key_parts, "drop", condition, sample_id) < probability for sample_id in batch.ids]

        return drop_conditions(
            batch,
            instruction=choose("instruction", self.instruction),
            source=choose("source", self.source),
            reference=choose("reference", self.reference),
        )


def drop_conditions(
    batch: EditBatch, *, instruction: Sequence[bool], source: Sequence[bool], reference: Sequence[bool]
) -> EditBatch:
    """Copy a batch with conditions of some samples replaced by empty ones; `batch` is not changed.

    Args:
        batch: the batch of edits.
        instruction, source, reference: for each sample, whether to drop this condition.
    """
    sources, references = batch.source_BCFHW, batch.references_BRCHW
    has_cached_source = batch.source_posterior is not None
    if any(source) and not has_cached_source:
        sources = sources.clone()
        sources[np.flatnonzero(source)] = 0.0
    if any(reference):
        references = references.clone()
        references[np.flatnonzero(reference)] = 1.0
    return replace(
        batch,
        instructions=["" if drop else text for text, drop in zip(batch.instructions, instruction, strict=True)],
        source_frames=[
            _make_flat_video(batch.size, GREY) if drop else frames
            for frames, drop in zip(batch.source_frames, source, strict=True)
        ],
        reference_images=[
            tuple(_make_flat_video(_input_size(image), WHITE)[0] for image in images) if drop else images
            for images, drop in zip(batch.reference_images, reference, strict=True)
        ],
        source_BCFHW=sources,
        references_BRCHW=references,
        # A cache has no latents of an empty source video; the training module computes them.
        source_dropped=[index for index, drop in enumerate(source) if drop and has_cached_source],
    )


def _make_flat_video(size: Size, level: int) -> Pixels:
    return np.full((*size, 3), level, np.uint8)


def _input_size(image: Pixels | VisionFeatures) -> Size:
    """The size that the vision tower encoded: an empty image of this size has as many visual tokens."""
    return image.size if isinstance(image, VisionFeatures) else (1, *image.shape[:2])
