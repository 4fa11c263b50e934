"""Condition dropout: edits of which one condition says nothing, so that a model also learns to go without it.

What says nothing is the same for every model: an empty instruction, a grey video, a white picture. Guidance compares
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
"""Of frames as the MLLM reads them; 0 and 1 for the VAE."""


@dataclass(frozen=True, kw_only=True)
class ConditionDropout(Spec):
    """How often each condition is taken from a training sample, independently of each other.

    Args:
        instruction, source, reference: probabilities in [0, 1].
    """

    instruction: float = 0.0
    source: float = 0.0
    reference: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= p <= 1 for p in (self.instruction, self.source, self.reference)):
            raise SpecError("condition dropout takes probabilities in [0, 1]", got=self)

    def apply(self, batch: EditBatch, *where: str | int) -> EditBatch:
        """The batch as a training step sees it; what is dropped is a function of (where, condition, sample id)."""

        def dropped(condition: str, probability: float) -> list[bool]:
            return [uniform(*where, "drop", condition, name) < probability for name in batch.ids]

        return without(
            batch,
            instruction=dropped("instruction", self.instruction),
            source=dropped("source", self.source),
            reference=dropped("reference", self.reference),
        )


def without(
    batch: EditBatch, *, instruction: Sequence[bool], source: Sequence[bool], reference: Sequence[bool]
) -> EditBatch:
    """A batch in which some samples lack a condition; what is kept is shared with `batch`, nothing is changed in it.

    Args:
        batch: the edits.
        instruction, source, reference: whether each sample goes without.
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
            tuple(_flat(_size(picture), WHITE)[0] for picture in pictures) if off else pictures
            for pictures, off in zip(batch.reference_images, reference, strict=True)
        ],
        source_BCFHW=sources,
        references_BRCHW=references,
        # A cache has no latents of nothing; whoever reads it makes them.
        source_dropped=[index for index, off in enumerate(source) if off and cached],
    )


def _flat(size: Size, level: int) -> Pixels:
    return np.full((*size, 3), level, np.uint8)


def _size(picture: Pixels | VisionFeatures) -> Size:
    # What was seen is as large as it was read: as many visual tokens as the picture itself.
    return picture.size if isinstance(picture, VisionFeatures) else (1, *picture.shape[:2])
