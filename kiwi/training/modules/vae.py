"""Training of the parts that an editor freezes: LitVae, a video autoencoder on the clips of edit manifests."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kiwi.data.datamodule import EditData
from kiwi.data.sample import EditBatch, pixels
from kiwi.errors import InputError
from kiwi.evaluation.fidelity import edit_metrics
from kiwi.keyed import forked_rng
from kiwi.media.files import atomic_folder
from kiwi.models.sampling import eval_mode
from kiwi.models.vae.wan import NewVae, VaeSpec
from kiwi.training.averaging import AveragingSpec, NoAveraging
from kiwi.training.modules.base import Clips, LitModule
from kiwi.training.optim import AdamW, OptimSpec


class LitVae(LitModule):
    """Trains a Wan VAE: squared error and a small KL term. Sources, targets and references alike are its data.

    The folder it exports is diffusers' format, with the mean and deviation of the training clips' latents in
    config.json, as `WanVae(path=folder)` needs them.

    Args:
        vae: the autoencoder; `NewVae(...)` trains one from nothing.
        optim: optimizer and schedule.
        averaging: of the weights; the average is what is validated, looked at and exported.
        kl_weight: of the KL divergence per latent element.
        export_dtype: of the weights in the exported folder; float16 halves it.
        statistics_batches: batches (an epoch at most) over which the latents' statistics are measured at export.
        max_pixels: not used by an autoencoder; the command line sets it for every module.
        seed: of initial weights.
    """

    def __init__(
        self,
        vae: VaeSpec = NewVae(),  # noqa: B008  (frozen)
        optim: OptimSpec = AdamW(lr=2e-3, warmup_steps=20, schedule="cosine"),  # noqa: B008  (frozen)
        averaging: AveragingSpec = NoAveraging(),  # noqa: B008  (frozen)
        kl_weight: float = 1e-4,
        export_dtype: Literal["float32", "float16"] = "float32",
        statistics_batches: int = 32,
        max_pixels: int = 720 * 1280,
        seed: int = 0,
    ) -> None:
        super().__init__(optim, averaging, max_pixels, seed)
        if kl_weight < 0 or statistics_batches < 1:
            raise InputError("the autoencoder needs kl_weight >= 0 and statistics_batches >= 1")
        with forked_rng(seed, "vae"):
            self.autoencoder = vae.build()
        self.kl_weight, self.statistics_batches = kl_weight, statistics_batches
        self.export_dtype = getattr(torch, export_dtype)

    @property
    def size_multiple(self) -> int:
        return self.autoencoder.spatial_factor

    @property
    def trained(self) -> bool:
        return bool(self.autoencoder.fingerprint)

    def setup(self, stage: str) -> None:
        """Refuse a cache: it has latents, and a VAE learns from pixels."""
        super().setup(stage)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if (cache := data.cache if isinstance(data, EditData) else None) is not None:
            raise InputError(
                "an autoencoder is trained on pixels", got=f"data.cache {cache}", fix="leave data.cache out"
            )

    def choices(self) -> dict[str, Any]:
        return {"kl_weight": self.kl_weight}

    def is_saved(self, name: str) -> bool:
        return True

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """Reconstruction and KL of a batch's clips and reference images, every pixel alike."""
        _require_clips(batch)
        shown = [videos for videos in (_clips(batch), _pictures(batch)) if len(videos)]
        losses = torch.stack([self._loss(videos) * videos.numel() for videos in shown])
        loss = losses.sum() / sum(videos.numel() for videos in shown)
        self.require_finite(loss, "the loss")
        self.record("loss", self.all_gather(loss.detach()).mean(), prog_bar=True, batch_size=len(batch.ids))
        return loss

    def _loss(self, videos_BCFHW: Tensor) -> Tensor:
        posterior = self.autoencoder.vae.encode(videos_BCFHW.to(self.autoencoder.vae.dtype)).latent_dist
        # The mode, not a sample: an editor reads modes, and the KL term alone keeps the latents bounded.
        reconstruction = self.autoencoder.decode_unclamped(posterior.mode())
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
        return F.mse_loss(reconstruction.float(), videos_BCFHW.float()) + self.kl_weight * kl

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        """PSNR (dB) and SSIM of clips that were encoded and decoded, and of reference images."""
        _require_clips(batch)
        for prefix, videos in (("", _clips(batch)), ("picture_", _pictures(batch))):
            decoded = self.autoencoder.decode(self.autoencoder.encode(videos)) if len(videos) else videos
            for made, wanted in zip(decoded, videos, strict=True):
                for name, value in edit_metrics(pixels(made), pixels(wanted), None, lambda made, wanted: {}).items():
                    self.log(f"val/{prefix}{name}", value, prog_bar=not prefix, batch_size=1, sync_dist=True)

    def foreign(self, folder: Path) -> list[str]:
        return _foreign(folder)

    def preview(self, batch: EditBatch, seed: int) -> Clips:
        """A clip and what is left of it after encoding and decoding."""
        with eval_mode(self):
            decoded = self.autoencoder.decode(self.autoencoder.encode(batch.target_BCFHW))
        return {"clip": pixels(batch.target_BCFHW[0]), "reconstruction": pixels(decoded[0])}

    def export(self, folder: Path, max_frames: int, *, self_contained: bool) -> None:
        mean, deviation = self._latent_statistics()
        self.autoencoder.set_normalisation(mean, deviation)
        with atomic_folder(folder, _foreign) as new:
            self.autoencoder.save(new, self.export_dtype)

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each latent channel over training clips, unnormalised."""
        total, squares, count = torch.zeros(()), torch.zeros(()), 0
        data = cast(EditData, self.trainer.datamodule)  # type: ignore[attr-defined]
        with eval_mode(self):
            for batch in islice(data.fresh_train_dataloader(), self.statistics_batches):
                clips = _clips(self.transfer_batch_to_device(batch, self.device, 0))
                latents = (
                    self.autoencoder.vae.encode(clips.to(self.autoencoder.vae.dtype))
                    .latent_dist.mode()
                    .double()
                    .cpu()
                    .transpose(0, 1)
                    .flatten(1)
                )
                total, squares = total + latents.sum(1), squares + latents.square().sum(1)
                count += latents.shape[1]
        mean = total / count
        return mean, (squares / count - mean.square()).clamp_min(1e-8).sqrt()


def _foreign(folder: Path) -> list[str]:
    """What an earlier export did not write into a folder."""
    config, names = folder / "config.json", sorted(item.name for item in folder.iterdir())
    if not config.is_file() or '"AutoencoderKLWan"' not in config.read_text(encoding="utf-8", errors="replace"):
        return names
    return [name for name in names if name != config.name and not name.startswith("diffusion_pytorch_model")]


def _require_clips(batch: EditBatch) -> None:
    if not batch.target_BCFHW.shape[2]:
        wanted = "a manifest with targets, or items of the sandbox"
        raise InputError("an autoencoder learns from edits", got=f"{batch.ids[0]}, without a target", wanted=wanted)


def _clips(batch: EditBatch) -> Tensor:
    """Sources and targets as one batch of clips."""
    return torch.cat((batch.source_BCFHW, batch.target_BCFHW))


def _pictures(batch: EditBatch) -> Tensor:
    """Reference images as a batch of clips of one frame, as the editor encodes them."""
    return batch.references_BRCHW.flatten(0, 1)[:, :, None]
