"""The training objective: velocity matching."""

from torch import Tensor


def unsqueeze_like(per_sample_B: Tensor, like: Tensor) -> Tensor:
    """Reshape per-sample values from (B,) to (B, 1, ..., 1), so that they broadcast to `like`."""
    return per_sample_B.reshape(-1, *(1,) * (like.ndim - 1)).to(like)


def add_noise(x0: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
    """Compute x_sigma = (1 - sigma) x_0 + sigma n, with one sigma per sample."""
    sigma = unsqueeze_like(sigma_B, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """Compute the model's target, d x_sigma / d sigma = n - x_0."""
    return noise - x0


def velocity_loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the mean squared error of each sample in float32, shape (B,).

    Args:
        prediction, target: predicted and true velocities.
        weights: weights of the squared errors, broadcast to their shape; uniform if not given.
    """
    errors = (prediction.float() - target.float()).square()
    return (errors if weights is None else errors * weights).flatten(1).mean(dim=1)
