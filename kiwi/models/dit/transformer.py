"""The video diffusion transformer of Wan2.1 and Wan2.2.

B batch, C latent channels, F H W latent frames, height and width, L tokens, D width, N context tokens, P channels of a
patch. Parameter names are those of the published Wan files. Norms, modulation and timestep embedding are computed in
float32, whatever the dtype of the weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kiwi.errors import InputError, SpecError
from kiwi.models.device import without_autocast
from kiwi.models.dit.attention import CrossAttention, KeysValues, Rope, SelfAttention
from kiwi.models.dit.base import BaseSpec, NewBase
from kiwi.models.tuning import Full, TuningSpec
from kiwi.spec import Spec, require_positive

LORA_TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")
"""Name endings of the linear layers that get adapters, as in the published 14B training."""


@dataclass(frozen=True, kw_only=True)
class ActivationSpec(Spec, ABC):
    """Base class of all specs of activation checkpointing. A spec has no state and runs the blocks itself."""

    @abstractmethod
    def run(self, index: int, block: nn.Module, *args: Any) -> Tensor:
        """Run the block with this index (from 0) on `args`; outputs and gradients are the same for all specs."""


@dataclass(frozen=True, kw_only=True)
class KeepActivations(ActivationSpec):
    """Keep all activations."""

    def run(self, index: int, block: nn.Module, *args: Any) -> Tensor:
        return block(*args)


@dataclass(frozen=True, kw_only=True)
class RecomputeActivations(ActivationSpec):
    """Keep only the inputs of a block, and run it again in the backward pass.

    Args:
        every: recompute the first block of every `every` blocks; 1 recomputes all, as in the published training.
    """

    every: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "every")

    def run(self, index: int, block: nn.Module, *args: Any) -> Tensor:
        # Without gradients `checkpoint` simply runs the block.
        return block(*args) if index % self.every else checkpoint(block, *args, use_reentrant=False)


@dataclass(frozen=True, kw_only=True)
class DiTConfig(Spec):
    """Configuration of the transformer; the default sizes are those of Wan2.2-TI2V-5B, as in the published 5B editor.

    Args:
        dim: width D.
        ffn_dim: width of the feed-forward layers.
        num_heads: number of attention heads; dim / num_heads must be even.
        num_layers: number of blocks.
        freq_dim: channels of the sinusoidal timestep embedding, even.
        latent_channels: channels C of the VAE's latents.
        patch_size: latent frames, rows and columns of one token.
        eps: epsilon of all norms.
        activations: activation checkpointing of the blocks.
        base: initial weights.
        tuning: `Full`, `Frozen`, or `Lora` (the published 14B editor uses `Lora(rank=128)`).
    """

    dim: int = 3072
    ffn_dim: int = 14336
    num_heads: int = 24
    num_layers: int = 30
    freq_dim: int = 256
    latent_channels: int = 48
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    activations: ActivationSpec = field(default_factory=KeepActivations)
    base: BaseSpec = field(default_factory=NewBase)
    tuning: TuningSpec = field(default_factory=Full)

    def __post_init__(self) -> None:
        require_positive(self, "dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "latent_channels", "patch_size")
        if not 0 < self.eps < math.inf:
            raise SpecError("dit.eps must be above 0 and finite", code="out-of-range", got=self.eps)
        # The rotary embedding needs an even number of channels on each axis: d - 2 (d // 3) and d // 3.
        if self.dim % self.num_heads or self.head_dim % 2 or (self.head_dim // 3) % 2:
            message = f"dit.dim {self.dim} cannot be split into {self.num_heads} attention heads with rotary embeddings"
            expected = "dit.dim / dit.num_heads = h with h and h // 3 even, such as 24, 32, 48, 96 or 128"
            raise SpecError(message, code="inconsistent-sizes", expected=expected)
        if self.freq_dim % 2 or self.patch_size[0] != 1:
            got = f"freq_dim {self.freq_dim}, patch_size {self.patch_size}"
            raise SpecError("dit.freq_dim must be even and dit.patch_size[0] must be 1", code="out-of-range", got=got)

    @classmethod
    def wan21_14b(cls) -> DiTConfig:
        """Sizes of Wan2.1-T2V-14B."""
        return cls(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, latent_channels=16)

    @classmethod
    def wan21_1_3b(cls) -> DiTConfig:
        """Sizes of Wan2.1-T2V-1.3B."""
        return cls(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, latent_channels=16)

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.num_heads

    def size_multiple(self, spatial_factor: int) -> int:
        """Pixels of which a video's height and width must be multiples; one latent is `spatial_factor` pixels wide."""
        return spatial_factor * self.patch_size[1]

    def build(self) -> DiT:
        """Build the transformer with its initial weights and adapters."""
        dit = self.base.build(lambda: DiT(self))
        self.tuning.apply(dit, LORA_TARGETS)
        return dit


class Modulation(NamedTuple):
    """Shift, scale and gate of one sub-layer, (B, 1, D) each."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class TimeModulation(NamedTuple):
    """The embedded timestep in float32: for the head (B, D), and as six modulations for the blocks (B, 6, D)."""

    vector_BD: Tensor
    blocks_B6D: Tensor


class PatchEmbedding(nn.Module):
    """Embeds latents as tokens by a 3D convolution whose stride is its kernel size, computed as a matrix product.

    Unlike `nn.Conv3d`, the product accepts zero frames (no reference images). Weight (D, C, pf, ph, pw) and bias (D,)
    have the shapes of `nn.Conv3d`.
    """

    def __init__(self, config: DiTConfig, *, zero_init: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.weight = nn.Parameter(torch.zeros(config.dim, config.latent_channels, *config.patch_size))
        self.bias = nn.Parameter(torch.zeros(config.dim)) if bias else None
        if not zero_init:
            nn.init.xavier_uniform_(self.weight.flatten(1))

    def compute_grid(self, sizes: Sequence[int]) -> tuple[int, int, int]:
        """Compute the token grid of latents of these sizes, both (frames, height, width).

        Raises:
            InputError: if a size is not a multiple of the patch size (the published code crops silently).
        """
        (f, h, w), (pf, ph, pw) = sizes, self.patch_size
        if f % pf or h % ph or w % pw:
            message = f"latents of {f} x {h} x {w} (frames, height, width) are not multiples of {self.patch_size}"
            fix = "resize the video so that its sides are multiples of KiwiEdit.size_multiple"
            raise InputError(message, code="unsupported-video-size", fix=fix)
        return f // pf, h // ph, w // pw

    def forward(self, latents_BCFHW: Tensor) -> Tensor:
        """Embed latents as tokens (B, L, D) in row-major (frame, row, column) order."""
        self.compute_grid(latents_BCFHW.shape[2:])
        pf, ph, pw = self.patch_size
        patches = rearrange(latents_BCFHW, "b c (f pf) (h ph) (w pw) -> b (f h w) (c pf ph pw)", pf=pf, ph=ph, pw=pw)
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class Block(nn.Module):
    """Self-attention and feed-forward, both modulated by the timestep, with cross-attention to the context between."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)
        self.self_attn = SelfAttention(config.dim, config.num_heads, config.eps)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = CrossAttention(config.dim, config.num_heads, config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, config.dim)
        )

    def forward(self, x_BLD: Tensor, time_B6D: Tensor, rope: Rope, context: KeysValues) -> Tensor:
        """Run the block on tokens (B, L, D)."""
        parts = (self.modulation.float() + time_B6D).chunk(6, dim=1)
        attention, ffn = Modulation(*parts[:3]), Modulation(*parts[3:])
        attended = self.self_attn(modulate(x_BLD, attention.shift, attention.scale, self.eps), rope)
        x = x_BLD + _multiply_float32(attended, attention.gate)
        x = x + self.cross_attn(_norm_float32(self.norm3, x), context)
        return x + _multiply_float32(self.ffn(modulate(x, ffn.shift, ffn.scale, self.eps)), ffn.gate)


class Head(nn.Module):
    """Maps tokens to velocity patches, modulated by the embedded timestep."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.head = nn.Linear(config.dim, config.latent_channels * math.prod(config.patch_size))

    def forward(self, x_BLD: Tensor, vector_BD: Tensor) -> Tensor:
        """Compute patches (B, L, pf ph pw C); each sample has its own modulation."""
        shift, scale = (self.modulation.float() + vector_BD[:, None, :]).chunk(2, dim=1)
        return self.head(modulate(x_BLD, shift, scale, self.eps))


class DiT(nn.Module):
    """The transformer. Between `patch_embedding` and `forward`, `KiwiEdit` adds source and reference tokens."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = PatchEmbedding(config)
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for weight in (p for p in self.time_embedding.parameters() if p.ndim == 2):
            nn.init.normal_(weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def embed_timestep(self, timestep_B: Tensor) -> TimeModulation:
        """Embed each sample's timestep (0 to 1000, fractions allowed), once per denoising step."""
        vector = _linear_float32(self.time_embedding[0], embed_sinusoidally(timestep_B, self.config.freq_dim))
        vector = _linear_float32(self.time_embedding[2], F.silu(vector))
        blocks = _linear_float32(self.time_projection[1], F.silu(vector))
        return TimeModulation(vector, blocks.unflatten(1, (6, self.config.dim)))

    def project_context(self, context_BND: Tensor, mask_BN: Tensor | None) -> list[KeysValues]:
        """Compute the context's keys and values for every block, once per edit."""
        return [cast(Block, block).cross_attn.project(context_BND, mask_BN) for block in self.blocks]

    def forward(self, x_BLD: Tensor, time: TimeModulation, rope: Rope, context: Sequence[KeysValues]) -> Tensor:
        """Map tokens (B, L, D) to velocity patches (B, L, pf ph pw C)."""
        for index, (block, kv) in enumerate(zip(self.blocks, context, strict=True)):
            x_BLD = self.config.activations.run(index, block, x_BLD, time.blocks_B6D, rope, kv)
        return self.head(x_BLD, time.vector_BD)

    def unpatchify(self, patches_BLP: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Rearrange velocity patches (B, L, pf ph pw C) to the shape of latents (B, C, F, H, W)."""
        (f, h, w), (pf, ph, pw) = grid, self.config.patch_size
        return rearrange(
            patches_BLP, "b (f h w) (pf ph pw c) -> b c (f pf) (h ph) (w pw)", f=f, h=h, w=w, pf=pf, ph=ph, pw=pw
        )


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Apply layer norm without weights, multiply by 1 + scale, and add the shift; in float32, returned in x's dtype."""
    return (F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1 + scale) + shift).to(x.dtype)


def embed_sinusoidally(timestep_B: Tensor, channels: int) -> Tensor:
    """Compute sinusoids of the timestep (B, channels), cosines first, in float64; returned as float32."""
    half = channels // 2
    frequency = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=timestep_B.device) / half)
    angle = timestep_B.double()[:, None] * frequency[None, :]
    return torch.cat((angle.cos(), angle.sin()), dim=1).float()


def _multiply_float32(x: Tensor, gate: Tensor) -> Tensor:
    return (x.float() * gate).to(x.dtype)


def _norm_float32(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], norm.weight.float(), norm.bias.float(), norm.eps).to(x.dtype)


def _linear_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer in float32 even under autocast, which would round the timestep."""
    assert isinstance(layer, nn.Linear)
    with without_autocast(x.device):
        return F.linear(x.float(), layer.weight.float(), layer.bias.float())
