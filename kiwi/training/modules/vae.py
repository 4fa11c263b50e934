"""LitVae: trains a video autoencoder on the clips of edits; editors then use it frozen."""

from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kiwi.data.sample import EditBatch, to_pixels
from kiwi.errors import InputError
from kiwi.evaluation.fidelity import compute_edit_metrics
from kiwi.keyed import forked_rng
from kiwi.models.sampling import eval_mode
from kiwi.models.vae.wan import NewVae, VaeSpec, VideoVae
from kiwi.training.averaging import AveragingSpec, NoAveraging
from kiwi.training.modules.base import LitEncoder, Preview, get_edit_data
from kiwi.training.optim import AdamW, OptimSpec


class LitVae(LitEncoder):
    """Trains a Wan VAE on sources, targets and references, with squared error and a small KL term.

    The exported folder has the format of diffusers, and its config.json the mean and standard deviation of the training
    clips' latents; `WanVae(path=folder)` loads it.

    Args:
        vae: the autoencoder; `NewVae(...)` trains one from scratch.
        optim: optimizer and schedule.
        averaging: weight averaging; validation, previews and exports use the average.
        kl_weight: weight of the KL divergence, which is averaged over latent elements.
        export_dtype: data type of the weights in the exported folder; float16 halves its size.
        statistics_batches: number of training batches (at most an epoch) for the mean and standard deviation at export.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        vae: VaeSpec = NewVae(),  # noqa: B008  (frozen)
        optim: OptimSpec = AdamW(lr=2e-3, warmup_steps=20, schedule="cosine"),  # noqa: B008  (frozen)
        averaging: AveragingSpec = NoAveraging(),  # noqa: B008  (frozen)
        kl_weight: float = 1e-4,
        export_dtype: Literal["float32", "float16"] = "float32",
        statistics_batches: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(optim, averaging, export_dtype, seed)
        if kl_weight < 0 or statistics_batches < 1:
            got = f"kl_weight {kl_weight}, statistics_batches {statistics_batches}"
            raise InputError("LitVae needs kl_weight >= 0 and statistics_batches >= 1", code="out-of-range", got=got)
        with forked_rng(seed, "vae"):
            self.autoencoder = vae.build()
        self.kl_weight, self.statistics_batches = kl_weight, statistics_batches

    @property
    def encoder(self) -> VideoVae:
        return self.autoencoder

    @property
    def size_multiple(self) -> int:
        return self.autoencoder.spatial_factor

    def resume_config(self) -> dict[str, Any]:
        return {"kl_weight": self.kl_weight}

    def compute_loss(self, batch: EditBatch) -> Tensor:
        """Compute the loss of a batch's clips and reference images, weighting every pixel equally."""
        _require_clips(batch)
        groups = [videos for videos in (_concat_clips(batch), _flatten_references(batch)) if len(videos)]
        losses = torch.stack([self._reconstruction_loss(videos) * videos.numel() for videos in groups])
        return losses.sum() / sum(videos.numel() for videos in groups)

    def _reconstruction_loss(self, videos_BCFHW: Tensor) -> Tensor:
        posterior = self.autoencoder.vae.encode(videos_BCFHW.to(self.autoencoder.vae.dtype)).latent_dist
        # The mode, not a sample: editors use modes, and the KL term is enough to keep the latents bounded.
        reconstruction = self.autoencoder.decode_unclamped(posterior.mode())
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
        return F.mse_loss(reconstruction.float(), videos_BCFHW.float()) + self.kl_weight * kl

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        """Log PSNR (dB) and SSIM of reconstructed clips and reference images."""
        _require_clips(batch)
        for prefix, videos in (("", _concat_clips(batch)), ("picture_", _flatten_references(batch))):
            reconstructions = self.autoencoder.decode(self.autoencoder.encode(videos)) if len(videos) else videos
            for reconstruction, video in zip(reconstructions, videos, strict=True):
                metrics = compute_edit_metrics(to_pixels(reconstruction), to_pixels(video))
                for name, value in metrics.items():
                    self.log(f"val/{prefix}{name}", value, prog_bar=not prefix, batch_size=1, sync_dist=True)

    # --- for commands and callbacks -------------------------------------------------------------------

    def list_unexpected_files(self, folder: Path) -> list[str]:
        config, names = folder / "config.json", sorted(item.name for item in folder.iterdir())
        if not config.is_file() or '"AutoencoderKLWan"' not in config.read_text(encoding="utf-8", errors="replace"):
            return names
        return [name for name in names if name != config.name and not name.startswith("diffusion_pytorch_model")]

    def preview(self, batch: EditBatch, seed: int) -> Preview:
        """Reconstruct the sample's target; clips are the target and its reconstruction."""
        with eval_mode(self):
            decoded = self.autoencoder.decode(self.autoencoder.encode(batch.target_BCFHW))
        clips = {"clip": to_pixels(batch.target_BCFHW[0]), "reconstruction": to_pixels(decoded[0])}
        return Preview(clips, batch.instructions[0])

    def export(self, folder: Path, *, self_contained: bool) -> None:
        mean, std = self._compute_latent_statistics()
        self.autoencoder.set_normalisation(mean, std)
        super().export(folder, self_contained=self_contained)

    def _compute_latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each unnormalised latent channel over training clips."""
        total, total_square, count = torch.zeros(()), torch.zeros(()), 0
        with eval_mode(self):
            for batch in islice(get_edit_data(self.trainer).fresh_train_dataloader(), self.statistics_batches):
                clips = _concat_clips(self.transfer_batch_to_device(batch, self.device, 0))
                posterior = self.autoencoder.vae.encode(clips.to(self.autoencoder.vae.dtype)).latent_dist
                latents = posterior.mode().double().cpu().transpose(0, 1).flatten(1)
                total, total_square = total + latents.sum(1), total_square + latents.square().sum(1)
                count += latents.shape[1]
        mean = total / count
        return mean, (total_square / count - mean.square()).clamp_min(1e-8).sqrt()


def _require_clips(batch: EditBatch) -> None:
    if not batch.target_BCFHW.shape[2]:
        expected = "a manifest with targets, or sandbox items"
        raise InputError(f"the sample {batch.ids[0]} has no target", code="missing-target", expected=expected)


def _concat_clips(batch: EditBatch) -> Tensor:
    """Concatenate sources and targets to one batch of clips."""
    return torch.cat((batch.source_BCFHW, batch.target_BCFHW))


def _flatten_references(batch: EditBatch) -> Tensor:
    """Convert reference images to a batch of one-frame clips, as the editor encodes them."""
    return batch.references_BRCHW.flatten(0, 1)[:, :, None]
