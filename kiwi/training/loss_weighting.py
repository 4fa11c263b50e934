"""Weights of the training loss over the positions of a video: uniform, or larger where target and source differ.

Latents (B, C, F, H, W): B samples, C channels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from kiwi.errors import SpecError
from kiwi.spec import Spec


@dataclass(frozen=True, kw_only=True)
class LossWeighting(Spec, ABC, formerly=("EmphasisSpec",)):
    """Base class of all loss weightings."""

    @abstractmethod
    def weights(self, target_BCFHW: Tensor, source_BCFHW: Tensor) -> Tensor:
        """Compute the weight of each position, (B, 1, F, H, W), with mean 1 over each sample, from latents."""


@dataclass(frozen=True, kw_only=True)
class Uniform(LossWeighting, formerly=("Even",)):
    """The same weight everywhere, as published."""

    def weights(self, target_BCFHW: Tensor, source_BCFHW: Tensor) -> Tensor:
        return torch.ones_like(target_BCFHW[:, :1])


@dataclass(frozen=True, kw_only=True)
class ChangeWeighted(LossWeighting, formerly=("OnChanges",)):
    """Larger weights where target and source differ. No masks are needed.

    A typical local edit changes a tenth of the frame: a model that copies its source is right at nine tenths of the
    positions of a uniform loss. In the sandbox, after 400 steps of 16 samples without a pretrained DiT, the loss at
    changed positions was 0.92 with uniform weights and 0.87 with a factor of 6; at unchanged positions it was 0.15 and
    0.25 (one run each).

    Args:
        factor: weight of a completely changed position, relative to an unchanged one.
        half: squared difference of latents, averaged over channels, at which the weight is halfway between these two;
            latents have variance 1.
    """

    factor: float = 8.0
    half: float = 0.1

    def __post_init__(self) -> None:
        if self.factor < 1 or self.half <= 0:
            raise SpecError("ChangeWeighted needs factor >= 1 and half > 0", code="out-of-range", got=self)

    def weights(self, target_BCFHW: Tensor, source_BCFHW: Tensor) -> Tensor:
        difference = (target_BCFHW.float() - source_BCFHW.float()).square().mean(dim=1, keepdim=True)
        weights = 1 + (self.factor - 1) * difference / (difference + self.half)
        return weights / weights.mean(dim=(1, 2, 3, 4), keepdim=True)
