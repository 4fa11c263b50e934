"""LitFlow: modules that learn a velocity by flow matching, and the check that they use their conditions.

B samples, S fixed noise levels; latents (B, C, F, H, W).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from itertools import islice, pairwise
from typing import Literal

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
from kiwi.training.source_check import MEAN_LOSSES, SourceCheck

log = logging.getLogger(__name__)

VelocityFunction = Callable[[Tensor, Tensor], Tensor]
"""From noisy latents and noise levels (B,) to d x / d sigma."""

SIGMA_BANDS = (0.0, 0.5, 0.75, 0.9, 1.0)
"""Bounds of the bands of noise levels that training losses are logged by."""

BLIND_BATCHES = 64
"""Training batches, an epoch at most, that validation's blind predictors are fitted to."""


class LitFlow(LitModule):
    """Trains by velocity matching on the targets of edits.

    All randomness is keyed: the noise and the noise level of a sample are functions of (seed, step, sample id).

    Args:
        optim: optimizer and schedule.
        averaging: of the weights; the average is validated, previewed and exported.
        seed: of initial weights and all randomness of training.
        targets: whether the target's latents are the mode of the VAE's distribution or a sample of it, new at every
            step; validation always takes the mode.
    """

    def __init__(
        self, optim: OptimSpec, averaging: AveragingSpec, seed: int, targets: Literal["mode", "sample"]
    ) -> None:
        super().__init__(optim, averaging, seed)
        self.targets = targets
        self.source_check = SourceCheck()

    # --- what a module defines ------------------------------------------------------------------------

    @property
    @abstractmethod
    def vae(self) -> VideoVae:
        """The autoencoder of the latents."""

    @property
    @abstractmethod
    def schedule(self) -> FlowSchedule:
        """The noise schedule."""

    @abstractmethod
    def velocity(self, batch: EditBatch, latent_shape: torch.Size) -> VelocityFunction:
        """Encode a batch's conditions, and return the velocity of latents of this shape under them."""

    @abstractmethod
    def swap_conditions(self, batch: EditBatch) -> EditBatch | None:
        """The batch with another sample's conditions for every sample; None if there is no other."""

    def position_weights(self, batch: EditBatch, target_BCFHW: Tensor) -> Tensor | None:
        """Weights of the training loss over positions, with mean 1 over each sample; None for uniform ones."""
        return None

    def encoder_fingerprints(self) -> dict[str, str]:
        """Fingerprints of the encoders whose output a cache may hold, as it names them."""
        return {"vae": self.vae.fingerprint}

    # --- training -------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse a cache that was built with different encoders, before any work.

        Raises:
            InputError: naming the encoder.
        """
        super().setup(stage)
        data = self.trainer.datamodule  # None for a plain DataLoader
        cache = data.datasets["train"].cache if isinstance(data, EditData) else None
        if cache is None:
            return
        expected = self.encoder_fingerprints()
        for name, cached in cache.encoders._asdict().items():
            if name in expected and cached and cached != expected[name]:
                encoder = {"vae": "VAE", "mllm": "MLLM or different vision limits"}[name]
                raise InputError(
                    f"the cache {cache.folder} was built with a different {encoder}",
                    code="cache-mismatch",
                    got=f"fingerprint {cached[:12]}",
                    expected=expected[name][:12] or "a trained VAE",
                    fix="build a cache with the configuration of this run: `kiwi cache`",
                )

    @torch.no_grad()
    def posterior(self, batch: EditBatch) -> LatentDistribution:
        """The VAE's distribution of the targets' latents, from the cache if that has them."""
        return self.vae.posterior(batch.target_BCFHW) if batch.target_latents is None else batch.target_latents

    def target_latents(self, batch: EditBatch) -> Tensor:
        """The targets' latents for a training step: the mode, or a sample that is keyed as the noise is."""
        posterior = self.posterior(batch)
        if self.targets == "mode":
            return posterior.mode()
        shape = posterior.mean.shape[1:]
        noise = [normal(shape, self.seed, "target", self.global_step, name) for name in batch.ids]
        return posterior.sample(torch.stack(noise).to(posterior.mean))

    def draw_noise(self, ids: list[str], shape: torch.Size, *where: str | int) -> tuple[Tensor, Tensor]:
        """Noise (B, ...) and noise levels (B,) of samples, keyed by (seed, where, id)."""
        noise = torch.stack([normal(shape[1:], self.seed, "noise", *where, name) for name in ids])
        position = torch.tensor([1.0 - uniform(self.seed, "sigma", *where, name) for name in ids], dtype=torch.float32)
        return noise.to(self.device), self.schedule.sigma(position).to(self.device)

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """Weighted velocity loss of a batch."""
        x0 = self.target_latents(batch)
        noise, sigma_B = self.draw_noise(batch.ids, x0.shape, self.global_step)
        predicted = self.velocity(batch, x0.shape)(add_noise(x0, noise, sigma_B), sigma_B)
        losses_B = velocity_loss(predicted, velocity_target(x0, noise), self.position_weights(batch, x0))
        weights_B = self.schedule.loss_weight(sigma_B.cpu()).to(losses_B)
        loss = (losses_B * weights_B).mean()
        self.require_finite(loss, "the loss")
        self._log_losses(batch.task, torch.stack((sigma_B, losses_B.detach(), weights_B)))
        return loss

    def _log_losses(self, task: TaskKind, sigmas_losses_weights_3B: Tensor) -> None:
        """Log losses over the batch of all processes: weighted, by task and by band of noise levels."""
        sigma, losses, weights = self.all_gather(sigmas_losses_weights_3B.float()).movedim(-2, 0).flatten(1)
        self.log_metric("loss", (losses * weights).mean(), batch_size=len(losses), prog_bar=True)
        self.log_metric(f"loss_{task.value}", losses.mean(), batch_size=len(losses))
        for low, high in pairwise(SIGMA_BANDS):
            inside = (sigma > low) & (sigma <= high)
            if inside.any():
                self.log_metric(f"loss_sigma_{low:g}_{high:g}", losses[inside].mean(), batch_size=int(inside.sum()))

    # --- validation -----------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begin a new check; its blind predictors are fitted to the training targets once per run."""
        super().on_validation_epoch_start()
        training = self.source_check.blind.training
        self.source_check = SourceCheck()
        self.source_check.blind.training = training
        data = self.trainer.datamodule
        if not training and isinstance(data, EditData):
            for batch in islice(data.fresh_train_dataloader(), BLIND_BATCHES):
                batch = self.transfer_batch_to_device(batch, self.device, 0)
                self.source_check.blind.add_training(self.posterior(batch).mode())

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        """Losses at fixed noise levels and noises, with the right conditions and with another sample's."""
        x0 = self.posterior(batch).mode()
        noises = [self._draw_validation_noise(batch.ids, x0, level) for level in range(len(self.source_check.sigmas))]
        losses_BS = self._compute_losses(batch, x0, noises)
        swapped = self.swap_conditions(batch)
        swapped_losses_BS = None if swapped is None else self._compute_losses(swapped, x0, noises)
        self.source_check.add(batch.task.value, x0, losses_BS, swapped_losses_BS)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all processes."""
        super().on_validation_epoch_end()
        self.source_check.gather()
        summary = self.source_check.summary()
        if summary and "loss_swapped" not in summary:
            log.warning("val/loss_swapped is not logged: no two validation samples of one size differ in conditions")
        for name, value in summary.items():
            self.log(f"val/{name}", value, prog_bar=name in MEAN_LOSSES, rank_zero_only=True)

    def _compute_losses(self, batch: EditBatch, x0: Tensor, noises: list[Tensor]) -> Tensor:
        """Velocity loss of each sample at each fixed noise level, shape (B, S)."""
        velocity, losses = self.velocity(batch, x0.shape), []
        for sigma, noise in zip(self.source_check.sigmas, noises, strict=True):
            sigma_B = x0.new_full((len(x0),), sigma)
            losses.append(velocity_loss(velocity(add_noise(x0, noise, sigma_B), sigma_B), velocity_target(x0, noise)))
        return torch.stack(losses, dim=1)

    def _draw_validation_noise(self, ids: list[str], x0: Tensor, level: int) -> Tensor:
        return torch.stack([normal(x0.shape[1:], self.seed, "validation", level, name) for name in ids]).to(x0)
