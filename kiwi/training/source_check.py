"""Does the model read its source? Three losses at fixed noise levels, side by side.

`loss` with the right source, `loss_swapped` with another sample's, and `loss_blind`, the least that a
linear predictor could reach which sees the noisy target and knows the targets' covariance, but no source.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from kiwi.flow.objective import blind_loss

SIGMAS = (0.3, 0.5, 0.65, 0.75, 0.83, 0.9, 0.95, 0.99)
"""Eight noise levels, denser where the shifted schedule spends its steps."""

HEADLINE = ("loss", "loss_swapped", "loss_blind")
"""The three means over all noise levels."""


class SourceCheck:
    """Accumulates a validation run; S = len(sigmas).

    Args:
        patch: rows and columns of latents in one token of the DiT, whose covariance the blind predictor knows.
    """

    sigmas = SIGMAS

    def __init__(self, patch: tuple[int, int] = (2, 2)) -> None:
        self.patch = patch
        self.right: list[Tensor] = []
        self.swapped: list[Tensor] = []
        self.count = 0
        self.sum: Tensor | None = None
        self.outer: Tensor | None = None

    def add(self, x0_BCFHW: Tensor, right_BS: Tensor, swapped_BS: Tensor | None) -> None:
        """Take in a batch: target latents, and losses at each noise level with the right and a swapped source."""
        self.right.append(right_BS.double().cpu())
        if swapped_BS is not None:
            self.swapped.append(swapped_BS.double().cpu())
        # Covariance of latent patches, in favour of the blind predictor: it knows this very data's.
        p, q = self.patch
        patches = rearrange(x0_BCFHW.double().cpu(), "b c f (h p) (w q) -> (b f h w) (c p q)", p=p, q=q)
        zero = patches.new_zeros(())
        self.sum = patches.sum(0) + (zero if self.sum is None else self.sum)
        self.outer = patches.T @ patches + (zero if self.outer is None else self.outer)
        self.count += len(patches)

    def summary(self) -> dict[str, float]:
        """Means over samples and noise levels, and the loss at each level; empty before anything was added."""
        if self.sum is None or self.outer is None:
            return {}
        mean = self.sum / self.count
        variances = torch.linalg.eigvalsh(self.outer / self.count - torch.outer(mean, mean))
        right_S = torch.cat(self.right).mean(0)
        blind_S = blind_loss(variances, torch.tensor(self.sigmas))
        found = {"loss": float(right_S.mean()), "loss_blind": float(blind_S.mean())}
        if self.swapped:
            found["loss_swapped"] = float(torch.cat(self.swapped).mean())
        for sigma, right, blind in zip(self.sigmas, right_S.tolist(), blind_S.tolist(), strict=True):
            found |= {f"loss_at_{sigma:g}": right, f"loss_blind_at_{sigma:g}": blind}
        return found
