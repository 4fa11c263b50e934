"""Timestep scaling gamma(t): the factor with which the source's tokens are added at each noise level.

The paper describes a learnable scalar; the released code multiplies by the schedule's sigma(t). Every learnable gamma
here is sigma(t) plus a term that is initialised to zero, so that training starts at the released code's gamma.
Everything is computed in float32, because bf16 would round the noise level. B samples.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kiwi.errors import SpecError
from kiwi.models.device import without_autocast
from kiwi.spec import Spec, require_positive


@dataclass(frozen=True, kw_only=True)
class ScaleSpec(Spec, ABC):
    """Base class of all specs of gamma(t)."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Build a module that maps noise levels sigma (B,) to gamma (B,)."""


@dataclass(frozen=True, kw_only=True)
class SigmaScale(ScaleSpec):
    """gamma(t) = sigma(t), as in the released code: the source is added fully at high noise, not at all at the end."""

    def build(self) -> nn.Module:
        return nn.Identity()


@dataclass(frozen=True, kw_only=True)
class ConstantScale(ScaleSpec):
    """gamma(t) = value at every noise level: no timestep scaling.

    Args:
        value: gamma at every noise level.
    """

    value: float = 1.0

    def build(self) -> nn.Module:
        return ConstantScaleModule(self.value)


class ConstantScaleModule(nn.Module):
    """Maps every noise level to the same gamma."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, sigma_B: Tensor) -> Tensor:
        return torch.full_like(sigma_B, self.value)


@dataclass(frozen=True, kw_only=True)
class LearnableScale(ScaleSpec):
    """gamma(t) = sigma(t) + a learned scalar per noise level, as the paper describes; initially sigma(t).

    The scalars belong to evenly spaced sigmas from 0 to 1, and are interpolated linearly between them.

    Args:
        bins: number of scalars; 1000 is one for each training timestep, with fewer, neighbouring timesteps share them.
    """

    bins: int = 16

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise SpecError("LearnableScale needs at least 2 bins", code="out-of-range", got=self.bins)

    def build(self) -> nn.Module:
        return LearnableScaleModule(self.bins)


class LearnableScaleModule(nn.Module):
    """Adds linearly interpolated learned offsets to sigma."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(bins))

    def forward(self, sigma_B: Tensor) -> Tensor:
        position = sigma_B.clamp(0.0, 1.0) * (len(self.offset) - 1)
        lower = position.floor().clamp(max=len(self.offset) - 2)
        offset, index = self.offset.float(), lower.long()
        return sigma_B + torch.lerp(offset[index], offset[index + 1], position - lower)


@dataclass(frozen=True, kw_only=True)
class FunctionScale(ScaleSpec):
    """gamma(t) = sigma(t) + an MLP of cosines of sigma; initially sigma(t).

    Args:
        width: number of hidden units of the MLP.
        frequencies: number of cosines cos(pi k sigma), k = 1, 2, ...
    """

    width: int = 32
    frequencies: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "width", "frequencies")

    def build(self) -> nn.Module:
        return FunctionScaleModule(self)


class FunctionScaleModule(nn.Module):
    """Adds the output of an MLP to sigma; its last layer is initialised to zero."""

    def __init__(self, spec: FunctionScale) -> None:
        super().__init__()
        self.frequencies = spec.frequencies
        self.hidden, self.last = nn.Linear(spec.frequencies, spec.width), nn.Linear(spec.width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, sigma_B: Tensor) -> Tensor:
        k = torch.arange(1, self.frequencies + 1, device=sigma_B.device)
        with without_autocast(sigma_B.device):
            features = torch.cos(torch.pi * k * sigma_B[:, None]).to(self.hidden.weight.dtype)
            return sigma_B + self.last(nn.functional.silu(self.hidden(features)))[:, 0].float()
