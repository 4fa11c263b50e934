"""Tiling: videos are encoded and decoded tile by tile, so that activations take memory for one tile at a time.

Each tile spans all frames and is encoded or decoded independently; overlapping tiles are blended. B samples,
C channels, F frames, H W height and width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kiwi.errors import SpecError
from kiwi.spec import Spec

Coder = Callable[[Tensor], Tensor]
"""The encoder (video to latents) or the decoder (latents to video)."""


@dataclass(frozen=True, kw_only=True)
class TilingSpec(Spec, ABC):
    """Base class of all specs of tiling. A spec has no state and runs encoder and decoder itself."""

    @abstractmethod
    def run(self, coder: Coder, x_BCFHW: Tensor, input_scale: int, output_scale: int) -> Tensor:
        """Encode a video or decode latents.

        Args:
            coder: the encoder or the decoder, which must not clamp: blending clamped tiles changes colours.
            x_BCFHW: the video or the latents.
            input_scale, output_scale: height and width of one latent in the input and in the output of `coder`.
        """


@dataclass(frozen=True, kw_only=True)
class NoTiling(TilingSpec):
    """No tiles: the whole video at once."""

    def run(self, coder: Coder, x_BCFHW: Tensor, input_scale: int, output_scale: int) -> Tensor:
        return coder(x_BCFHW)


@dataclass(frozen=True, kw_only=True)
class Tiling(TilingSpec):
    """Overlapping tiles, blended as in the published code; the defaults are its sizes for the VAE of spatial factor 8.

    Args:
        size: height and width of a tile in latents.
        stride: distance in latents between the starts of neighbouring tiles, which overlap by size - stride.
    """

    size: tuple[int, int] = (30, 52)
    stride: tuple[int, int] = (15, 26)

    def __post_init__(self) -> None:
        if not all(0 < stride <= size for stride, size in zip(self.stride, self.size, strict=True)):
            message = f"tiles of size {self.size} and stride {self.stride} do not cover the video"
            raise SpecError(message, code="inconsistent-sizes", expected="0 < stride <= size, for height and width")

    def run(self, coder: Coder, x_BCFHW: Tensor, input_scale: int, output_scale: int) -> Tensor:
        height, width = (length // input_scale for length in x_BCFHW.shape[-2:])
        total: Tensor | None = None
        weights_HW = torch.zeros(height * output_scale, width * output_scale, device=x_BCFHW.device)
        for row in _tile_spans(height, self.size[0], self.stride[0]):
            for column in _tile_spans(width, self.size[1], self.stride[1]):
                tile = coder(x_BCFHW[..., row.scaled(input_scale), column.scaled(input_scale)])
                if total is None:
                    # Summed in float32, because seams would be visible with bf16 sums.
                    total = tile.new_zeros(*tile.shape[:-2], *weights_HW.shape, dtype=torch.float32)
                weight_HW = torch.minimum(row.weights(output_scale)[:, None], column.weights(output_scale))
                weight_HW = weight_HW.to(tile.device)
                total[..., row.scaled(output_scale), column.scaled(output_scale)] += weight_HW * tile
                weights_HW[row.scaled(output_scale), column.scaled(output_scale)] += weight_HW
        assert total is not None
        return (total / weights_HW).to(tile.dtype)


class _Span(NamedTuple):
    """A tile along one axis, and the number of positions that are blended at its start and end, all in latents."""

    start: int
    stop: int
    blend_start: int
    blend_end: int

    def scaled(self, scale: int) -> slice:
        return slice(self.start * scale, self.stop * scale)

    def weights(self, scale: int) -> Tensor:
        """Weights: linear ramps from 1 / n to 1 over the n blended positions of each end, and 1 between them."""
        positions = torch.arange((self.stop - self.start) * scale)
        start_ramp = (positions + 1) / max(1, self.blend_start * scale)
        end_ramp = (positions + 1).flip(0) / max(1, self.blend_end * scale)
        return torch.minimum(start_ramp, end_ramp).clamp_max(1.0)


def _tile_spans(length: int, size: int, stride: int) -> Iterator[_Span]:
    """Yield tiles that start at 0, stride, 2 stride, ... until one reaches the border."""
    for start in range(0, length, stride):
        is_last = start + size >= length
        overlap = size - stride
        yield _Span(start, min(start + size, length), overlap if start else 0, 0 if is_last else overlap)
        if is_last:
            return
