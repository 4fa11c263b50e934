"""LitFlow: what learns a velocity by flow matching, and how its validation asks whether it reads what it is given.

B samples, S fixed noise levels; latents (B, C, F, H, W).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from itertools import islice, pairwise
from typing import Literal, cast

import torch
from torch import Tensor

from kiwi.data.datamodule import EditData
from kiwi.data.sample import EditBatch
from kiwi.encoded import LatentDistribution, TaskKind
from kiwi.errors import InputError
from kiwi.flow.objective import add_noise, velocity_loss, velocity_target
from kiwi.flow.schedule import FlowSchedule
from kiwi.keyed import normal, uniform
from kiwi.models.vae.wan import VideoVae
from kiwi.training.averaging import AveragingSpec
from kiwi.training.modules.base import LitModule
from kiwi.training.optim import OptimSpec
from kiwi.training.source_check import HEADLINE, SourceCheck

log = logging.getLogger(__name__)

Velocity = Callable[[Tensor, Tensor], Tensor]
"""From noisy latents and noise levels (B,) to d x / d sigma."""

BANDS = (0.0, 0.5, 0.75, 0.9, 1.0)
"""Bounds of the bands of noise levels that training losses are told by."""

BLIND_BATCHES = 64
"""Training batches, an epoch at most, that the blind predictors of validation know."""


class LitFlow(LitModule):
    """Trains by velocity matching on the targets of edits.

    All randomness is keyed: the noise and the noise level of a sample are functions of (seed, step, sample id).

    Args:
        optim: optimizer and schedule.
        averaging: of the weights; the average is what is validated, looked at and exported.
        max_pixels: size that the exported model works at.
        seed: of initial weights and all randomness of training.
        targets: whether the target's latents are the mode of the VAE's distribution or a sample of it, new at every
            step; validation always takes the mode.
    """

    def __init__(
        self,
        optim: OptimSpec,
        averaging: AveragingSpec,
        max_pixels: int,
        seed: int,
        targets: Literal["mode", "sample"] = "mode",
    ) -> None:
        super().__init__(optim, averaging, max_pixels, seed)
        self.targets = targets
        self.check = SourceCheck()

    # --- what it learns -------------------------------------------------------------------------------

    @property
    @abstractmethod
    def vae(self) -> VideoVae:
        """Whose latents it works in."""

    @property
    @abstractmethod
    def schedule(self) -> FlowSchedule:
        """Of the noise."""

    @abstractmethod
    def velocity(self, batch: EditBatch, latent_shape: torch.Size) -> Velocity:
        """Read a batch's conditions once, to tell velocities of latents of this shape under them."""

    @abstractmethod
    def swapped(self, batch: EditBatch) -> EditBatch | None:
        """The batch with every sample given another's conditions; None where there is no other."""

    def encoders(self) -> tuple[str, str | None]:
        """Fingerprints of VAE and MLLM, which a cache may stand for; None where nothing of it is read."""
        return self.vae.fingerprint, None

    def emphasis(self, batch: EditBatch, target_BCFHW: Tensor) -> Tensor | None:
        """Weights of the places of a batch's videos in the training loss, with mean 1 over each; none: all alike."""
        return None

    def thinned(self, batch: EditBatch) -> EditBatch:
        """The batch as a training step sees it: conditions may be left out."""
        return batch

    def setup(self, stage: str) -> None:
        """Refuse what other encoders said, before anything is made of it or written."""
        super().setup(stage)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        cache = data.sets["train"].cache if isinstance(data, EditData) else None
        if cache is None:
            return
        for name, kept, wanted in zip(("VAE", "MLLM or its limits"), cache.encoders, self.encoders(), strict=True):
            if kept and kept != wanted and wanted is not None:
                raise InputError(
                    f"the cache {cache.folder} is of another {name}",
                    got=f"fingerprint {kept[:12]}",
                    wanted=wanted[:12] or "a trained VAE",
                    fix="make one with this run's configuration: `kiwi cache`",
                )

    # --- one step -------------------------------------------------------------------------------------

    @torch.no_grad()
    def posterior(self, batch: EditBatch) -> LatentDistribution:
        """What the VAE says about the targets, now or when they were cached."""
        if batch.target_latents is not None:
            return LatentDistribution(*batch.target_latents)
        return self.vae.posterior(batch.target_BCFHW)

    def target_latents(self, batch: EditBatch) -> Tensor:
        """The target's latents for a training step, a sample if that is asked for; keyed as the noise is."""
        posterior = self.posterior(batch)
        if self.targets == "mode":
            return posterior.mode()
        shape = posterior.mean.shape[1:]
        noise = [normal(shape, self.seed, "target", self.global_step, name) for name in batch.ids]
        return posterior.sample(torch.stack(noise).to(posterior.mean))

    def draw(self, ids: list[str], shape: torch.Size, *where: str | int) -> tuple[Tensor, Tensor]:
        """Noise (B, ...) and noise levels (B,) of samples, keyed by (seed, where, id)."""
        noise = torch.stack([normal(shape[1:], self.seed, "noise", *where, name) for name in ids])
        position = torch.tensor([1.0 - uniform(self.seed, "sigma", *where, name) for name in ids], dtype=torch.float32)
        return noise.to(self.device), self.schedule.sigma(position).to(self.device)

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """Weighted velocity loss of a batch."""
        batch = self.thinned(batch)
        x0 = self.target_latents(batch)
        noise, sigma_B = self.draw(batch.ids, x0.shape, self.global_step)
        predicted = self.velocity(batch, x0.shape)(add_noise(x0, noise, sigma_B), sigma_B)
        losses_B = velocity_loss(predicted, velocity_target(x0, noise), self.emphasis(batch, x0))
        weights_B = self.schedule.loss_weight(sigma_B.cpu()).to(losses_B)
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

    # --- validation -----------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation; the blind predictors learn the training targets once."""
        super().on_validation_epoch_start()
        known = self.check.blind.known
        self.check = SourceCheck()
        self.check.blind.known = known
        if not known and self.trainer.datamodule is not None:  # type: ignore[attr-defined]
            data = cast(EditData, self.trainer.datamodule)  # type: ignore[attr-defined]
            for batch in islice(data.fresh_train_dataloader(), BLIND_BATCHES):
                self.check.blind.learn(self.posterior(self.transfer_batch_to_device(batch, self.device, 0)).mode())

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        """Losses at fixed noise levels and noises: with the right conditions, and with another sample's."""
        x0 = self.posterior(batch).mode()
        noises = [self._validation_noise(batch.ids, x0, level) for level in range(len(self.check.sigmas))]
        right_BS = self._losses(batch, x0, noises)
        other = self.swapped(batch)
        self.check.add(batch.task.value, x0, right_BS, None if other is None else self._losses(other, x0, noises))

    def on_validation_epoch_end(self) -> None:
        """Log the means over all processes."""
        super().on_validation_epoch_end()
        self.check.gather()
        found = self.check.summary()
        if found and "loss_swapped" not in found:
            log.warning("no two validation samples of one size have different conditions: loss_swapped cannot be told")
        for name, value in found.items():
            self.log(f"val/{name}", value, prog_bar=name in HEADLINE, rank_zero_only=True)

    def _losses(self, batch: EditBatch, x0: Tensor, noises: list[Tensor]) -> Tensor:
        """Velocity loss of each sample at each fixed noise level, shape (B, S)."""
        velocity, losses = self.velocity(batch, x0.shape), []
        for sigma, noise in zip(self.check.sigmas, noises, strict=True):
            sigma_B = x0.new_full((len(x0),), sigma)
            losses.append(velocity_loss(velocity(add_noise(x0, noise, sigma_B), sigma_B), velocity_target(x0, noise)))
        return torch.stack(losses, dim=1)

    def _validation_noise(self, ids: list[str], x0: Tensor, level: int) -> Tensor:
        return torch.stack([normal(x0.shape[1:], self.seed, "validation", level, name) for name in ids]).to(x0)
