"""Condition dropout: edits with a condition replaced by an empty one, so that the model also learns to work without it.

An empty condition is the same for every model: an empty instruction, a grey video, a white image. Guidance compares
an edit with the same edit without a condition, and must use these too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kiwi.data.sample import EditBatch
from kiwi.encoded import Pixels, Size, VisionFeatures
from kiwi.errors import SpecError
from kiwi.keyed import uniform
from kiwi.spec import Spec

GREY, WHITE = 128, 255
"""Levels of empty frames and images as the MLLM reads them; the VAE reads 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class ConditionDropout(Spec):
    """The probability with which each condition of a training sample is dropped, independently of the others.

    Args:
        instruction, source, reference: probabilities in [0, 1].
    """

    instruction: float = 0.0
    source: float = 0.0
    reference: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= p <= 1 for p in (self.instruction, self.source, self.reference)):
            raise SpecError("probabilities of condition dropout must be in [0, 1]", code="out-of-range", got=self)

    def apply(self, batch: EditBatch, *where: str | int) -> EditBatch:
        """The batch for a training step; what is dropped is a function of (where, condition, sample id)."""

        def dropped(condition: str, probability: float) -> list[bool]:
            return [uniform(*where, "drop", condition, name) < probability for name in batch.ids]

        return drop_conditions(
            batch,
            instruction=dropped("instruction", self.instruction),
            source=dropped("source", self.source),
            reference=dropped("reference", self.reference),
        )


def drop_conditions(
    batch: EditBatch, *, instruction: Sequence[bool], source: Sequence[bool], reference: Sequence[bool]
) -> EditBatch:
    """A batch in which conditions of some samples are empty; all else is shared with `batch`, which is not changed.

    Args:
        batch: the edits.
        instruction, source, reference: whether to drop the condition of each sample.
    """
    sources, references = batch.source_BCFHW, batch.references_BRCHW
    cached = batch.source_latents is not None
    if any(source) and not cached:
        sources = sources.clone()
        sources[np.flatnonzero(source)] = 0.0
    if any(reference):
        references = references.clone()
        references[np.flatnonzero(reference)] = 1.0
    return replace(
        batch,
        instructions=["" if off else text for text, off in zip(batch.instructions, instruction, strict=True)],
        source_frames=[
            _flat(batch.size, GREY) if off else f for f, off in zip(batch.source_frames, source, strict=True)
        ],
        reference_images=[
            tuple(_flat(_size(image), WHITE)[0] for image in images) if off else images
            for images, off in zip(batch.reference_images, reference, strict=True)
        ],
        source_BCFHW=sources,
        references_BRCHW=references,
        # A cache has no latents of an empty source: the training module computes them.
        source_dropped=[index for index, off in enumerate(source) if off and cached],
    )


def _flat(size: Size, level: int) -> Pixels:
    return np.full((*size, 3), level, np.uint8)


def _size(image: Pixels | VisionFeatures) -> Size:
    # Features have the size that the image was read at, which gives as many visual tokens.
    return image.size if isinstance(image, VisionFeatures) else (1, *image.shape[:2])
