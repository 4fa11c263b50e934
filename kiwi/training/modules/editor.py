"""LitKiwi: the editor, trained by flow matching; validation asks whether it reads its source (B samples)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kiwi.checkpoints.folder import load_initial_weights, names_to_save, save_pretrained
from kiwi.checkpoints.folder_config import unexpected_files
from kiwi.data.datamodule import EditData
from kiwi.data.dropout import ConditionDropout
from kiwi.data.sample import EditBatch, pixels
from kiwi.data.sandbox import SandboxEdits
from kiwi.encoded import LatentDistribution, Pixels, Size, VisionFeatures
from kiwi.errors import InputError
from kiwi.evaluation.edit_batch import edit_batch
from kiwi.flow.schedule import FlowSchedule
from kiwi.models.config import TRAINABLE, KiwiConfig
from kiwi.models.injection import Scaled
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import EditingDefaults, Sampling
from kiwi.models.vae.wan import VideoVae
from kiwi.spec import to_dict
from kiwi.training.averaging import AveragingSpec, NoAveraging
from kiwi.training.loss_weighting import EmphasisSpec, Even
from kiwi.training.modules.base import Clips
from kiwi.training.modules.flow import LitFlow, Velocity
from kiwi.training.optim import AdamW, OptimSpec
from kiwi.training.source_check import SIGMAS


class LitKiwi(LitFlow):
    """Trains the parts of a KiwiEdit by velocity matching.

    Args:
        config: the model's choices.
        optim: optimizer and schedule.
        averaging: of the weights; the average is what is validated, looked at and exported.
        train_parts: which parts learn: any of dit, query, latent, source, reference, mllm. DiT and MLLM learn as their
            `tuning` says: in full, by adapters, or not at all (the MLLM's default).
        init: model folder whose weights training starts from, such as an earlier stage's; what it does not hold must be
            of the same pretrained models, or adapters that are new.
        sampling: of previews, and the default of `kiwi edit` for the exported model.
        dropout: how often training takes a condition from a sample.
        emphasis: where in a video the training loss looks.
        targets: whether the target's latents are the mode of the VAE's distribution or a sample of it, new at every
            step; sources, references and validation always take the mode.
        export_dtype: of the editor's own weights in the exported folder; float16 halves it.
        max_pixels: size that the exported model edits at; the command line takes it from the data.
        seed: of initial weights and all randomness of training.
    """

    def __init__(
        self,
        config: KiwiConfig,
        optim: OptimSpec = AdamW(),  # noqa: B008  (frozen)
        averaging: AveragingSpec = NoAveraging(),  # noqa: B008  (frozen)
        train_parts: tuple[str, ...] = TRAINABLE,
        init: str | None = None,
        sampling: Sampling = Sampling(steps=20),  # noqa: B008  (frozen)
        dropout: ConditionDropout = ConditionDropout(),  # noqa: B008  (frozen)
        emphasis: EmphasisSpec = Even(),  # noqa: B008  (frozen)
        targets: Literal["mode", "sample"] = "mode",
        export_dtype: Literal["float32", "float16"] | None = None,
        max_pixels: int = 720 * 1280,
        seed: int = 0,
    ) -> None:
        super().__init__(optim, averaging, max_pixels, seed, targets)
        unknown = set(train_parts) - set(TRAINABLE)
        if unknown or not train_parts:
            raise InputError(
                "model.train_parts names parts that cannot be trained",
                got=train_parts,
                wanted=f"some of {TRAINABLE}",
            )
        self.train_parts = tuple(train_parts)
        self.export_dtype = None if export_dtype is None else getattr(torch, export_dtype)
        self.editor = KiwiEdit(config, seed=seed)
        if init is not None:
            load_initial_weights(self.editor, init)
        for part in set(TRAINABLE) - set(train_parts):
            getattr(self.editor, part).requires_grad_(False)
        self.sampling, self.dropout, self.looking = sampling, dropout, emphasis
        self.donors: dict[Size, list[_Source]] = {}

    def encoders(self) -> tuple[str, str | None]:
        return self.vae.fingerprint, self.editor.mllm.vision_fingerprint()

    # --- one step -------------------------------------------------------------------------------------

    @property
    def vae(self) -> VideoVae:
        return self.editor.vae

    @property
    def schedule(self) -> FlowSchedule:
        return self.editor.schedule

    def velocity(self, batch: EditBatch, latent_shape: torch.Size) -> Velocity:
        """Read a batch's conditions, to tell velocities under them."""
        conditions = self.editor.encode(batch, self.source_latents(batch))
        prepared = self.editor.prepare(conditions, latent_shape)
        return lambda latents, sigma_B: self.editor.velocity(latents, sigma_B, prepared)

    @torch.no_grad()
    def thinned(self, batch: EditBatch) -> EditBatch:
        """The batch with its sources' latents, once for all that reads them, and without what dropout takes."""
        if batch.source_latents is None:
            posterior = self.vae.posterior(batch.source_BCFHW)
            batch = replace(batch, source_latents=LatentDistribution(posterior.mean, posterior.deviation))
        return self.dropout.apply(batch, self.seed, self.global_step)

    def emphasis(self, batch: EditBatch, target_BCFHW: Tensor) -> Tensor:
        assert batch.source_latents is not None
        return self.looking.weights(target_BCFHW, batch.source_latents.mean)

    @torch.no_grad()
    def source_latents(self, batch: EditBatch) -> Tensor | None:
        """The sources' latents, where they are cached; a source that says nothing is encoded now."""
        if batch.source_latents is None or not batch.source_dropped:
            return None if batch.source_latents is None else batch.source_latents.mean
        latents = batch.source_latents.mean.clone()
        latents[batch.source_dropped] = self.editor.vae.encode(latents.new_zeros(1, 3, *batch.size))
        return latents

    def gauges(self) -> dict[str, float]:
        """gamma(t) as learned so far, at validation's noise levels, where the source is scaled."""
        source = self.editor.source
        if not isinstance(source, Scaled):
            return {}
        with torch.no_grad():
            gammas = source.scale(torch.tensor(SIGMAS, device=self.device))
        return {f"gamma_at_{sigma:g}": float(gamma) for sigma, gamma in zip(SIGMAS, gammas, strict=True)}

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation's sources."""
        super().on_validation_epoch_start()
        self.donors = {}

    def swapped(self, batch: EditBatch) -> EditBatch | None:
        """The batch with every sample given a different sample's source; None where none of its size was seen yet."""
        latents = (
            [None] * len(batch.ids) if batch.source_latents is None else map(LatentDistribution, *batch.source_latents)
        )
        own = [_Source(*one) for one in zip(batch.source_frames, batch.source_BCFHW, latents, strict=True)]
        candidates = [*own, *self.donors.get(batch.size, [])]
        self.donors[batch.size] = own
        swapped = []
        for index, source in enumerate(own):
            following = candidates[index + 1 :] + candidates[:index]
            donor = next((other for other in following if not other.is_like(source)), None)
            if donor is None:
                return None
            swapped.append(donor)
        return replace(
            batch,
            source_frames=[source.frames for source in swapped],
            source_BCFHW=torch.stack([source.pixels_CFHW for source in swapped]),
            source_latents=LatentDistribution.stack([source.latents for source in swapped]),
        )

    # --- what the commands and callbacks ask for --------------------------------------------------------

    @property
    def size_multiple(self) -> int:
        return self.editor.size_multiple

    def choices(self) -> dict[str, Any]:
        return {
            "config": to_dict(self.editor.config),
            "dropout": to_dict(self.dropout),
            "emphasis": to_dict(self.looking),
            "targets": self.targets,
            "train_parts": sorted(self.train_parts),
        }

    def is_saved(self, name: str) -> bool:
        return bool(names_to_save(self.editor.config, [name.removeprefix("editor.")]))

    def export(self, folder: Path, max_frames: int, *, self_contained: bool) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rendered = isinstance(data, EditData) and all(isinstance(one, SandboxEdits) for one in data.train)
        defaults = EditingDefaults(
            max_pixels=self.max_pixels,
            max_frames=max_frames,
            sampling=self.sampling,
            domain="sandbox" if rendered else "",
        )
        save_pretrained(self.editor, folder, defaults, self_contained=self_contained, dtype=self.export_dtype)

    def foreign(self, folder: Path) -> list[str]:
        return unexpected_files(folder)

    def preview(self, batch: EditBatch, seed: int) -> Clips:
        """Edit one sample: its reference (if any), source, edit and target."""
        (edited,) = edit_batch(self.editor, batch, self.sampling, seed)
        clips = {"source": pixels(batch.source_BCFHW[0]), "edit": edited, "target": pixels(batch.target_BCFHW[0])}
        return (
            {"reference": pixels(batch.references_BRCHW[0].transpose(0, 1)), **clips}
            if batch.reference_images[0]
            else clips
        )


class _Source(NamedTuple):
    """A validation sample's source, in each form that a batch has it in."""

    frames: Pixels | VisionFeatures
    pixels_CFHW: Tensor
    latents: LatentDistribution | None

    def is_like(self, other: _Source) -> bool:
        """Whether both are the same clip: by what there is of it."""
        if self.latents is not None and other.latents is not None:
            return torch.equal(self.latents.mean, other.latents.mean)
        return torch.equal(self.pixels_CFHW, other.pixels_CFHW)
