"""Editing a batch of samples, as previews and measurements do."""

from __future__ import annotations

from kiwi.data.sample import EditBatch, pixels
from kiwi.encoded import Pixels
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import Sampling, sample_edits


def edit_batch(model: KiwiEdit, batch: EditBatch, sampling: Sampling, seed: int) -> list[Pixels]:
    """The edited videos, uint8 (F, H, W, 3) each; the starting noise is a function of (seed, sample id) alone."""
    return [pixels(video) for video in sample_edits(model, batch, sampling, seed)]
