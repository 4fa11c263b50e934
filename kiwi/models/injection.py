"""Hybrid latent injection: how the source video and the reference images enter the DiT's token sequence.

Each injection is a spec and a module with three methods: `embed` (latents to tokens, once per edit), `join` (these
tokens into the sequence, every step) and `drop` (added tokens out of the sequence, after the head). B batch, C
channels, F H W latent frames, height and width, L tokens of the sequence, R tokens of the condition, D width, P patch
channels.
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
    """The interface of all injections."""

    @abstractmethod
    def embed(self, latents_BCFHW: Tensor, dit_embedding: PatchEmbedding) -> Tensor:
        """Embed the condition as tokens (B, R, D); zero frames give zero tokens.

        Args:
            latents_BCFHW: of the source video, or of the reference images, one frame each.
            dit_embedding: the DiT's patch embedding of noisy latents, which an injection may share.
        """

    @abstractmethod
    def join(self, tokens_BLD: Tensor, condition_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        """Add the condition to the sequence."""

    def num_added_tokens(self, condition_BRD: Tensor) -> int:
        """By how many tokens `join` lengthens the sequence; whole frames."""
        return 0

    def drop(self, tokens_BLP: Tensor, condition_BRD: Tensor) -> Tensor:
        """Remove the tokens that `join` added to the sequence."""
        return tokens_BLP


# --- source -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SourceSpec(Spec, ABC):
    """The family of injections of the source video's latents."""

    @abstractmethod
    def build(self, dit: DiTConfig) -> Injection:
        """Build the module for a DiT of these sizes."""


@dataclass(frozen=True, kw_only=True)
class AddSource(SourceSpec):
    """Source latents through a separate patch embedding, scaled by gamma(t), added to the noisy tokens.

    The embedding is initialised to zero, so that training starts from the base model.

    Args:
        scale: gamma(t).
    """

    scale: ScaleSpec = field(default_factory=SigmaScale)

    def build(self, dit: DiTConfig) -> Injection:
        embedding = PatchEmbedding(dit.latent_channels, dit.dim, dit.patch_size, zero_init=True)
        return AddModule(embedding, self.scale.build())


@dataclass(frozen=True, kw_only=True)
class SharedEmbeddingSource(SourceSpec):
    """Source latents through the DiT's own patch embedding, scaled by gamma(t), added to the noisy tokens.

    The paper's ablation of the separate embedding. Nothing is initialised to zero: it differs from `NoSource` from the
    first step.

    Args:
        scale: gamma(t).
    """

    scale: ScaleSpec = field(default_factory=SigmaScale)

    def build(self, dit: DiTConfig) -> Injection:
        return SharedModule(self.scale.build())


@dataclass(frozen=True, kw_only=True)
class ChannelConcatSource(SourceSpec):
    """Noisy and source latents concatenated along the channels, one patch embedding over both.

    The paper's ablation of adding with gamma(t). A convolution over concatenated channels is the sum of one over each:
    the noisy half is the DiT's embedding, the source's half is here. It therefore equals `AddSource` with
    `ConstantScale`, but for the bias.

    Args:
        init: of the source's half: "zero" starts from the base model, "xavier" is the usual one of a patch embedding.
    """

    init: Literal["zero", "xavier"] = "zero"

    def build(self, dit: DiTConfig) -> Injection:
        zero = self.init == "zero"
        embedding = PatchEmbedding(dit.latent_channels, dit.dim, dit.patch_size, zero_init=zero, bias=False)
        return AddModule(embedding, ConstantScale().build())


@dataclass(frozen=True, kw_only=True)
class TokenConcatSource(SourceSpec):
    """Source latents as additional frames after the video's (twice the tokens), through a separate embedding.

    The embedding is initialised to zero, like the reference's. Zero tokens still take part in attention, so this
    differs from `NoSource` from the first step. There is no scaling by time.
    """

    def build(self, dit: DiTConfig) -> Injection:
        return AppendModule(dit)


@dataclass(frozen=True, kw_only=True)
class NoSource(SourceSpec):
    """The DiT does not see the source video's latents."""

    def build(self, dit: DiTConfig) -> Injection:
        return NoInjection(dit.dim)


# --- reference ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ReferenceSpec(Spec, ABC):
    """The family of injections of the reference images' latents."""

    @abstractmethod
    def build(self, dit: DiTConfig) -> Injection:
        """Build the module for a DiT of these sizes."""


@dataclass(frozen=True, kw_only=True)
class AppendReference(ReferenceSpec):
    """Reference latents as additional frames after the video's, one per image; their embedding starts at zero."""

    def build(self, dit: DiTConfig) -> Injection:
        return AppendModule(dit)


@dataclass(frozen=True, kw_only=True)
class PrependReference(ReferenceSpec):
    """Reference latents as additional frames before the video's (`ref_pad_first` of the published code)."""

    def build(self, dit: DiTConfig) -> Injection:
        return PrependModule(dit)


@dataclass(frozen=True, kw_only=True)
class NoReference(ReferenceSpec):
    """The DiT does not see the reference images' latents."""

    def build(self, dit: DiTConfig) -> Injection:
        return NoInjection(dit.dim)


# --- modules ------------------------------------------------------------------------------------------


class Scaled(Injection):
    """x <- x + gamma(sigma) * tokens."""

    def __init__(self, scale: nn.Module) -> None:
        super().__init__()
        self.scale = scale

    def join(self, tokens_BLD: Tensor, condition_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        # In float32: gamma(t) in bf16 would round the noise level.
        scaled = self.scale(sigma_B.float())[:, None, None] * condition_BRD.float()
        return (tokens_BLD.float() + scaled).to(tokens_BLD.dtype)


class AddModule(Scaled):
    """Tokens from a separate embedding; its bias is scaled too."""

    def __init__(self, patch_embedding: PatchEmbedding, scale: nn.Module) -> None:
        super().__init__(scale)
        self.patch_embedding = patch_embedding

    def embed(self, latents_BCFHW: Tensor, dit_embedding: PatchEmbedding) -> Tensor:
        return self.patch_embedding(latents_BCFHW)


class SharedModule(Scaled):
    """Tokens from the DiT's embedding."""

    def embed(self, latents_BCFHW: Tensor, dit_embedding: PatchEmbedding) -> Tensor:
        return dit_embedding(latents_BCFHW)


class AppendModule(Injection):
    """[video tokens, condition tokens], without scaling by time."""

    def __init__(self, dit: DiTConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(dit.latent_channels, dit.dim, dit.patch_size, zero_init=True)

    def embed(self, latents_BCFHW: Tensor, dit_embedding: PatchEmbedding) -> Tensor:
        return self.patch_embedding(latents_BCFHW)

    def join(self, tokens_BLD: Tensor, condition_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        return torch.cat((tokens_BLD, condition_BRD.to(tokens_BLD.dtype)), dim=1)

    def num_added_tokens(self, condition_BRD: Tensor) -> int:
        return condition_BRD.shape[1]

    def drop(self, tokens_BLP: Tensor, condition_BRD: Tensor) -> Tensor:
        return tokens_BLP[:, : tokens_BLP.shape[1] - condition_BRD.shape[1]]


class PrependModule(AppendModule):
    """[condition tokens, video tokens]."""

    def join(self, tokens_BLD: Tensor, condition_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        return torch.cat((condition_BRD.to(tokens_BLD.dtype), tokens_BLD), dim=1)

    def drop(self, tokens_BLP: Tensor, condition_BRD: Tensor) -> Tensor:
        return tokens_BLP[:, condition_BRD.shape[1] :]


class NoInjection(Injection):
    """No tokens, and the sequence unchanged: the "off" of both families."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def embed(self, latents_BCFHW: Tensor, dit_embedding: PatchEmbedding) -> Tensor:
        return latents_BCFHW.new_zeros(latents_BCFHW.shape[0], 0, self.dim)

    def join(self, tokens_BLD: Tensor, condition_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        return tokens_BLD
