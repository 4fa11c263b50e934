"""Does the model read its source? Three losses at fixed noise levels, side by side.

`loss` with the right source; `loss_swapped` with another sample's; `loss_blind`, what a linear predictor
would reach that sees the noisy target and knows the covariance of the targets within blocks of
BLOCK x BLOCK latents over all frames, but no source. A model whose loss is above the swapped one's does
not use its source; one that is below the blind loss knows more than such blocks can tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from kiwi.flow.objective import blind_loss

SIGMAS = (0.3, 0.5, 0.65, 0.75, 0.83, 0.9, 0.95, 0.99)
"""Eight noise levels, denser where the shifted schedule spends its steps."""

BLOCK = 4
"""Rows and columns of latents in a block; the blind predictor knows their covariance, over time and channels too."""

HEADLINE = ("loss", "loss_swapped", "loss_blind")
"""The three means over all noise levels."""


@dataclass
class Moments:
    """Sums over blocks of target latents of one size, K numbers a block."""

    samples: int
    blocks: int
    sum_K: Tensor
    outer_KK: Tensor

    def variances(self) -> Tensor:
        """Eigenvalues of the covariance, shape (K,)."""
        mean = self.sum_K / self.blocks
        return torch.linalg.eigvalsh(self.outer_KK / self.blocks - torch.outer(mean, mean))


class SourceCheck:
    """Accumulates a validation run; B samples, S = len(sigmas)."""

    sigmas = SIGMAS

    def __init__(self) -> None:
        self.right_S: list[Tensor] = []
        self.swapped_S: list[Tensor] = []
        self.moments: dict[int, Moments] = {}

    def add(self, x0_BCFHW: Tensor, right_BS: Tensor, swapped_BS: Tensor | None) -> None:
        """Take in a batch: target latents, and losses at each noise level with the right and a swapped source."""
        self.right_S += list(right_BS.double().cpu())
        self.swapped_S += [] if swapped_BS is None else list(swapped_BS.double().cpu())
        # Measured on the validation data itself, in favour of the blind predictor.
        x0 = x0_BCFHW.double().cpu()
        for axis in (3, 4):
            x0 = x0.unfold(axis, min(BLOCK, x0.shape[axis]), 1)
        blocks = x0.permute(0, 3, 4, 1, 2, 5, 6).flatten(3).flatten(0, 2)
        found = Moments(len(x0_BCFHW), len(blocks), blocks.sum(0), blocks.T @ blocks)
        self._merge(blocks.shape[1], found)

    def gather(self) -> None:
        """Take in what the other processes have seen, so that all tell the same numbers."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        others: list[SourceCheck] = [self] * dist.get_world_size()
        dist.all_gather_object(others, self)
        self.right_S = [losses for other in others for losses in other.right_S]
        self.swapped_S = [losses for other in others for losses in other.swapped_S]
        self.moments = {}
        for other in others:
            for size, moments in other.moments.items():
                self._merge(size, moments)

    def summary(self) -> dict[str, float]:
        """Means over samples and noise levels, and the losses at each level; empty before anything was added."""
        if not self.right_S:
            return {}
        right_S = torch.stack(self.right_S).mean(0)
        sizes = list(self.moments.values())
        floors = torch.stack([m.samples * blind_loss(m.variances(), torch.tensor(self.sigmas)) for m in sizes])
        blind_S = floors.sum(0) / sum(m.samples for m in sizes)
        found = {"loss": float(right_S.mean()), "loss_blind": float(blind_S.mean())}
        if self.swapped_S:
            found["loss_swapped"] = float(torch.stack(self.swapped_S).mean())
        for sigma, right, blind in zip(self.sigmas, right_S.tolist(), blind_S.tolist(), strict=True):
            found |= {f"loss_at_{sigma:g}": right, f"loss_blind_at_{sigma:g}": blind}
        return found

    def _merge(self, size: int, new: Moments) -> None:
        old = self.moments.get(size)
        if old is not None:
            new = Moments(
                old.samples + new.samples,
                old.blocks + new.blocks,
                old.sum_K + new.sum_K,
                old.outer_KK + new.outer_KK,
            )
        self.moments[size] = new
