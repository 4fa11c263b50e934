"""The training objective: velocity matching, and what a predictor could reach without seeing the source."""

from __future__ import annotations

import torch
from torch import Tensor


def expand(per_sample_B: Tensor, like: Tensor) -> Tensor:
    """A per-sample value of shape (B,) as (B, 1, ..., 1), to multiply `like` with."""
    return per_sample_B.reshape(-1, *(1,) * (like.ndim - 1)).to(like)


def add_noise(x0: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
    """x_sigma = (1 - sigma) x_0 + sigma n, with one sigma a sample."""
    sigma = expand(sigma_B, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """d x_sigma / d sigma = n - x_0, what the model learns to predict."""
    return noise - x0


def velocity_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, in float32, shape (B,)."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


def blind_loss(variances: Tensor, sigma: Tensor) -> Tensor:
    """Smallest velocity loss of a linear predictor that sees x_sigma and knows the data's covariance, but no source.

    For x_0 = mean + one coordinate of variance v, noise n ~ N(0, 1) and x_sigma as above, the best estimate of
    n - x_0 leaves the error v / ((1 - sigma)^2 v + sigma^2), and the mean over the eigenvalues of the covariance is
    its loss. It is the least for a linear predictor that sees what the covariance spans and nothing more, and for
    Gaussian data the least for any.

    Args:
        variances: eigenvalues of the covariance of the data, shape (K,).
        sigma: noise levels above 0, shape (S,).

    Returns:
        The loss at each sigma, shape (S,).
    """
    v, s = variances.double().clamp_min(0.0)[None, :], sigma.double()[:, None]
    return (v / ((1 - s).square() * v + s.square())).mean(dim=1).to(torch.float32)
