"""Augmentation of training samples; keyed by the draw, so that a resumed run sees the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from kiwi.errors import SpecError
from kiwi.keyed import uniform
from kiwi.spec import Spec


@dataclass(frozen=True, kw_only=True)
class AugmentationSpec(Spec, ABC):
    """The family of augmentations of reference images, as the VAE reads them."""

    @abstractmethod
    def shrink(self, *where: str | int) -> float:
        """The factor by which a reference is shrunk on its white canvas, in (0, 1]; a function of the key."""


@dataclass(frozen=True, kw_only=True)
class NoAugmentation(AugmentationSpec):
    """No augmentation: references as large as they fit, as in editing."""

    def shrink(self, *where: str | int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class ShrinkReferences(AugmentationSpec):
    """References shrunk by a factor drawn uniformly from [low, high], as published: their size carries no meaning.

    Args:
        low, high: bounds of the factor, in (0, 1].
    """

    low: float = 0.7
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise SpecError("factors must satisfy 0 < low <= high <= 1", code="out-of-range", got=self)

    def shrink(self, *where: str | int) -> float:
        return self.low + (self.high - self.low) * uniform(*where)
