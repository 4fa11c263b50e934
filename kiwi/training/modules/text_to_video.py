"""LitBase: the text-to-video model that editors start from, trained on captions of the targets (B samples)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from kiwi.checkpoints.folder_config import read_json_or_empty
from kiwi.data.sample import EditBatch, to_pixels
from kiwi.errors import InputError
from kiwi.flow.schedule import FlowSchedule
from kiwi.media.files import atomic_folder
from kiwi.models.sampling import Sampling, denoise, eval_mode, make_noise
from kiwi.models.text_to_video import MODEL_KIND, TextToVideo, TextToVideoConfig
from kiwi.models.vae.wan import VideoVae
from kiwi.spec import to_dict
from kiwi.training.averaging import AveragingSpec, NoAveraging
from kiwi.training.modules.base import Preview
from kiwi.training.modules.flow import LitFlow, VelocityFunction
from kiwi.training.optim import AdamW, OptimSpec


class LitBase(LitFlow):
    """Trains a Wan text-to-video model of any size from scratch, text encoder included.

    The data are edits with captions: items of the sandbox, or manifests with a column `caption`. Their sources and
    references are not used. The exported folder is a `WanBase` for an editor's DiT.

    Validation logs `val/loss`, `val/loss_swapped` (with another sample's caption) and `val/loss_blind`.

    Args:
        config: architecture of the model.
        optim: optimizer and schedule.
        averaging: of the weights; the average is validated, previewed and exported.
        sampling: of previews.
        targets: see LitKiwi.
        seed: of initial weights and all randomness of training.
    """

    def __init__(
        self,
        config: TextToVideoConfig,
        optim: OptimSpec = AdamW(),  # noqa: B008  (frozen)
        averaging: AveragingSpec = NoAveraging(),  # noqa: B008  (frozen)
        sampling: Sampling = Sampling(steps=20),  # noqa: B008  (frozen)
        targets: Literal["mode", "sample"] = "mode",
        seed: int = 0,
    ) -> None:
        super().__init__(optim, averaging, seed, targets)
        self.model = TextToVideo(config, seed=seed)
        self.sampling = sampling

    @property
    def vae(self) -> VideoVae:
        return self.model.vae

    @property
    def schedule(self) -> FlowSchedule:
        return self.model.schedule

    def velocity(self, batch: EditBatch, latent_shape: torch.Size) -> VelocityFunction:
        """Encode a batch's captions, and return the velocity under them.

        Raises:
            InputError: a sample without a caption.
        """
        if missing := [name for name, caption in zip(batch.ids, batch.captions, strict=True) if not caption]:
            raise InputError(
                f"the sample {missing[0]} has no caption",
                code="missing-caption",
                expected="items of the sandbox, or a manifest with a column `caption`",
            )
        prepared = self.model.prepare(self.model.encode(batch.captions), latent_shape)
        return lambda latents, sigma_B: self.model.velocity(latents, sigma_B, prepared)

    def swap_conditions(self, batch: EditBatch) -> EditBatch | None:
        """The batch with the next sample's caption for every sample; None if two neighbours share theirs."""
        captions = batch.captions[1:] + batch.captions[:1]
        is_any_equal = any(before == after for before, after in zip(batch.captions, captions, strict=True))
        return None if is_any_equal else replace(batch, captions=captions)

    # --- for commands and callbacks -------------------------------------------------------------------

    @property
    def size_multiple(self) -> int:
        return self.model.size_multiple

    def resume_config(self) -> dict[str, Any]:
        return {"config": to_dict(self.model.config), "targets": self.targets}

    def is_saved(self, name: str) -> bool:
        return not name.startswith("model.vae.")

    def export(self, folder: Path, *, self_contained: bool) -> None:
        with atomic_folder(folder, self.unexpected_files) as new:
            self.model.save(new)

    def unexpected_files(self, folder: Path) -> list[str]:
        names = sorted(item.name for item in folder.iterdir())
        if read_json_or_empty(folder / "config.json").get("kind") != MODEL_KIND:
            return names
        return [name for name in names if name not in ("config.json", "model.safetensors", "text_encoder")]

    def preview(self, batch: EditBatch, seed: int) -> Preview:
        """A clip generated from a caption, beside one that has the caption."""
        with eval_mode(self):
            latents = self.vae.encode(batch.target_BCFHW)
            noise = make_noise(tuple(latents.shape), seed, batch.ids, self.device)
            generated = denoise(self.model, self.model.encode(batch.captions), noise, self.sampling)
            clip = to_pixels(self.vae.decode(generated)[0])
        return Preview({"generated": clip, "a clip": to_pixels(batch.target_BCFHW[0])}, batch.captions[0])
