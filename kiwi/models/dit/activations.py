"""What the transformer keeps of each block for the backward pass: memory against time, as a choice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kiwi.errors import SpecError
from kiwi.spec import Spec


@dataclass(frozen=True, kw_only=True)
class ActivationSpec(Spec, ABC):
    """The family of ways to run a block while it learns. A spec does the work itself: it has no state."""

    @abstractmethod
    def run(self, index: int, block: nn.Module, *args: Any) -> Tensor:
        """What the block makes of `args`; the same numbers and gradients in every way.

        Args:
            index: of the block, from 0.
            block: called with `args`.
            args: tensors, or tuples and lists of them.
        """


@dataclass(frozen=True, kw_only=True)
class KeepActivations(ActivationSpec):
    """Every activation is kept."""

    def run(self, index: int, block: nn.Module, *args: Any) -> Tensor:
        return block(*args)


@dataclass(frozen=True, kw_only=True)
class RecomputeActivations(ActivationSpec):
    """Activation checkpointing: a block keeps its inputs alone and runs again in the backward pass.

    Args:
        every: 1 recomputes every block (the published training), n the first of every n.
    """

    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SpecError("blocks are recomputed every 1 or more", got=self)

    def run(self, index: int, block: nn.Module, *args: Any) -> Tensor:
        # Without gradients torch just runs the block.
        return block(*args) if index % self.every else checkpoint(block, *args, use_reentrant=False)
