"""Optimizers and learning-rate schedules, as specs; parameter groups are queries over the parameters' roles."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from kiwi.errors import SpecError
from kiwi.spec import Spec


@dataclass(frozen=True, kw_only=True)
class AdamW(Spec):
    """AdamW with linear warm-up.

    Args:
        lr: peak learning rate.
        betas: of the moments.
        weight_decay: on matrices only; norms, biases, modulation and queries are not decayed.
        warmup_steps: optimizer steps from 0 to lr.
        schedule: after warm-up, constant or cosine to a tenth.
    """

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.warmup_steps < 0 or self.weight_decay < 0:
            raise SpecError("the optimizer needs lr > 0, warmup_steps >= 0 and weight_decay >= 0", got=self)

    def build(
        self, parameters: Iterable[tuple[str, nn.Parameter]], total_steps: float
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Optimizer and schedule over the named parameters that require gradients."""
        if self.schedule == "cosine" and not math.isfinite(total_steps):
            raise SpecError("a cosine schedule needs to know its end", fix="set --trainer.max_steps or max_epochs")
        trained = [(name, p) for name, p in parameters if p.requires_grad]
        groups = [
            {"params": [p for n, p in trained if decays(n, p)], "weight_decay": self.weight_decay},
            {"params": [p for n, p in trained if not decays(n, p)], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.lr, betas=self.betas)
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, total_steps))

    def factor(self, step: int, total_steps: float) -> float:
        """Learning rate over its peak at an optimizer step (from 0)."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        return 0.55 + 0.45 * math.cos(math.pi * min(1.0, progress))


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: matrices yes; norms, biases, modulation and queries no."""
    return parameter.ndim >= 2 and "modulation" not in name and "queries" not in name
