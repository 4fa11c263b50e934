"""Hybrid latent injection: how the source video and the reference images enter the DiT's token sequence.

Each injection is a spec and a module with three methods: `embed` turns latents into tokens, once per edit;
`add_condition` adds these tokens to the sequence, in every step; `remove_added_tokens` removes tokens that lengthened
the sequence, after the DiT. gamma(t) is the scale of the source tokens at a noise level (kiwi.models.scaling).

B batch, C channels, F H W latent frames, height and width, L tokens of the sequence, R tokens of the condition (the
source or the references), D width, P channels of a velocity patch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from kiwi.models.dit.transformer import DiTConfig, PatchEmbedding
from kiwi.models.scaling import ConstantScale, ScaleSpec, SigmaScale
from kiwi.spec import Spec


class Injection(nn.Module, ABC):
    """Base class of all injection modules."""

    @abstractmethod
    def embed(self, latents_BCFHW: Tensor, dit_embedding: PatchEmbedding) -> Tensor:
        """Embed the condition as tokens (B, R, D); zero frames give zero tokens.

        Args:
            latents_BCFHW: latents of the source video, or of the reference images (one frame each).
            dit_embedding: the DiT's patch embedding of noisy latents, which an injection may share.
        """

    @abstractmethod
    def add_condition(self, tokens_BLD: Tensor, condition_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        """Add the condition to the sequence."""

    def num_added_tokens(self, condition_BRD: Tensor) -> int:
        """Number of tokens by which `add_condition` lengthens the sequence; always whole frames."""
        return 0

    def remove_added_tokens(self, tokens_BLP: Tensor, condition_BRD: Tensor) -> Tensor:
        """Remove the tokens that `add_condition` added to the sequence, which now holds velocity patches."""
        return tokens_BLP


@dataclass(frozen=True, kw_only=True)
class InjectionSpec(Spec, ABC):
    """Base class of all specs that inject latents."""

    @abstractmethod
    def build(self, dit: DiTConfig) -> Injection:
        """Build the module for a DiT of these sizes."""


@dataclass(frozen=True, kw_only=True)
class SourceSpec(InjectionSpec):
    """Base class of all specs that inject the source video's latents."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSpec(InjectionSpec):
    """Base class of all specs that inject the reference images' latents."""


# --- source -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AddSource(SourceSpec):
    """Embed the source latents with a separate patch embedding, scale them by gamma(t), add them to the noisy tokens.

    The embedding is initialised to zero, so that training starts from the base model.

    Args:
        scale: the function gamma(t).
    """

    scale: ScaleSpec = field(default_factory=SigmaScale)

    def build(self, dit: DiTConfig) -> Injection:
        return AddInjection(PatchEmbedding(dit, zero_init=True), self.scale.build())


@dataclass(frozen=True, kw_only=True)
class SharedEmbeddingSource(SourceSpec):
    """Embed the source latents with the DiT's patch embedding, scale them by gamma(t), add them to the noisy tokens.

    This is the paper's ablation of the separate embedding. Nothing is initialised to zero, so that the output differs
    from that of `NoSource` from the first step.

    Args:
        scale: the function gamma(t).
    """

    scale: ScaleSpec = field(default_factory=SigmaScale)

    def build(self, dit: DiTConfig) -> Injection:
        return SharedEmbeddingInjection(self.scale.build())


@dataclass(frozen=True, kw_only=True)
class ChannelConcatSource(SourceSpec):
    """Concatenate noisy and source latents along the channels, with one patch embedding over both.

    This is the paper's ablation of scaling by gamma(t). A convolution over concatenated channels is the sum of two
    convolutions: the DiT's patch embedding is the one over noisy channels, this module the one over source channels.
    It therefore equals `AddSource` with `ConstantScale`, except that it has no bias.

    Args:
        init: initial weights for the source channels: "zero" starts training from the base model, "xavier" is the
            usual initialisation of a patch embedding.
    """

    init: Literal["zero", "xavier"] = "zero"

    def build(self, dit: DiTConfig) -> Injection:
        embedding = PatchEmbedding(dit, zero_init=self.init == "zero", bias=False)
        return AddInjection(embedding, ConstantScale().build())


@dataclass(frozen=True, kw_only=True)
class TokenConcatSource(SourceSpec):
    """Embed the source latents separately and append them as additional frames (twice the tokens).

    The embedding is initialised to zero, as for reference images. Zero tokens still take part in attention, so that
    the output differs from that of `NoSource` from the first step. gamma(t) is not applied.
    """

    def build(self, dit: DiTConfig) -> Injection:
        return AppendInjection(dit)


@dataclass(frozen=True, kw_only=True)
class NoSource(SourceSpec):
    """Do not give the source video's latents to the DiT."""

    def build(self, dit: DiTConfig) -> Injection:
        return NoInjection(dit.dim)


# --- reference ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AppendReference(ReferenceSpec):
    """Append one frame of latents per reference image to the video's; their embedding is initialised to zero."""

    def build(self, dit: DiTConfig) -> Injection:
        return AppendInjection(dit)


@dataclass(frozen=True, kw_only=True)
class PrependReference(ReferenceSpec):
    """Prepend the reference latents as frames before the video's (`ref_pad_first` in the published code)."""

    def build(self, dit: DiTConfig) -> Injection:
        return PrependInjection(dit)


@dataclass(frozen=True, kw_only=True)
class NoReference(ReferenceSpec):
    """Do not give the reference images' latents to the DiT."""

    def build(self, dit: DiTConfig) -> Injection:
        return NoInjection(dit.dim)


# --- modules ------------------------------------------------------------------------------------------


class ScaledInjection(Injection):
    """Add the condition, scaled by gamma(t), to the tokens of the sequence."""

    def __init__(self, scale: nn.Module) -> None:
        super().__init__()
        self.scale = scale

    def add_condition(self, tokens_BLD: Tensor, condition_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        # In float32, because bf16 would round gamma(t).
        scaled = self.scale(sigma_B.float())[:, None, None] * condition_BRD.float()
        return (tokens_BLD.float() + scaled).to(tokens_BLD.dtype)


class AddInjection(ScaledInjection):
    """Scaled addition of tokens from a separate embedding; gamma(t) also scales the embedding's bias."""

    def __init__(self, patch_embedding: PatchEmbedding, scale: nn.Module) -> None:
        super().__init__(scale)
        self.patch_embedding = patch_embedding

    def embed(self, latents_BCFHW: Tensor, dit_embedding: PatchEmbedding) -> Tensor:
        return self.patch_embedding(latents_BCFHW)


class SharedEmbeddingInjection(ScaledInjection):
    """Scaled addition of tokens from the DiT's patch embedding."""

    def embed(self, latents_BCFHW: Tensor, dit_embedding: PatchEmbedding) -> Tensor:
        return dit_embedding(latents_BCFHW)


class AppendInjection(Injection):
    """Sequence [video tokens, condition tokens], without gamma(t)."""

    def __init__(self, dit: DiTConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(dit, zero_init=True)

    def embed(self, latents_BCFHW: Tensor, dit_embedding: PatchEmbedding) -> Tensor:
        return self.patch_embedding(latents_BCFHW)

    def add_condition(self, tokens_BLD: Tensor, condition_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        return torch.cat((tokens_BLD, condition_BRD.to(tokens_BLD.dtype)), dim=1)

    def num_added_tokens(self, condition_BRD: Tensor) -> int:
        return condition_BRD.shape[1]

    def remove_added_tokens(self, tokens_BLP: Tensor, condition_BRD: Tensor) -> Tensor:
        return tokens_BLP[:, : tokens_BLP.shape[1] - condition_BRD.shape[1]]


class PrependInjection(AppendInjection):
    """Sequence [condition tokens, video tokens], without gamma(t)."""

    def add_condition(self, tokens_BLD: Tensor, condition_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        return torch.cat((condition_BRD.to(tokens_BLD.dtype), tokens_BLD), dim=1)

    def remove_added_tokens(self, tokens_BLP: Tensor, condition_BRD: Tensor) -> Tensor:
        return tokens_BLP[:, condition_BRD.shape[1] :]


class NoInjection(Injection):
    """No condition: the sequence is unchanged."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def embed(self, latents_BCFHW: Tensor, dit_embedding: PatchEmbedding) -> Tensor:
        return latents_BCFHW.new_zeros(latents_BCFHW.shape[0], 0, self.dim)

    def add_condition(self, tokens_BLD: Tensor, condition_BRD: Tensor, sigma_B: Tensor) -> Tensor:
        return tokens_BLD
