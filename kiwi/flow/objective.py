"""The training objective: velocity matching."""

from __future__ import annotations

from torch import Tensor


def expand(per_sample_B: Tensor, like: Tensor) -> Tensor:
    """Reshape a per-sample value from (B,) to (B, 1, ..., 1), to multiply `like` with."""
    return per_sample_B.reshape(-1, *(1,) * (like.ndim - 1)).to(like)


def add_noise(x0: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
    """x_sigma = (1 - sigma) x_0 + sigma n, with one sigma per sample."""
    sigma = expand(sigma_B, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """d x_sigma / d sigma = n - x_0, the model's target."""
    return noise - x0


def velocity_loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, in float32, shape (B,).

    Args:
        prediction, target: velocities.
        weights: of their elements, broadcast to them; uniform if not given.
    """
    errors = (prediction.float() - target.float()).square()
    return (errors if weights is None else errors * weights).flatten(1).mean(dim=1)
