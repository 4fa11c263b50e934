"""The video autoencoder: diffusers' AutoencoderKLWan, with latents normalised as the DiT sees them.

Video (B, 3, F, H, W) in [-1, 1] with F = 4k + 1; latents (B, C, k + 1, H / s, W / s).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor, nn

from kiwi.errors import CheckpointError, InputError
from kiwi.models.hub import require_source
from kiwi.spec import Spec


@dataclass(frozen=True, kw_only=True)
class VaeSpec(Spec, ABC):
    """The family of video autoencoders."""

    @abstractmethod
    def build(self) -> VideoVae:
        """The module, weights included; always in eval mode and without gradients."""


@dataclass(frozen=True, kw_only=True)
class WanVae(VaeSpec):
    """A trained Wan VAE in diffusers' format.

    Args:
        path: folder with config.json and safetensors weights, or a hub id such as "Wan-AI/Wan2.2-TI2V-5B-Diffusers".
        subfolder: where in it the VAE lies, "vae" in the hub's repositories.
    """

    path: str
    subfolder: str = ""

    def build(self) -> VideoVae:
        fix = "train one (experiments/first_light/vae.yaml) or name a hub id"
        require_source(self.path, self.subfolder, "VAE", fix)
        try:
            vae = AutoencoderKLWan.from_pretrained(self.path, subfolder=self.subfolder or None, use_safetensors=True)
        except (OSError, ValueError) as problem:
            raise CheckpointError(f"the VAE {self.path!r} cannot be loaded", got=_first_line(problem)) from problem
        return VideoVae(vae)


@dataclass(frozen=True, kw_only=True)
class NewVae(VaeSpec):
    """An untrained Wan VAE of any size, to be trained here. Random weights decode to noise.

    Args:
        z_dim: latent channels C.
        base_dim: width of the first level.
        dim_mult: widths of the levels over base_dim; each level after the first halves height and width.
        temporal_downsample: which of the steps between levels also halve time; two of them must.
        num_res_blocks: residual blocks a level.
        residual: the Wan2.2 form, with shortcuts around levels and 2 x 2 patches (twice the spatial factor).
    """

    z_dim: int = 16
    base_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4)
    temporal_downsample: tuple[bool, ...] = (True, True)
    num_res_blocks: int = 1
    residual: bool = False

    def build(self) -> VideoVae:
        patch = 2 if self.residual else 1
        channels = 3 * patch * patch
        vae = AutoencoderKLWan(
            base_dim=self.base_dim,
            z_dim=self.z_dim,
            dim_mult=list(self.dim_mult),
            num_res_blocks=self.num_res_blocks,
            temperal_downsample=list(self.temporal_downsample),
            is_residual=self.residual,
            in_channels=channels,
            out_channels=channels,
            patch_size=patch if self.residual else None,
            latents_mean=[0.0] * self.z_dim,
            latents_std=[1.0] * self.z_dim,
            scale_factor_spatial=2 ** (len(self.dim_mult) - 1) * patch,
        )
        _init_weights(vae)
        return VideoVae(vae)


class VideoVae(nn.Module):
    """Encode and decode, in the latents' normalised units (mean 0, deviation 1 over the VAE's training data)."""

    temporal_factor = 4

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.vae = vae
        self.channels = int(vae.config.z_dim)
        self.spatial_factor = int(vae.config.scale_factor_spatial)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a video of 4k + 1 frames."""
        return 1 + (frames - 1) // self.temporal_factor

    def encode(self, video_BCFHW: Tensor) -> Tensor:
        """Latents at the mode of the encoder's distribution, normalised.

        Raises:
            InputError: frames not 4k + 1 (the last ones would be dropped silently) or a size the VAE cannot halve.
        """
        frames, height, width = video_BCFHW.shape[2:]
        if (frames - 1) % self.temporal_factor or height % self.spatial_factor or width % self.spatial_factor:
            raise InputError(
                "the video does not fit the autoencoder",
                got=f"{frames} frames of {height}x{width}",
                wanted=f"4k + 1 frames, height and width multiples of {self.spatial_factor}",
            )
        mode = self.vae.encode(video_BCFHW.to(self.vae.dtype)).latent_dist.mode()
        mean, deviation = self._statistics(mode.device)
        return (mode.float() - mean) / deviation

    def encode_images(self, images_BRCHW: Tensor) -> Tensor:
        """Latents (B, C, R, h, w) of R single images a sample; R may be 0."""
        batch, count, _, height, width = images_BRCHW.shape
        if count == 0:
            shape = (batch, self.channels, 0, height // self.spatial_factor, width // self.spatial_factor)
            return torch.zeros(shape, device=images_BRCHW.device)
        latents = self.encode(images_BRCHW.flatten(0, 1)[:, :, None])
        return latents[:, :, 0].unflatten(0, (batch, count)).transpose(1, 2)

    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        """Video in [-1, 1], float32."""
        mean, deviation = self._statistics(latents_BCFHW.device)
        latents = latents_BCFHW.float() * deviation + mean
        return self.decode_unclamped(latents.to(self.vae.dtype)).clamp(-1.0, 1.0).float()

    def decode_unclamped(self, latents_BCFHW: Tensor) -> Tensor:
        """What the decoder says for unnormalised latents, before it is cut to [-1, 1].

        The library only offers the clamped result, through which no gradient flows where the decoder overshoots
        (training hardly starts), so its frame loop stands here: one latent frame at a time, caches carried on.
        """
        vae = self.vae
        vae.clear_cache()
        latents, frames = vae.post_quant_conv(latents_BCFHW), []
        for index in range(latents.shape[2]):
            vae._conv_idx = [0]
            frame = latents[:, :, index : index + 1]
            frames.append(vae.decoder(frame, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0))
        vae.clear_cache()
        video = torch.cat(frames, dim=2)
        return video if vae.config.patch_size is None else unpatchify(video, vae.config.patch_size)

    def normalise_by(self, mean_C: Tensor, std_C: Tensor) -> None:
        """Set the mean and deviation that latents are normalised by, each channel its own."""
        self.vae.register_to_config(latents_mean=mean_C.tolist(), latents_std=std_C.tolist())

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation to normalise by, always float32: as buffers they would follow the weights' type."""
        config = self.vae.config
        pair = torch.tensor([config.latents_mean, config.latents_std], device=device)[..., None, None, None]
        return pair[0], pair[1]

    def save(self, folder: Path) -> None:
        """Write the VAE in diffusers' format, normalisation included."""
        self.vae.save_pretrained(folder, safe_serialization=True)


def _init_weights(vae: nn.Module) -> None:
    """Variance-keeping convolutions, and residual branches that start at zero.

    The library's modules keep torch's default, which shrinks the signal at every layer: after 300 steps on the
    sandbox such a VAE reconstructs at 15.6 dB, this one at 19.1 dB (8 clips of 5 x 32 x 32 a step).
    """
    for name, module in vae.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith((".conv2", ".proj")):
                nn.init.zeros_(module.weight)


def _first_line(problem: BaseException) -> str:
    return str(problem).strip().splitlines()[0]
