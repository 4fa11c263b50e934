"""Hybrid latent injection: how the source video and the reference images enter the DiT's token sequence.

Each way is a spec and a module with three moves: `embed` (latents to tokens, once an edit), `join`
(tokens into the sequence, every step) and `drop` (its own tokens out again after the head).
B batch, C channels, F H W latent frames, height and width, L tokens, D width; R tokens of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from kiwi.models.dit.transformer import DiTConfig, PatchEmbedding
from kiwi.models.scaling import ConstantScale, ScaleSpec, SigmaScale
from kiwi.spec import Spec


class Injection(nn.Module, ABC):
    """What all ways of injecting latents share."""

    @abstractmethod
    def embed(self, latents_BCFHW: Tensor, noisy_embedding: PatchEmbedding) -> Tensor:
        """Tokens of the condition, (B, R, D); zero frames give zero tokens.

        Args:
            latents_BCFHW: of the source video, or a frame a reference image.
            noisy_embedding: the DiT's own, for those who share it.
        """

    @abstractmethod
    def join(self, tokens_BLD: Tensor, own_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        """The sequence with the condition in it."""

    def num_added_tokens(self, own_BRD: Tensor) -> int:
        """How many tokens longer `join` makes the sequence; whole frames."""
        return 0

    def drop(self, tokens_BLP: Tensor, own_BRD: Tensor) -> Tensor:
        """The sequence without the tokens that `join` put in."""
        return tokens_BLP


# --- source -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SourceSpec(Spec, ABC):
    """The family of ways in which the source video's latents condition the DiT."""

    @abstractmethod
    def build(self, dit: DiTConfig) -> Injection:
        """The module, for a DiT of these sizes."""


@dataclass(frozen=True, kw_only=True)
class AddSource(SourceSpec):
    """Source latents through a patch embedding of their own, scaled by gamma(t), added to the noisy tokens.

    The embedding starts at zero, so that training starts at the base model.
    """

    scale: ScaleSpec = field(default_factory=SigmaScale)

    def build(self, dit: DiTConfig) -> Injection:
        own = PatchEmbedding(dit.latent_channels, dit.dim, dit.patch_size, zero_init=True)
        return AddModule(own, self.scale.build())


@dataclass(frozen=True, kw_only=True)
class SharedEmbeddingSource(SourceSpec):
    """Source latents through the DiT's own patch embedding, scaled by gamma(t), added to the noisy tokens.

    The paper's ablation of the second embedding. There is nothing to start at zero: it differs from `NoSource`
    from the first step.
    """

    scale: ScaleSpec = field(default_factory=SigmaScale)

    def build(self, dit: DiTConfig) -> Injection:
        return SharedModule(self.scale.build())


@dataclass(frozen=True, kw_only=True)
class ChannelConcatSource(SourceSpec):
    """Noisy and source latents concatenated along the channels, one patch embedding over both.

    A convolution over concatenated channels is the sum of one over each; the noisy half is the DiT's, the source's
    half stands here. The paper's ablation of adding with gamma(t). Note what that makes it: `AddSource` with
    `ConstantScale`, but for the bias.

    Args:
        init: of the source's half: "zero" starts at the base model, "xavier" as a patch embedding is started.
    """

    init: Literal["zero", "xavier"] = "zero"

    def build(self, dit: DiTConfig) -> Injection:
        zero = self.init == "zero"
        own = PatchEmbedding(dit.latent_channels, dit.dim, dit.patch_size, zero_init=zero, bias=False)
        return AddModule(own, ConstantScale().build())


@dataclass(frozen=True, kw_only=True)
class TokenConcatSource(SourceSpec):
    """Source latents as further frames after the video's (twice the tokens), through an embedding of their own.

    The embedding starts at zero, as the reference's does. Zero tokens still take part in attention, so this differs
    from `NoSource` from the first step. Never scaled by time.
    """

    def build(self, dit: DiTConfig) -> Injection:
        return AppendModule(dit)


@dataclass(frozen=True, kw_only=True)
class NoSource(SourceSpec):
    """The DiT does not see the source video."""

    def build(self, dit: DiTConfig) -> Injection:
        return NoInjection(dit.dim)


# --- reference ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ReferenceSpec(Spec, ABC):
    """The family of ways in which reference images' latents condition the DiT."""

    @abstractmethod
    def build(self, dit: DiTConfig) -> Injection:
        """The module, for a DiT of these sizes."""


@dataclass(frozen=True, kw_only=True)
class AppendReference(ReferenceSpec):
    """Reference latents as further frames after the video's, one an image; their embedding starts at zero."""

    def build(self, dit: DiTConfig) -> Injection:
        return AppendModule(dit)


@dataclass(frozen=True, kw_only=True)
class PrependReference(ReferenceSpec):
    """Reference latents as further frames before the video's (`ref_pad_first` of the published code)."""

    def build(self, dit: DiTConfig) -> Injection:
        return PrependModule(dit)


@dataclass(frozen=True, kw_only=True)
class NoReference(ReferenceSpec):
    """The DiT does not see reference images as tokens."""

    def build(self, dit: DiTConfig) -> Injection:
        return NoInjection(dit.dim)


# --- modules ------------------------------------------------------------------------------------------


class Scaled(Injection):
    """x <- x + gamma(sigma) * tokens."""

    def __init__(self, scale: nn.Module) -> None:
        super().__init__()
        self.scale = scale

    def join(self, tokens_BLD: Tensor, own_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        # In float32: gamma(t) in bf16 would round the noise level.
        scaled = self.scale(sigma_B.float())[:, None, None] * own_BRD.float()
        return (tokens_BLD.float() + scaled).to(tokens_BLD.dtype)


class AddModule(Scaled):
    """Tokens from an embedding of its own; the bias is scaled too."""

    def __init__(self, patch_embedding: PatchEmbedding, scale: nn.Module) -> None:
        super().__init__(scale)
        self.patch_embedding = patch_embedding

    def embed(self, latents_BCFHW: Tensor, noisy_embedding: PatchEmbedding) -> Tensor:
        return self.patch_embedding(latents_BCFHW)


class SharedModule(Scaled):
    """Tokens from the DiT's embedding."""

    def embed(self, latents_BCFHW: Tensor, noisy_embedding: PatchEmbedding) -> Tensor:
        return noisy_embedding(latents_BCFHW)


class AppendModule(Injection):
    """[video tokens, own tokens]; never scaled by time."""

    def __init__(self, dit: DiTConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(dit.latent_channels, dit.dim, dit.patch_size, zero_init=True)

    def embed(self, latents_BCFHW: Tensor, noisy_embedding: PatchEmbedding) -> Tensor:
        return self.patch_embedding(latents_BCFHW)

    def join(self, tokens_BLD: Tensor, own_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        return torch.cat((tokens_BLD, own_BRD.to(tokens_BLD.dtype)), dim=1)

    def num_added_tokens(self, own_BRD: Tensor) -> int:
        return own_BRD.shape[1]

    def drop(self, tokens_BLP: Tensor, own_BRD: Tensor) -> Tensor:
        return tokens_BLP[:, : tokens_BLP.shape[1] - own_BRD.shape[1]]


class PrependModule(AppendModule):
    """[own tokens, video tokens]."""

    def join(self, tokens_BLD: Tensor, own_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        return torch.cat((own_BRD.to(tokens_BLD.dtype), tokens_BLD), dim=1)

    def drop(self, tokens_BLP: Tensor, own_BRD: Tensor) -> Tensor:
        return tokens_BLP[:, own_BRD.shape[1] :]


class NoInjection(Injection):
    """The "off" of both: no tokens, the sequence as it was."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def embed(self, latents_BCFHW: Tensor, noisy_embedding: PatchEmbedding) -> Tensor:
        return latents_BCFHW.new_zeros(latents_BCFHW.shape[0], 0, self.dim)

    def join(self, tokens_BLD: Tensor, own_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        return tokens_BLD
