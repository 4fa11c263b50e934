"""Activation checkpointing: recompute the activations of blocks in the backward pass, to save memory."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kiwi.spec import Spec, require_positive


@dataclass(frozen=True, kw_only=True)
class ActivationSpec(Spec, ABC):
    """Base class of all specs of activation checkpointing. A spec has no state and runs the blocks itself."""

    @abstractmethod
    def run(self, index: int, block: nn.Module, *args: Any) -> Tensor:
        """Run a block; outputs and gradients are the same for all specs.

        Args:
            index: index of the block, from 0.
            block: the block.
            args: arguments of the block: tensors, or tuples and lists of tensors.
        """


@dataclass(frozen=True, kw_only=True)
class KeepActivations(ActivationSpec):
    """Keep all activations."""

    def run(self, index: int, block: nn.Module, *args: Any) -> Tensor:
        return block(*args)


@dataclass(frozen=True, kw_only=True)
class RecomputeActivations(ActivationSpec):
    """Keep only the inputs of a block, and run it again in the backward pass.

    Args:
        every: recompute the first block of every `every` blocks; 1 recomputes all, as in the published training.
    """

    every: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "every")

    def run(self, index: int, block: nn.Module, *args: Any) -> Tensor:
        # Without gradients `checkpoint` simply runs the block.
        return block(*args) if index % self.every else checkpoint(block, *args, use_reentrant=False)
