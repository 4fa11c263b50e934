"""LitFlow: base class of modules trained by flow matching; validation checks that they use their conditions.

B samples, S fixed noise levels; latents (B, C, F, H, W).
"""

import logging
from abc import abstractmethod
from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from kiwi.data.datamodule import EditData
from kiwi.data.sample import EditBatch
from kiwi.encoded import LatentDistribution, TaskKind
from kiwi.errors import InputError
from kiwi.flow.schedule import add_noise, velocity_loss, velocity_target
from kiwi.keyed import normal, uniform
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.text_to_video import TextToVideo
from kiwi.models.vae.wan import VideoVae
from kiwi.training.averaging import AveragingSpec
from kiwi.training.modules.base import LitModule
from kiwi.training.optim import OptimSpec
from kiwi.training.source_check import MEAN_LOSSES, SIGMAS, SourceCheck

log = logging.getLogger(__name__)

VelocityFunction = Callable[[Tensor, Tensor], Tensor]
"""Maps noisy latents and noise levels (B,) to the velocity dx / dsigma."""

SIGMA_BANDS = (0.0, 0.5, 0.75, 0.9, 1.0)
"""Bounds of the noise-level bands for which training losses are logged separately."""

BLIND_BATCHES = 64
"""Number of training batches (at most an epoch) that the blind predictors of validation are fitted to.

Blind predictors are linear predictors of the velocity that see no condition, only the noisy latents."""


class LitFlow(LitModule):
    """Trains a velocity prediction on the targets of edits.

    All randomness is keyed: noise and noise level of a sample are functions of (seed, step, sample id).

    Args:
        targets: use the mode of the VAE's posterior as the target latents, or sample from it at every step; validation
            always uses the mode. See `LitModule` for the other arguments.
    """

    def __init__(
        self, optim: OptimSpec, averaging: AveragingSpec, seed: int, targets: Literal["mode", "sample"]
    ) -> None:
        super().__init__(optim, averaging, seed)
        self.targets = targets
        self.source_check = SourceCheck()

    # --- to be defined by subclasses ------------------------------------------------------------------

    @property
    @abstractmethod
    def network(self) -> KiwiEdit | TextToVideo:
        """The model to train, whose VAE encodes the targets."""

    @abstractmethod
    def encode_conditions(self, batch: EditBatch) -> Any:
        """Encode what a batch's videos are generated from, as the network's `encode` does."""

    @abstractmethod
    def swap_conditions(self, batch: EditBatch) -> EditBatch | None:
        """Replace the conditions of every sample by those of another; None if there is no other sample."""

    def weigh_positions(self, batch: EditBatch, target_BCFHW: Tensor) -> Tensor | None:
        """Loss weights over the positions of a video, with mean 1 over each sample; None for uniform weights."""
        return None

    def encoder_fingerprints(self) -> dict[str, str]:
        """Fingerprints of the encoders whose outputs a cache may hold, by field of `EncoderFingerprints`."""
        return {"vae": self.vae.fingerprint}

    # --- training -------------------------------------------------------------------------------------

    @property
    def vae(self) -> VideoVae:
        return self.network.vae

    @property
    def size_multiple(self) -> int:
        return self.network.size_multiple

    def make_velocity_function(self, batch: EditBatch, latent_shape: torch.Size) -> VelocityFunction:
        """Encode a batch's conditions once, and return the function that predicts velocities with them."""
        prepared: Any = self.network.prepare(self.encode_conditions(batch), latent_shape)
        return lambda latents, sigma_B: self.network.velocity(latents, sigma_B, prepared)

    def setup(self, stage: str) -> None:
        """Raise an InputError if the data come from a cache that was built with different encoders."""
        super().setup(stage)
        data = self.trainer.datamodule  # None for a plain DataLoader
        cache = data.datasets["train"].cache if isinstance(data, EditData) else None
        if cache is None:
            return
        expected = self.encoder_fingerprints()
        for name, cached in cache.encoders._asdict().items():
            if name in expected and cached and cached != expected[name]:
                encoder = {"vae": "VAE", "mllm": "MLLM or different vision limits"}[name]
                problem = f"the cache {cache.folder} was built with a different {encoder}"
                got, wanted = f"weights with the checksum {cached[:12]}", expected[name][:12]
                fix = "build a cache with the configuration of this run, using `kiwi cache`"
                wanted = wanted or "no cache, because the VAE of this run is untrained"
                raise InputError(problem, code="mismatched-cache", got=got, expected=wanted, fix=fix)

    @torch.no_grad()
    def encode_targets(self, batch: EditBatch) -> LatentDistribution:
        """The VAE's posterior of the targets, from the cache if it has them."""
        return self.vae.posterior(batch.target_BCFHW) if batch.target_posterior is None else batch.target_posterior

    def draw_target_latents(self, batch: EditBatch) -> Tensor:
        """Target latents of a training step: the mode of the posterior, or a sample drawn with keyed noise."""
        posterior = self.encode_targets(batch)
        if self.targets == "mode":
            return posterior.mode()
        shape = posterior.mean.shape[1:]
        noise = [normal(shape, self.seed, "target", self.global_step, name) for name in batch.ids]
        return posterior.sample(torch.stack(noise).to(posterior.mean))

    def draw_noise(self, ids: list[str], shape: torch.Size, *keys: str | int) -> tuple[Tensor, Tensor]:
        """Draw noise (B, ...) and noise levels (B,) for samples, as functions of (seed, keys, id)."""
        noise = torch.stack([normal(shape[1:], self.seed, "noise", *keys, name) for name in ids])
        position = torch.tensor([1.0 - uniform(self.seed, "sigma", *keys, name) for name in ids], dtype=torch.float32)
        return noise.to(self.device), self.network.schedule.sigma(position).to(self.device)

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """Compute the weighted velocity loss of a batch."""
        x0 = self.draw_target_latents(batch)
        noise, sigma_B = self.draw_noise(batch.ids, x0.shape, self.global_step)
        predicted = self.make_velocity_function(batch, x0.shape)(add_noise(x0, noise, sigma_B), sigma_B)
        losses_B = velocity_loss(predicted, velocity_target(x0, noise), self.weigh_positions(batch, x0))
        weights_B = self.network.schedule.loss_weight(sigma_B.cpu()).to(losses_B)
        loss = (losses_B * weights_B).mean()
        self.require_finite(loss, "the loss")
        self._log_losses(batch.task, torch.stack((sigma_B, losses_B.detach(), weights_B)))
        return loss

    def _log_losses(self, task: TaskKind, sigmas_losses_weights_3B: Tensor) -> None:
        """Log mean losses over all processes: the weighted loss, and unweighted losses by task and noise-level band."""
        sigma, losses, weights = self.all_gather(sigmas_losses_weights_3B.float()).movedim(-2, 0).flatten(1)
        self.log_metric("loss", (losses * weights).mean(), batch_size=len(losses), prog_bar=True)
        self.log_metric(f"loss_{task.value}", losses.mean(), batch_size=len(losses))
        for low, high in pairwise(SIGMA_BANDS):
            in_band = (sigma > low) & (sigma <= high)
            if in_band.any():
                self.log_metric(f"loss_sigma_{low:g}_{high:g}", losses[in_band].mean(), batch_size=int(in_band.sum()))

    # --- validation -----------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start a new source check; its blind predictors are fitted to the training targets once per run."""
        super().on_validation_epoch_start()
        training = self.source_check.blind_predictors.training
        self.source_check = SourceCheck(training)
        data = self.trainer.datamodule
        if not training and isinstance(data, EditData):
            for batch in islice(data.fresh_train_dataloader(), BLIND_BATCHES):
                batch = self.transfer_batch_to_device(batch, self.device, 0)
                self.source_check.blind_predictors.add_training(self.encode_targets(batch).mode())

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        """Compute losses at fixed noise levels, with the correct conditions and with those of another sample."""
        x0 = self.encode_targets(batch).mode()
        noises = [self._draw_validation_noise(batch.ids, x0, level) for level in range(len(SIGMAS))]
        losses_BS = self._compute_losses(batch, x0, noises)
        swapped = self.swap_conditions(batch)
        swapped_losses_BS = None if swapped is None else self._compute_losses(swapped, x0, noises)
        self.source_check.add(batch.task.value, x0, losses_BS, swapped_losses_BS)

    def on_validation_epoch_end(self) -> None:
        """Log the mean losses over all processes."""
        super().on_validation_epoch_end()
        self.source_check.gather()
        summary = self.source_check.summarize()
        if summary and "loss_swapped" not in summary:
            log.warning("val/loss_swapped is not logged: no two validation samples of one size differ in conditions")
        for name, value in summary.items():
            self.log(f"val/{name}", value, prog_bar=name in MEAN_LOSSES, rank_zero_only=True)

    def _compute_losses(self, batch: EditBatch, x0: Tensor, noises: list[Tensor]) -> Tensor:
        """Compute the velocity loss of each sample at each fixed noise level, (B, S)."""
        predict_velocity, losses = self.make_velocity_function(batch, x0.shape), []
        for sigma, noise in zip(SIGMAS, noises, strict=True):
            sigma_B = x0.new_full((len(x0),), sigma)
            predicted = predict_velocity(add_noise(x0, noise, sigma_B), sigma_B)
            losses.append(velocity_loss(predicted, velocity_target(x0, noise)))
        return torch.stack(losses, dim=1)

    def _draw_validation_noise(self, ids: list[str], x0: Tensor, level: int) -> Tensor:
        return torch.stack([normal(x0.shape[1:], self.seed, "validation", level, name) for name in ids]).to(x0)
