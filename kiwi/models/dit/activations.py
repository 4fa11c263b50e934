"""Activation checkpointing: what the transformer keeps of each block for the backward pass, memory against time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kiwi.spec import Spec, require_positive


@dataclass(frozen=True, kw_only=True)
class ActivationSpec(Spec, ABC):
    """The family of ways to run a block in training. A spec does the work itself: it has no state."""

    @abstractmethod
    def run(self, index: int, block: nn.Module, *args: Any) -> Tensor:
        """Run the block; all specs give the same numbers and gradients.

        Args:
            index: of the block, from 0.
            block: called with `args`.
            args: tensors, or tuples and lists of tensors.
        """


@dataclass(frozen=True, kw_only=True)
class KeepActivations(ActivationSpec):
    """Keep every activation."""

    def run(self, index: int, block: nn.Module, *args: Any) -> Tensor:
        return block(*args)


@dataclass(frozen=True, kw_only=True)
class RecomputeActivations(ActivationSpec):
    """Keep only the inputs of a block, and run it again in the backward pass.

    Args:
        every: 1 recomputes every block (the published training), n the first of every n.
    """

    every: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "every")

    def run(self, index: int, block: nn.Module, *args: Any) -> Tensor:
        # Without gradients torch simply runs the block.
        return block(*args) if index % self.every else checkpoint(block, *args, use_reentrant=False)
