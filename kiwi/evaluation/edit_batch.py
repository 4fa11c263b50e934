"""Editing a batch of samples at once: what previews, measurements and editors share."""

from __future__ import annotations

import torch

from kiwi.data.sample import EditBatch, pixels
from kiwi.encoded import Pixels
from kiwi.models.kiwi import Conditions, KiwiEdit
from kiwi.models.sampling import Sampling, denoise, eval_mode, make_noise


def read(model: KiwiEdit, batch: EditBatch, source_latents: torch.Tensor | None = None) -> Conditions:
    """A batch's conditions: features, connectors, latents of source and references.

    Args:
        model: the editor.
        batch: on its device.
        source_latents: of the sources, where the VAE has read them before.
    """
    return model.encode(
        batch.task,
        batch.source_frames,
        batch.instructions,
        batch.reference_images,
        batch.source_BCFHW,
        batch.references_BRCHW,
        source_latents,
    )


def edit_batch(model: KiwiEdit, batch: EditBatch, sampling: Sampling, seed: int) -> list[Pixels]:
    """The edited videos, (F, H, W, 3) each; the starting noise is a function of (seed, sample id) alone."""
    with eval_mode(model):
        conditions = read(model, batch)
        noise = make_noise(tuple(conditions.source_BCFHW.shape), seed, batch.ids, batch.source_BCFHW.device)
        latents = denoise(model, conditions, noise, sampling)
        return [pixels(video) for video in model.vae.decode(latents)]
