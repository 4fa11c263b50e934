"""Specs of optimizers and learning-rate schedules. Names and shapes of parameters determine their groups."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from kiwi.errors import SpecError
from kiwi.spec import Spec
from kiwi.training import muon

NamedParameter = tuple[str, nn.Parameter]


@dataclass(frozen=True, kw_only=True)
class OptimSpec(Spec, ABC):
    """Base class of all optimizer specs, with linear warm-up.

    Args:
        lr: peak learning rate.
        weight_decay: weight decay of matrices; norms, biases, modulation and queries are not decayed.
        warmup_steps: optimizer steps over which the learning rate rises from 0 to lr.
        schedule: schedule after warm-up: constant, or cosine decay to a tenth of lr.
    """

    lr: float = 1e-5
    weight_decay: float = 0.01
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.warmup_steps < 0 or self.weight_decay < 0:
            needs = "lr > 0, warmup_steps >= 0, weight_decay >= 0"
            raise SpecError(f"the optimizer needs {needs}", code="out-of-range", got=self)

    @abstractmethod
    def make_optimizer(self, parameters: Sequence[NamedParameter]) -> torch.optim.Optimizer:
        """Build the optimizer for trainable parameters, at the peak learning rate."""

    def build(self, parameters: Iterable[NamedParameter], total_steps: float) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Build optimizer and schedule for those parameters that require gradients."""
        if self.schedule == "cosine" and not math.isfinite(total_steps):
            fix = "set --trainer.max_steps or --trainer.max_epochs"
            raise SpecError("a cosine schedule needs the number of training steps", code="missing-steps", fix=fix)
        optimizer = self.make_optimizer([(name, p) for name, p in parameters if p.requires_grad])
        return optimizer, LambdaLR(optimizer, lambda step: self.lr_factor(step, total_steps))

    def lr_factor(self, step: int, total_steps: float) -> float:
        """Learning rate at an optimizer step (from 0), relative to its peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        return 0.55 + 0.45 * math.cos(math.pi * min(1.0, progress))


@dataclass(frozen=True, kw_only=True)
class AdamW(OptimSpec):
    """AdamW, as in the published training.

    Args:
        betas: decay rates of the moments.
    """

    betas: tuple[float, float] = (0.9, 0.999)

    def make_optimizer(self, parameters: Sequence[NamedParameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(_make_groups(parameters, self.weight_decay), lr=self.lr, betas=self.betas)


@dataclass(frozen=True, kw_only=True)
class Muon(OptimSpec):
    """Muon for matrices and convolutions, AdamW for the rest; meant for parts that are trained from scratch.

    The momentum of a matrix is orthogonalized before it is applied, and scaled to the size of AdamW's steps
    (arXiv 2502.16982), so that both optimizers share one `lr`. The sandbox's autoencoder, with 2 clips per step,
    reached 18.7 dB after 200 steps; with AdamW it took 400 steps to reach 18.8 dB (one run each, cosine to the end).

    Args:
        betas: decay rates of AdamW's moments.
        momentum: Nesterov momentum of Muon's updates.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise SpecError("Muon.momentum must be in [0, 1)", code="out-of-range", got=self.momentum)

    def make_optimizer(self, parameters: Sequence[NamedParameter]) -> torch.optim.Optimizer:
        hidden, others = (
            _make_groups([(n, p) for n, p in parameters if is_hidden_weight(n, p) is is_hidden], self.weight_decay)
            for is_hidden in (True, False)
        )
        groups = [group | {"orthogonal": True} for group in hidden] + others
        return muon.Muon(groups, self.lr, self.momentum, self.betas)


def _make_groups(parameters: Sequence[NamedParameter], weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into groups with and without weight decay; empty groups are omitted."""
    groups = [
        {"params": [p for n, p in parameters if is_decayed(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in parameters if not is_decayed(n, p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter: to matrices, but not to norms, biases, modulation and queries."""
    is_matrix = parameter.ndim >= 2 and parameter.numel() > len(parameter)
    return is_matrix and "modulation" not in name and "queries" not in name


def is_hidden_weight(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a weight between hidden features, and not of an embedding or an input or output layer."""
    return is_decayed(name, parameter) and min(parameter.shape[:2]) >= 8 and "embed" not in name
