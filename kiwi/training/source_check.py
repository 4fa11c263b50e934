"""Does the model read its source? Three losses at fixed noise levels, side by side.

`loss` with the right source; `loss_swapped` with another sample's; `loss_blind`, the least that a family of linear
predictors reaches which know the training targets but see no source (blind.py). A model that reads its
source is below both.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from kiwi.training.blind import BlindPredictors

SIGMAS = (0.3, 0.5, 0.65, 0.75, 0.83, 0.9, 0.95, 0.99)
"""Eight noise levels, denser where the shifted schedule spends its steps."""

HEADLINE = ("loss", "loss_swapped", "loss_blind")
"""The three means over all noise levels."""


class SourceCheck:
    """Accumulates a validation run; B samples, S = len(sigmas)."""

    sigmas = SIGMAS

    def __init__(self) -> None:
        self.right_S: list[Tensor] = []
        self.tasks: list[str] = []
        self.swapped_S: list[Tensor] = []
        self.blind = BlindPredictors()

    def add(self, task: str, x0_BCFHW: Tensor, right_BS: Tensor, swapped_BS: Tensor | None) -> None:
        """Take in a batch: target latents, and losses at each noise level with the right and a swapped source."""
        self.tasks += [task] * len(right_BS)
        self.right_S += list(right_BS.double().cpu())
        self.swapped_S += [] if swapped_BS is None else list(swapped_BS.double().cpu())
        self.blind.meet(x0_BCFHW)

    def gather(self) -> None:
        """Take in what the other processes have seen, so that all tell the same numbers."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        seen: list[SourceCheck] = [self] * dist.get_world_size()
        dist.all_gather_object(seen, self)
        for rank, other in enumerate(seen):
            if rank != dist.get_rank():
                self.tasks += other.tasks
                self.right_S += other.right_S
                self.swapped_S += other.swapped_S
                self.blind.merge(other.blind)

    def summary(self) -> dict[str, float]:
        """Means over samples and noise levels, of each kind of task and at each level; empty before anything came."""
        if not self.right_S:
            return {}
        right_S = torch.stack(self.right_S).mean(0)
        found = {"loss": float(right_S.mean())}
        found |= {f"loss_at_{sigma:g}": float(loss) for sigma, loss in zip(self.sigmas, right_S, strict=True)}
        for task in sorted(set(self.tasks)):
            of_task = [right for right, kind in zip(self.right_S, self.tasks, strict=True) if kind == task]
            found[f"loss_{task}"] = float(torch.stack(of_task).mean())
        if self.swapped_S:
            found["loss_swapped"] = float(torch.stack(self.swapped_S).mean())
        if (blind_S := self.blind.losses(torch.tensor(self.sigmas))) is not None:
            found["loss_blind"] = float(blind_S.mean())
            found |= {f"loss_blind_at_{s:g}": float(loss) for s, loss in zip(self.sigmas, blind_S, strict=True)}
        return found
