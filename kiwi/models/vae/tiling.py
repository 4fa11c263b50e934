"""Tiling: a large video is encoded and decoded tile by tile, so that memory depends on the tile, not on the video.

Tiles overlap and are blended; each is encoded or decoded independently, over all frames. B samples, C channels,
F frames, H W height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kiwi.errors import SpecError
from kiwi.spec import Spec

Coder = Callable[[Tensor], Tensor]
"""From a video to latents, or from latents to a video."""


@dataclass(frozen=True, kw_only=True)
class TilingSpec(Spec, ABC):
    """The family of ways to run encoder and decoder. A spec does the work itself: it has no state."""

    @abstractmethod
    def encode(self, coder: Coder, video_BCFHW: Tensor, factor: int) -> Tensor:
        """Latents of the video from `coder`, the encoder; one latent is `factor` pixels high and wide."""

    @abstractmethod
    def decode(self, coder: Coder, latents_BCFHW: Tensor, factor: int) -> Tensor:
        """The video from `coder`, the decoder, which must not clamp: clamped tiles blend to other colours."""


@dataclass(frozen=True, kw_only=True)
class NoTiling(TilingSpec):
    """The whole video at once."""

    def encode(self, coder: Coder, video_BCFHW: Tensor, factor: int) -> Tensor:
        return coder(video_BCFHW)

    def decode(self, coder: Coder, latents_BCFHW: Tensor, factor: int) -> Tensor:
        return coder(latents_BCFHW)


@dataclass(frozen=True, kw_only=True)
class Tiling(TilingSpec):
    """Overlapping tiles, blended as in the published code, whose sizes for the 8x VAE are the defaults.

    Args:
        size: height and width of a tile, in latents.
        stride: from one tile to the next, in latents; the rest of the size overlaps and is blended.
    """

    size: tuple[int, int] = (30, 52)
    stride: tuple[int, int] = (15, 26)

    def __post_init__(self) -> None:
        if not all(0 < stride <= size for stride, size in zip(self.stride, self.size, strict=True)):
            raise SpecError(
                "the tiles do not cover the video",
                code="inconsistent-sizes",
                got=f"size {self.size}, stride {self.stride}",
                expected="0 < stride <= size, for height and width",
            )

    def encode(self, coder: Coder, video_BCFHW: Tensor, factor: int) -> Tensor:
        return self._blended(coder, video_BCFHW, factor, 1)

    def decode(self, coder: Coder, latents_BCFHW: Tensor, factor: int) -> Tensor:
        return self._blended(coder, latents_BCFHW, 1, factor)

    def _blended(self, coder: Coder, x_BCFHW: Tensor, unit: int, out: int) -> Tensor:
        """The weighted mean of all tiles; a latent measures `unit` before and `out` after `coder`."""
        height, width = (length // unit for length in x_BCFHW.shape[-2:])
        total: Tensor | None = None
        weights_HW = torch.zeros(height * out, width * out, device=x_BCFHW.device)
        for row in _spans(height, self.size[0], self.stride[0]):
            for column in _spans(width, self.size[1], self.stride[1]):
                tile = coder(x_BCFHW[..., row.scaled(unit), column.scaled(unit)])
                if total is None:
                    # Sums are float32: at the tiles' own type the seams would show.
                    total = tile.new_zeros(*tile.shape[:-2], *weights_HW.shape, dtype=torch.float32)
                weight_HW = torch.minimum(row.weights(out)[:, None], column.weights(out)).to(tile.device)
                total[..., row.scaled(out), column.scaled(out)] += weight_HW * tile
                weights_HW[row.scaled(out), column.scaled(out)] += weight_HW
        assert total is not None
        return (total / weights_HW).to(tile.dtype)


class _Span(NamedTuple):
    """One tile along one axis, in latents, and how many of them are blended at either end."""

    start: int
    stop: int
    before: int
    after: int

    def scaled(self, unit: int) -> slice:
        return slice(self.start * unit, self.stop * unit)

    def weights(self, unit: int) -> Tensor:
        """1 inside, (k + 1) / b over the b units that are blended; the smaller where both ends reach."""
        at = torch.arange((self.stop - self.start) * unit)
        left = (at + 1) / max(1, self.before * unit)
        right = (at + 1).flip(0) / max(1, self.after * unit)
        return torch.minimum(left, right).clamp_max(1.0)


def _spans(length: int, size: int, stride: int) -> Iterator[_Span]:
    """Tiles at 0, stride, 2 stride, ... until one reaches the border."""
    for start in range(0, length, stride):
        last = start + size >= length
        overlap = size - stride
        yield _Span(start, min(start + size, length), overlap if start else 0, 0 if last else overlap)
        if last:
            return
