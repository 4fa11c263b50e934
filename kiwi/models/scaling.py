"""Timestep scaling gamma(t): how strongly the source's tokens are added at each noise level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from kiwi.spec import Spec


@dataclass(frozen=True, kw_only=True)
class ScaleSpec(Spec, ABC):
    """The family of gamma(t)."""

    @abstractmethod
    def build(self) -> nn.Module:
        """A module from sigma (B,) to gamma (B,)."""


@dataclass(frozen=True, kw_only=True)
class SigmaScale(ScaleSpec):
    """gamma(t) = sigma(t): all of the source's structure at high noise, none at the end (the released code)."""

    def build(self) -> SigmaScaleModule:
        return SigmaScaleModule()


class SigmaScaleModule(nn.Module):
    """The identity on sigma."""

    def forward(self, sigma_B: Tensor) -> Tensor:
        """gamma of each sample, shape (B,)."""
        return sigma_B
