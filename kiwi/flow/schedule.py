"""Flow matching: the noise schedule (sigma, its shift, timesteps, loss weight) and the training objective (velocity).

A sample x_0 at noise level sigma in [0, 1] is x_sigma = (1 - sigma) x_0 + sigma n; the model's timestep is
num_train_timesteps * sigma. Everything is computed in float32, as in the published code; timesteps are never rounded
to bf16.
"""

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
        shift: values above 1 place more of the steps at high noise; the published models use 5.
        num_train_timesteps: timestep of pure noise, and number of sigmas over which the mean loss weight is 1.
        weighting: weight of the training loss by noise level: the published "bell" around the middle timestep, or
            "even". Near pure noise, where only the conditions determine the video, the bell is almost 0: a pretrained
            model can already generate there, but a model trained from scratch has to learn it.
    """

    shift: float = 5.0
    num_train_timesteps: int = 1000
    weighting: Literal["bell", "even"] = "bell"

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf or self.num_train_timesteps < 1:
            message = "the schedule needs shift > 0 and num_train_timesteps >= 1"
            raise SpecError(message, code="out-of-range", got=self)

    def sigma(self, s: Tensor) -> Tensor:
        """Shift the linear position s in [0, 1], of any shape; 1 is pure noise."""
        return self.shift * s / (1 + (self.shift - 1) * s)

    def sigmas(self, steps: int, *, strength: float = 1.0, sigma_min: float = 0.0) -> Tensor:
        """Compute the grid of a sampler: `steps` decreasing sigmas and a final 0, shape (steps + 1,).

        Args:
            steps: number of model calls of a first-order solver, at least 1.
            strength: start of the grid; 1 is pure noise, values towards 0 start closer to `sigma_min`.
            sigma_min: linear position (before the shift) where the evenly spaced grid ends; its last entry is set to 0.
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
        """Convert a noise level to the model's timestep in [0, num_train_timesteps]."""
        return sigma * self.num_train_timesteps

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Compute the weight of the training loss, whose mean over the training sigmas is 1.

        The bell is Gaussian-shaped and peaks at half of num_train_timesteps. At sigma 1 it is 0, because the published
        weight subtracts the minimum over the training sigmas.
        """
        if self.weighting == "even":
            return torch.ones_like(sigma)
        table = self._bell_weight(self.sigmas(self.num_train_timesteps)[:-1])
        floor = table.min()
        scale = self.num_train_timesteps / (table - floor).sum()
        return ((self._bell_weight(sigma) - floor) * scale).clamp_min(0.0)

    def _bell_weight(self, sigma: Tensor) -> Tensor:
        n = self.num_train_timesteps
        return torch.exp(-2 * ((self.timestep(sigma) - n / 2) / n) ** 2)


def find_nearest_index(table: Tensor, value: Tensor) -> Tensor:
    """Find the index of the table entry nearest to each value (the first on ties), as the published code does."""
    return (table[None, :] - value.reshape(-1, 1)).abs().argmin(dim=1).reshape(value.shape)


def add_noise(x0: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
    """Compute x_sigma = (1 - sigma) x_0 + sigma n, with one sigma per sample."""
    sigma = sigma_B.reshape(-1, *(1,) * (x0.ndim - 1)).to(x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """Compute the model's target, d x_sigma / d sigma = n - x_0."""
    return noise - x0


def velocity_loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the mean squared error of each sample in float32, shape (B,); `weights` broadcast to the errors."""
    errors = (prediction.float() - target.float()).square()
    return (errors if weights is None else errors * weights).flatten(1).mean(dim=1)
