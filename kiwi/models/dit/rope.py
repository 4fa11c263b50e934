"""3D rotary position embedding over (frame, height, width), in real arithmetic.

L tokens of a video in row-major (f, h, w) order; K = head_dim / 2 rotated pairs, adjacent channels paired.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rope(NamedTuple):
    """Cosines and sines of the angle by which each channel pair of each token is rotated."""

    cos_LK: Tensor
    sin_LK: Tensor

    def float(self) -> Rope:
        """Convert the table to float32, which attention uses."""
        return Rope(self.cos_LK.float(), self.sin_LK.float())


def rope_table(
    frames: int, height: int, width: int, head_dim: int, *, device: torch.device | str = "cpu", theta: float = 10000.0
) -> Rope:
    """Compute the table of a frames x height x width token grid in float64.

    As in Wan, the d channels of a head are split into d - 2 (d // 3), d // 3 and d // 3 for frame, row and column.
    """
    third = head_dim // 3
    axes = []
    for length, dim in ((frames, head_dim - 2 * third), (height, third), (width, third)):
        frequency = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
        axes.append(torch.outer(torch.arange(length, dtype=torch.float64, device=device), frequency))
    shape = (frames, height, width, -1)
    angles = torch.cat(
        [
            axes[0][:, None, None, :].expand(shape),
            axes[1][None, :, None, :].expand(shape),
            axes[2][None, None, :, :].expand(shape),
        ],
        dim=-1,
    ).flatten(0, 2)
    return Rope(angles.cos(), angles.sin())


def rotate(x_BHLE: Tensor, rope: Rope) -> Tensor:
    """Rotate each pair of adjacent channels of every head in float32, and return x's dtype; E = head_dim."""
    x, y = x_BHLE.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((x * rope.cos_LK - y * rope.sin_LK, x * rope.sin_LK + y * rope.cos_LK), dim=-1)
    return rotated.flatten(-2).to(x_BHLE.dtype)
