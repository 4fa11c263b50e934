"""The noise schedule of flow matching: sigma, its shift, timesteps and the loss weight.

Noise at level sigma in [0, 1] gives x_sigma = (1 - sigma) x_0 + sigma n; the model's timestep is 1000 sigma. All of it
is in float32, as published; timesteps are never rounded to a shorter type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kiwi.errors import SpecError
from kiwi.spec import Spec


@dataclass(frozen=True, kw_only=True)
class FlowSchedule(Spec):
    """Shifted linear schedule: sigma = shift s / (1 + (shift - 1) s) for s running linearly from 1 to 0.

    Args:
        shift: above 1 spends more of the steps at high noise; 5 for the published models.
        num_train_timesteps: the timestep of pure noise, and the number of tabulated training sigmas.
        weighting: of the training loss: the published "bell" around the middle timestep, or "even" over all noise
            levels. Near pure noise, where only the conditions determine the video, the bell weight is almost 0: a
            pretrained model can generate there already, a model trained from scratch has to learn it.
    """

    shift: float = 5.0
    num_train_timesteps: int = 1000
    weighting: Literal["bell", "even"] = "bell"

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf or self.num_train_timesteps < 1:
            message = "the schedule needs shift > 0 and num_train_timesteps >= 1"
            raise SpecError(message, code="out-of-range", got=self)

    def sigma(self, s: Tensor) -> Tensor:
        """Sigma at the linear position s in [0, 1], of any shape; 1 is pure noise."""
        return self.shift * s / (1 + (self.shift - 1) * s)

    def sigmas(self, steps: int, *, strength: float = 1.0, sigma_min: float = 0.0) -> Tensor:
        """The grid of a sampler: `steps` decreasing sigmas and a closing 0, shape (steps + 1,).

        Args:
            steps: number of model calls of a first-order solver, at least 1.
            strength: where sampling starts, from `sigma_min` (0) to pure noise (1).
            sigma_min: linear position at which the evenly spaced steps would end; the last one continues to 0.
        """
        if steps < 1 or not 0 < strength <= 1 or not 0 <= sigma_min < 1:
            raise SpecError(
                "a sampling grid needs steps >= 1, strength in (0, 1] and sigma_min in [0, 1)",
                code="out-of-range",
                got=f"steps={steps}, strength={strength}, sigma_min={sigma_min}",
            )
        start = sigma_min + (1.0 - sigma_min) * strength
        positions = torch.linspace(start, sigma_min, steps + 1, dtype=torch.float32)
        positions[-1] = 0.0
        return self.sigma(positions)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The model's timestep in [0, num_train_timesteps] at noise level sigma."""
        return sigma * self.num_train_timesteps

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight of the training loss, with mean 1 over the training table.

        The bell is Gaussian-shaped and peaks at timestep 500. At sigma 1 it is 0, because the published weight
        subtracts the table's minimum.
        """
        if self.weighting == "even":
            return torch.ones_like(sigma)
        table = self._bell(self.sigmas(self.num_train_timesteps)[:-1])
        floor = table.min()
        scale = self.num_train_timesteps / (table - floor).sum()
        return ((self._bell(sigma) - floor) * scale).clamp_min(0.0)

    def _bell(self, sigma: Tensor) -> Tensor:
        n = self.num_train_timesteps
        return torch.exp(-2 * ((self.timestep(sigma) - n / 2) / n) ** 2)


def nearest(table: Tensor, value: Tensor) -> Tensor:
    """Index of the table's entry nearest to each value, the first on ties, as the published code looks up sigmas."""
    return (table[None, :] - value.reshape(-1, 1)).abs().argmin(dim=1).reshape(value.shape)
