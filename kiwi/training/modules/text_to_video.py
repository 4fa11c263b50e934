"""LitBase: the text-to-video model that an editor starts from, trained on captions of the targets (B samples)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from kiwi.checkpoints.folder_config import read_json_or_empty
from kiwi.data.sample import EditBatch, pixels
from kiwi.errors import InputError
from kiwi.flow.schedule import FlowSchedule
from kiwi.media.files import atomic_folder
from kiwi.models.sampling import Sampling, denoise, eval_mode, make_noise
from kiwi.models.text_to_video import MODEL_KIND, TextToVideo, TextToVideoConfig
from kiwi.models.vae.wan import VideoVae
from kiwi.spec import to_dict
from kiwi.training.averaging import AveragingSpec, NoAveraging
from kiwi.training.modules.base import Clips
from kiwi.training.modules.flow import LitFlow, Velocity
from kiwi.training.optim import AdamW, OptimSpec


class LitBase(LitFlow):
    """Trains a Wan text-to-video model of any size from nothing, text encoder included.

    Its data are edits of which captions are known: the sandbox's, or manifests with a column `caption`. Of their
    sources and references nothing is read. The folder it exports is a `WanBase` for an editor's DiT.

    Validation tells `val/loss`, `val/loss_swapped` (every sample given another's caption) and `val/loss_blind`.

    Args:
        config: the model's choices.
        optim: optimizer and schedule.
        averaging: of the weights; the average is what is validated, looked at and exported.
        sampling: of previews.
        targets: as of LitKiwi.
        max_pixels: not used by a base; the command line sets it for every module.
        seed: of initial weights and all randomness of training.
    """

    def __init__(
        self,
        config: TextToVideoConfig,
        optim: OptimSpec = AdamW(),  # noqa: B008  (frozen)
        averaging: AveragingSpec = NoAveraging(),  # noqa: B008  (frozen)
        sampling: Sampling = Sampling(steps=20),  # noqa: B008  (frozen)
        targets: Literal["mode", "sample"] = "mode",
        max_pixels: int = 720 * 1280,
        seed: int = 0,
    ) -> None:
        super().__init__(optim, averaging, max_pixels, seed, targets)
        self.model = TextToVideo(config, seed=seed)
        self.sampling = sampling

    @property
    def vae(self) -> VideoVae:
        return self.model.vae

    @property
    def schedule(self) -> FlowSchedule:
        return self.model.schedule

    def velocity(self, batch: EditBatch, latent_shape: torch.Size) -> Velocity:
        """Read a batch's captions, to tell velocities under them.

        Raises:
            InputError: a sample without a caption.
        """
        if missing := [name for name, caption in zip(batch.ids, batch.captions, strict=True) if not caption]:
            raise InputError(
                "a text-to-video model learns from captions",
                got=f"{missing[0]}, without one",
                wanted="items of the sandbox, or a manifest with a column `caption`",
            )
        prepared = self.model.prepare(self.model.encode(batch.captions), latent_shape)
        return lambda latents, sigma_B: self.model.velocity(latents, sigma_B, prepared)

    def swapped(self, batch: EditBatch) -> EditBatch | None:
        """Every sample under the caption of the next one in the batch; None where one has the same."""
        captions = batch.captions[1:] + batch.captions[:1]
        is_like = any(own == other for own, other in zip(batch.captions, captions, strict=True))
        return None if is_like else replace(batch, captions=captions)

    # --- what the commands and callbacks ask for --------------------------------------------------------

    @property
    def size_multiple(self) -> int:
        return self.model.size_multiple

    def choices(self) -> dict[str, Any]:
        return {"config": to_dict(self.model.config), "targets": self.targets}

    def is_saved(self, name: str) -> bool:
        return not name.startswith("model.vae.")

    def export(self, folder: Path, max_frames: int, *, self_contained: bool) -> None:
        with atomic_folder(folder, self.foreign) as new:
            self.model.save(new)

    def foreign(self, folder: Path) -> list[str]:
        """What an earlier export did not write into a folder."""
        names = sorted(item.name for item in folder.iterdir())
        if read_json_or_empty(folder / "config.json").get("kind") != MODEL_KIND:
            return names
        return [name for name in names if name not in ("config.json", "model.safetensors", "text_encoder")]

    def caption(self, batch: EditBatch) -> str:
        return batch.captions[0]

    def preview(self, batch: EditBatch, seed: int) -> Clips:
        """What is made of a caption, beside a clip that it is true of."""
        with eval_mode(self):
            latents = self.vae.encode(batch.target_BCFHW)
            noise = make_noise(tuple(latents.shape), seed, batch.ids, self.device)
            made = denoise(self.model, self.model.encode(batch.captions), noise, self.sampling)
            clip = pixels(self.vae.decode(made)[0])
        return {"generated": clip, "a clip": pixels(batch.target_BCFHW[0])}
