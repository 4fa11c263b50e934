"""LitKiwi: one training step of the editor, and a validation that asks whether it reads its source.

B samples, S fixed noise levels; latents (B, C, F, H, W).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from kiwi.checkpoints.folder import foreign, load_initial, owned, save_pretrained
from kiwi.data.datamodule import EditData
from kiwi.data.dropout import ConditionDropout
from kiwi.data.feature_cache import Encoders
from kiwi.data.sample import EditBatch, Latents, Pixels, TaskKind, pixels
from kiwi.errors import InputError
from kiwi.flow.objective import add_noise, velocity_loss, velocity_target
from kiwi.keyed import normal, uniform
from kiwi.models.config import TRAINABLE, KiwiConfig
from kiwi.models.injection import Scaled
from kiwi.models.kiwi import Conditions, KiwiEdit
from kiwi.models.pictures import Seen, Size
from kiwi.models.sampling import EditingDefaults, Sampling, denoise, evaluating, make_noise
from kiwi.models.vae import Posterior
from kiwi.spec import to_dict
from kiwi.training.averaging import AveragingSpec, NoAveraging
from kiwi.training.base import Clips, LitModule
from kiwi.training.optim import AdamW, OptimSpec
from kiwi.training.source_check import HEADLINE, SIGMAS, SourceCheck

log = logging.getLogger(__name__)

BANDS = (0.0, 0.5, 0.75, 0.9, 1.0)
"""Bounds of the bands of noise levels that training losses are told by."""


BLIND_BATCHES = 64
"""Training batches, an epoch at most, that the blind predictors of validation know."""


class LitKiwi(LitModule):
    """Trains the parts of a KiwiEdit by velocity matching.

    All randomness is keyed: the noise and the noise level of a sample are functions of (seed, step, sample id).

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
        targets: whether the target's latents are the mode of the VAE's distribution or a sample of it, new at every
            step; sources, references and validation always take the mode.
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
        targets: Literal["mode", "sample"] = "mode",
        max_pixels: int = 720 * 1280,
        seed: int = 0,
    ) -> None:
        super().__init__(optim, averaging, max_pixels, seed)
        unknown = set(train_parts) - set(TRAINABLE)
        if unknown or not train_parts:
            raise InputError(
                "model.train_parts names parts that cannot be trained",
                got=train_parts,
                wanted=f"some of {TRAINABLE}",
            )
        self.train_parts = tuple(train_parts)
        self.editor = KiwiEdit(config, seed=seed)
        if init is not None:
            load_initial(self.editor, init)
        for part in set(TRAINABLE) - set(train_parts):
            getattr(self.editor, part).requires_grad_(False)
        self.sampling, self.dropout, self.targets = sampling, dropout, targets
        self.check = SourceCheck()
        self.donors: dict[Size, list[_Source]] = {}

    def setup(self, stage: str) -> None:
        """Refuse what other encoders said, before anything is made of it or written."""
        super().setup(stage)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        cache = data.sets["train"].cache if isinstance(data, EditData) else None
        if cache is None:
            return
        own = Encoders(self.editor.vae.fingerprint, self.editor.mllm.sight())
        for name, kept, wanted in zip(("VAE", "MLLM or its limits"), cache.encoders, own, strict=True):
            if kept and kept != wanted:
                raise InputError(
                    f"the cache {cache.folder} is of another {name}",
                    got=f"fingerprint {kept[:12]}",
                    wanted=wanted[:12] or "a trained VAE",
                    fix="make one with this run's configuration: `kiwi cache`",
                )

    # --- one step -------------------------------------------------------------------------------------

    def conditions(self, batch: EditBatch) -> Conditions:
        """Read a batch: features, connectors, latents of source and references."""
        return self.editor.encode(
            batch.task.value,
            batch.frames,
            batch.instructions,
            batch.pictures,
            batch.source_BCFHW,
            batch.references_BRCHW,
            self.source_latents(batch),
        )

    @torch.no_grad()
    def source_latents(self, batch: EditBatch) -> Tensor | None:
        """The sources' latents, where they are cached; a source that says nothing is encoded now."""
        if batch.source_latents is None or not batch.silent:
            return None if batch.source_latents is None else batch.source_latents.mean
        latents = batch.source_latents.mean.clone()
        latents[batch.silent] = self.editor.vae.encode(latents.new_zeros(1, 3, *batch.size))
        return latents

    @torch.no_grad()
    def posterior(self, batch: EditBatch) -> Posterior:
        """What the VAE says about the targets, now or when they were cached."""
        if batch.target_latents is not None:
            return Posterior(*batch.target_latents)
        return self.editor.vae.posterior(batch.target_BCFHW)

    def target_latents(self, batch: EditBatch) -> Tensor:
        """The target's latents for a training step, a sample if that is asked for; keyed as the noise is."""
        posterior = self.posterior(batch)
        if self.targets == "mode":
            return posterior.mode()
        shape = posterior.mean_BCFHW.shape[1:]
        noise = [normal(shape, self.seed, "target", self.global_step, name) for name in batch.ids]
        return posterior.sample(torch.stack(noise).to(posterior.mean_BCFHW))

    def draw(self, ids: list[str], shape: torch.Size, *where: str | int) -> tuple[Tensor, Tensor]:
        """Noise (B, ...) and noise levels (B,) of samples, keyed by (seed, where, id)."""
        noise = torch.stack([normal(shape[1:], self.seed, "noise", *where, name) for name in ids])
        position = torch.tensor([1.0 - uniform(self.seed, "sigma", *where, name) for name in ids], dtype=torch.float32)
        return noise.to(self.device), self.editor.schedule.sigma(position).to(self.device)

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """Weighted velocity loss of a batch."""
        batch = self.dropout.apply(batch, self.seed, self.global_step)
        x0 = self.target_latents(batch)
        noise, sigma_B = self.draw(batch.ids, x0.shape, self.global_step)
        predicted = self.editor(add_noise(x0, noise, sigma_B), sigma_B, self.conditions(batch))
        losses_B = velocity_loss(predicted, velocity_target(x0, noise))
        weights_B = self.editor.schedule.loss_weight(sigma_B.cpu()).to(losses_B)
        loss = (losses_B * weights_B).mean()
        self.require_finite(loss, "the loss")
        self._record(batch.task, torch.stack((sigma_B, losses_B.detach(), weights_B)))
        return loss

    def _record(self, task: TaskKind, seen_3B: Tensor) -> None:
        """Losses over the batch of all processes: as trained on, by kind of task and by band of noise levels."""
        sigma, losses, weights = self.all_gather(seen_3B.float()).movedim(-2, 0).flatten(1)
        self.record("loss", (losses * weights).mean(), batch_size=len(losses), prog_bar=True)
        self.record(f"loss_{task.value}", losses.mean(), batch_size=len(losses))
        for low, high in pairwise(BANDS):
            inside = (sigma > low) & (sigma <= high)
            if inside.any():
                self.record(f"loss_sigma_{low:g}_{high:g}", losses[inside].mean(), batch_size=int(inside.sum()))

    def gauges(self) -> dict[str, float]:
        """gamma(t) as learned so far, at validation's noise levels, where the source is scaled."""
        source = self.editor.source
        if not isinstance(source, Scaled):
            return {}
        with torch.no_grad():
            gammas = source.scale(torch.tensor(SIGMAS, device=self.device))
        return {f"gamma_at_{sigma:g}": float(gamma) for sigma, gamma in zip(SIGMAS, gammas, strict=True)}

    # --- validation -----------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation; the blind predictors learn the training targets once."""
        super().on_validation_epoch_start()
        known = self.check.blind.known
        self.check, self.donors = SourceCheck(), {}
        self.check.blind.known = known
        if not known and self.trainer.datamodule is not None:  # type: ignore[attr-defined]
            data = cast(EditData, self.trainer.datamodule)  # type: ignore[attr-defined]
            for batch in islice(data.fresh_train_dataloader(), BLIND_BATCHES):
                self.check.blind.learn(self.posterior(self.transfer_batch_to_device(batch, self.device, 0)).mode())

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        """Losses at fixed noise levels and noises: with the right source, and with the neighbour's."""
        x0 = self.posterior(batch).mode()
        noises = [self._validation_noise(batch.ids, x0, level) for level in range(len(self.check.sigmas))]
        right_BS = self._losses(batch, x0, noises)
        other = self._swap_sources(batch)
        self.check.add(batch.task.value, x0, right_BS, None if other is None else self._losses(other, x0, noises))

    def on_validation_epoch_end(self) -> None:
        """Log the means over all processes."""
        super().on_validation_epoch_end()
        self.check.gather()
        found = self.check.summary()
        if found and "loss_swapped" not in found:
            log.warning("no two validation samples of one size have different sources: loss_swapped cannot be told")
        for name, value in found.items():
            self.log(f"val/{name}", value, prog_bar=name in HEADLINE, rank_zero_only=True)

    def _losses(self, batch: EditBatch, x0: Tensor, noises: list[Tensor]) -> Tensor:
        """Velocity loss of each sample at each fixed noise level, shape (B, S)."""
        prepared = self.editor.prepare(self.conditions(batch), x0.shape)
        losses = []
        for sigma, noise in zip(self.check.sigmas, noises, strict=True):
            sigma_B = x0.new_full((len(x0),), sigma)
            predicted = self.editor.velocity(add_noise(x0, noise, sigma_B), sigma_B, prepared)
            losses.append(velocity_loss(predicted, velocity_target(x0, noise)))
        return torch.stack(losses, dim=1)

    def _validation_noise(self, ids: list[str], x0: Tensor, level: int) -> Tensor:
        return torch.stack([normal(x0.shape[1:], self.seed, "validation", level, name) for name in ids]).to(x0)

    def _swap_sources(self, batch: EditBatch) -> EditBatch | None:
        """The batch with every sample given a different sample's source; None where none of its size was seen yet."""
        latents = [None] * len(batch.ids) if batch.source_latents is None else map(Latents, *batch.source_latents)
        own = [_Source(*one) for one in zip(batch.frames, batch.source_BCFHW, latents, strict=True)]
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
            frames=[source.frames for source in swapped],
            source_BCFHW=torch.stack([source.pixels_CFHW for source in swapped]),
            source_latents=Latents.stack([source.latents for source in swapped]),
        )

    # --- what the commands and callbacks ask for --------------------------------------------------------

    @property
    def size_multiple(self) -> int:
        return self.editor.size_multiple

    def choices(self) -> dict[str, Any]:
        return {
            "config": to_dict(self.editor.config),
            "dropout": to_dict(self.dropout),
            "targets": self.targets,
            "train_parts": sorted(self.train_parts),
        }

    def is_saved(self, name: str) -> bool:
        return bool(owned(self.editor.config, [name.removeprefix("editor.")]))

    def export(self, folder: Path, max_frames: int, *, self_contained: bool) -> None:
        defaults = EditingDefaults(max_pixels=self.max_pixels, max_frames=max_frames, sampling=self.sampling)
        save_pretrained(self.editor, folder, defaults, self_contained=self_contained)

    def foreign(self, folder: Path) -> list[str]:
        return foreign(folder)

    def preview(self, batch: EditBatch, seed: int) -> Clips:
        """Edit one sample: its reference (if any), source, edit and target."""
        with evaluating(self):
            conditions = self.conditions(batch)
            noise = make_noise(tuple(conditions.source_BCFHW.shape), seed, batch.ids, self.device)
            latents = denoise(self.editor, conditions, noise, self.sampling)
            edited = pixels(self.editor.vae.decode(latents)[0])
        clips = {"source": pixels(batch.source_BCFHW[0]), "edit": edited, "target": pixels(batch.target_BCFHW[0])}
        return {"reference": pixels(batch.references_BRCHW[0].transpose(0, 1)), **clips} if batch.pictures[0] else clips


class _Source(NamedTuple):
    """A validation sample's source, in each form that a batch has it in."""

    frames: Pixels | Seen
    pixels_CFHW: Tensor
    latents: Latents | None

    def is_like(self, other: _Source) -> bool:
        """Whether both are the same clip: by what there is of it."""
        if self.latents is not None and other.latents is not None:
            return torch.equal(self.latents.mean, other.latents.mean)
        return torch.equal(self.pixels_CFHW, other.pixels_CFHW)
