"""The video autoencoder: AutoencoderKLWan of diffusers, with the normalised latents that the DiT uses.

Video (B, 3, F, H, W) in [-1, 1] with F = 4k + 1; latents (B, C, k + 1, H / s, W / s).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kiwi.encoded import LatentDistribution
from kiwi.errors import InputError, SpecError
from kiwi.keyed import forked_rng
from kiwi.models.vae.formats import build_network, make_network, read_network_sizes, require_valid_sizes
from kiwi.models.vae.tiling import NoTiling, TilingSpec
from kiwi.spec import Spec
from kiwi.weights.files import read_json, read_weights
from kiwi.weights.headers import require_plausible_sizes
from kiwi.weights.hub import locate
from kiwi.weights.strict import fingerprint
from kiwi.weights.vae_names import VaeSizes

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


@dataclass(frozen=True, kw_only=True)
class VaeSpec(Spec, ABC):
    """Base class of all specs of video autoencoders.

    Args:
        tiling: whether and how videos are encoded and decoded in tiles.
    """

    tiling: TilingSpec = field(default_factory=NoTiling)

    @abstractmethod
    def build(self) -> VideoVae:
        """Build the autoencoder with its weights."""

    def build_frozen(self, latent_channels: int, seed: int) -> VideoVae:
        """Build the autoencoder for a DiT of this many latent channels; `seed` is for randomly initialised weights.

        Raises:
            SpecError: if the autoencoder has another number of latent channels.
        """
        with forked_rng(seed, "vae"):
            vae = self.build().requires_grad_(False)
        if vae.channels != latent_channels:
            message = f"the VAE has {vae.channels} latent channels, but dit.latent_channels is {latent_channels}"
            raise SpecError(message, code="inconsistent-sizes", fix="choose another VAE, or set dit.latent_channels")
        return vae


@dataclass(frozen=True, kw_only=True)
class WanVae(VaeSpec):
    """A trained Wan VAE, in the format of diffusers or with the original tensor names.

    Args:
        path: folder with safetensors weights and config.json (from diffusers, or a published editor's vae/), file such
            as Wan2.2_VAE.pth, or hub id such as "Wan-AI/Wan2.2-TI2V-5B-Diffusers".
        subfolder: subfolder of `path` that holds the VAE ("vae" in repositories for diffusers).
    """

    path: str
    subfolder: str = ""

    def build(self) -> VideoVae:
        fix = "train one (experiments/first_light/vae.yaml) or name a hub id"
        path = locate(self.path, "VAE", fix, subfolder=self.subfolder)
        config = read_json(file) if (file := path / "config.json").is_file() else {}
        require_plausible_sizes(config, path)
        vae = VideoVae(build_network(read_weights(path), config, str(path)), self.tiling)
        vae.fingerprint = fingerprint(vae.state_dict())
        return vae


@dataclass(frozen=True, kw_only=True)
class NewVae(VaeSpec):
    """A randomly initialised Wan VAE of any size, to be trained.

    Args:
        z_dim: number of latent channels C.
        base_dim: width of the encoder's first level.
        decoder_base_dim: width of the decoder's last level; `base_dim` if None.
        dim_mult: widths of the levels as multiples of base_dim; each level after the first halves height and width.
        temporal_downsample: for each downsampling step, whether it also halves time; exactly two must be True.
        num_res_blocks: number of residual blocks per level.
        residual: use the architecture of Wan2.2: shortcuts around levels, and 2 x 2 patches (twice the spatial factor).
    """

    z_dim: int = 16
    base_dim: int = 16
    decoder_base_dim: int | None = None
    dim_mult: tuple[int, ...] = (1, 2, 4)
    temporal_downsample: tuple[bool, ...] = (True, True)
    num_res_blocks: int = 1
    residual: bool = False

    def __post_init__(self) -> None:
        require_valid_sizes(self.sizes)

    @classmethod
    def wan21(cls) -> NewVae:
        """Sizes of the Wan2.1 VAE (126.9 M parameters): 8 x 8 pixels per latent, 16 channels."""
        return cls(base_dim=96, dim_mult=(1, 2, 4, 4), temporal_downsample=(False, True, True), num_res_blocks=2)

    @classmethod
    def wan22(cls) -> NewVae:
        """Sizes of the Wan2.2 VAE (704.7 M parameters): 16 x 16 pixels per latent, 48 channels."""
        return cls.wan21().replace(z_dim=48, base_dim=160, decoder_base_dim=256, residual=True)

    @property
    def sizes(self) -> VaeSizes:
        """Channels, levels and blocks of the network."""
        sizes = {name: getattr(self, name) for name in VaeSizes._fields}
        if self.decoder_base_dim is None:
            sizes["decoder_base_dim"] = self.base_dim
        return VaeSizes(**sizes)

    def build(self) -> VideoVae:
        network = make_network(self.sizes, mean=[0.0] * self.z_dim, std=[1.0] * self.z_dim)
        _init_weights(network)
        return VideoVae(network, self.tiling)


class VideoVae(nn.Module):
    """Encodes and decodes videos; latents are normalised to mean 0 and standard deviation 1 over training data.

    Args:
        vae: the network, with mean and standard deviation of its latents in its config.
        tiling: whether and how videos are processed in tiles; may be changed at any time.
    """

    temporal_factor = 4

    def __init__(self, vae: AutoencoderKLWan, tiling: TilingSpec = NoTiling()) -> None:  # noqa: B008  (frozen)
        super().__init__()
        self.vae = vae  # the attribute's name is part of the weights' names in checkpoints
        self.tiling = tiling
        self.channels = int(vae.config.z_dim)
        self.spatial_factor = int(vae.config.scale_factor_spatial)
        self.fingerprint = ""
        """Hash of the loaded weights; empty for randomly initialised ones."""

    def posterior(self, video_BCFHW: Tensor) -> LatentDistribution:
        """Compute the encoder's distribution of normalised latents.

        Raises:
            InputError: if the video does not have 4k + 1 frames (the last ones would be dropped silently), or its
                sides are not multiples of the spatial factor.
        """
        frames, height, width = video_BCFHW.shape[2:]
        if (frames - 1) % self.temporal_factor or height % self.spatial_factor or width % self.spatial_factor:
            message = f"the autoencoder cannot encode {frames} frames of {height}x{width}"
            expected = f"4k + 1 frames, height and width multiples of {self.spatial_factor}"
            raise InputError(message, code="unsupported-video-size", expected=expected)
        return self.posterior_truncated(video_BCFHW)

    def posterior_truncated(self, video_BCFHW: Tensor) -> LatentDistribution:
        """Like `posterior`, but drops trailing frames beyond 4k + 1, as the published code does."""
        moments = self.tiling.run(self._encode_moments, video_BCFHW.to(self.vae.dtype), self.spatial_factor, 1).float()
        mean, log_variance = moments.chunk(2, dim=1)
        latent_mean, latent_std = self._latent_statistics(moments.device)
        # Clamped as in diffusers, so that a randomly initialised encoder gives finite values.
        std = (0.5 * log_variance.clamp(-30.0, 20.0)).exp()
        return LatentDistribution((mean - latent_mean) / latent_std, std / latent_std)

    def encode(self, video_BCFHW: Tensor) -> Tensor:
        """Encode a video as normalised latents, the mode of `posterior`."""
        return self.posterior(video_BCFHW).mode()

    def encode_images(self, images_BRCHW: Tensor) -> Tensor:
        """Encode R single images per sample as latents (B, C, R, h, w); R may be 0."""
        batch, count, _, height, width = images_BRCHW.shape
        if count == 0:
            shape = (batch, self.channels, 0, height // self.spatial_factor, width // self.spatial_factor)
            return torch.zeros(shape, device=images_BRCHW.device)
        latents = self.encode(images_BRCHW.flatten(0, 1)[:, :, None])
        return latents[:, :, 0].unflatten(0, (batch, count)).transpose(1, 2)

    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        """Decode normalised latents to a video in [-1, 1], float32."""
        latents = self.denormalise(latents_BCFHW).to(self.vae.dtype)
        return self.tiling.run(self.decode_unclamped, latents, 1, self.spatial_factor).clamp(-1.0, 1.0).float()

    def decode_unclamped(self, latents_BCFHW: Tensor) -> Tensor:
        """Decode denormalised latents without tiling, and without clamping to [-1, 1].

        diffusers only returns the clamped video, which has no gradients where the decoder overshoots, so that training
        hardly progresses. Like diffusers, this decodes one latent frame at a time, with a cache between frames.
        """
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

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

    def denormalise(self, latents_BCFHW: Tensor) -> Tensor:
        """Convert normalised latents to the network's units in float32, for `decode_unclamped`."""
        latent_mean, latent_std = self._latent_statistics(latents_BCFHW.device)
        return latents_BCFHW.float() * latent_std + latent_mean

    def set_normalisation(self, mean_C: Tensor, std_C: Tensor) -> None:
        """Set the mean and standard deviation by which each latent channel is normalised."""
        self.vae.register_to_config(latents_mean=mean_C.tolist(), latents_std=std_C.tolist())

    def _encode_moments(self, video_BCFHW: Tensor) -> Tensor:
        """Compute mean and log-variance (B, 2C, F, H, W); diffusers encodes the first frame, then four at a time."""
        return self.vae.encode(video_BCFHW).latent_dist.parameters

    def _latent_statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents in float32; buffers would be cast with the weights."""
        config = self.vae.config
        pair = torch.tensor([config.latents_mean, config.latents_std], device=device)[..., None, None, None]
        return pair[0], pair[1]

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write the VAE with its normalisation in the format of diffusers; `dtype` converts the written weights."""
        vae = self.vae if dtype in (None, self.vae.dtype) else copy.deepcopy(self.vae).to(dtype)
        vae.save_pretrained(folder, safe_serialization=True)


def make_published_config(vae: VideoVae) -> dict[str, Any]:
    """Compose config.json of a published editor's vae/ folder, which has no field for the decoder's width."""
    config, sizes = vae.vae.config, read_network_sizes(vae.vae)
    return {
        "_class_name": "VAE",
        "z_dim": sizes.z_dim,
        "dim": sizes.base_dim,
        "dim_mult": list(sizes.dim_mult),
        "num_res_blocks": sizes.num_res_blocks,
        "attn_scales": [],
        "temperal_downsample": list(sizes.temporal_downsample),
        "dropout": 0.0,
        "latents_mean": list(config.latents_mean),
        "latents_std": list(config.latents_std),
        "vae_pth": None,
    }


def _init_weights(vae: nn.Module) -> None:
    """Initialise convolutions to preserve variance, and residual branches to zero.

    diffusers keeps PyTorch's default initialisation, which shrinks the signal at every layer: after 300 steps on the
    sandbox such a VAE reaches 15.6 dB PSNR, this one 19.1 dB (8 clips of 5 x 32 x 32 per step).
    """
    for name, module in vae.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith((".conv2", ".proj")):
                nn.init.zeros_(module.weight)
