"""Augmentation of training samples, as a function of a key: a resumed run repeats it exactly."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from kiwi.errors import SpecError
from kiwi.keyed import uniform
from kiwi.spec import Spec


@dataclass(frozen=True, kw_only=True)
class AugmentationSpec(Spec, ABC):
    """Base class of all augmentation specs; they change the reference images that the VAE encodes."""

    @abstractmethod
    def shrink(self, *key_parts: str | int) -> float:
        """The factor in (0, 1] by which a reference image is shrunk on its white canvas: a function of the key."""


@dataclass(frozen=True, kw_only=True)
class NoAugmentation(AugmentationSpec):
    """No augmentation: reference images are as large as fits, as at inference."""

    def shrink(self, *key_parts: str | int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class ShrinkReferences(AugmentationSpec):
    """Shrink reference images by a factor drawn uniformly from [low, high], as published.

    The size of a reference carries no information, and the model must not rely on it.

    Args:
        low, high: bounds of the factor, in (0, 1].
    """

    low: float = 0.7
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise SpecError("shrink factors must satisfy 0 < low <= high <= 1", code="out-of-range", got=self)

    def shrink(self, *key_parts: str | int) -> float:
        return self.low + (self.high - self.low) * uniform(*key_parts)
