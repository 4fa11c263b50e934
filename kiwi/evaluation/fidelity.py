"""How close an edit is to its target: PSNR, SSIM and perceptual distances, over the whole frame, inside and outside
the mask.

PSNR comes in two forms that must not be compared with each other: `frame_psnr` is that of one frame, which
`edit_metrics` averages over frames, as published tables do; `clip_psnr` is that of all pixels of a clip together, so
that a mask that covers a few pixels of some frames weighs no more than they do.

F frames, H height, W width, C = 3 colours. Frames are 8 bit, so differences are taken on a range of 255.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import nan

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from kiwi.encoded import Pixels
from kiwi.evaluation.perceptual import PerceptualMaps

RANGE = 255.0
"""The range of 8-bit frames."""

PSNR_CAP = 60.0
"""Largest PSNR, in dB. Identical frames have an infinite one, which no mean survives; rounding to 8 bits alone leaves
59 dB, so that differences beyond the cap mean nothing."""


def frame_psnr(edited: Tensor, target: Tensor) -> float:
    """PSNR of one frame, or of some of its pixels: any shape, values in [0, 255]; dB, at most PSNR_CAP."""
    return min(float(peak_signal_noise_ratio(edited, target, data_range=RANGE)), PSNR_CAP)


def clip_psnr(edited_FHWC: Pixels, target_FHWC: Pixels, mask_FHW: NDArray[np.bool_]) -> float:
    """PSNR of all pixels of a clip that lie in a mask; dB, at most PSNR_CAP, and NaN where the mask is empty."""
    if not mask_FHW.any():
        return nan
    edited, target = (torch.from_numpy(clip[mask_FHW]).float() for clip in (edited_FHWC, target_FHWC))
    return min(float(peak_signal_noise_ratio(edited, target, data_range=RANGE)), PSNR_CAP)


def edit_metrics(
    edited_FHWC: Pixels,
    target_FHWC: Pixels,
    mask_FHW: NDArray[np.bool_] | None,
    perceptual: PerceptualMaps,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Compare an edit with its target: means over frames, by metric.

    `psnr` (`frame_psnr`), `ssim` (-1 to 1, the mean of its map) and the perceptual metrics, each over the whole frame;
    with a mask also `psnr_inside`, `psnr_outside` and so on, over the frames that have pixels inside (outside) it. A
    side that is empty in every frame is absent.

    Args:
        edited_FHWC: uint8 frames to judge.
        target_FHWC: uint8 frames to compare them with.
        mask_FHW: where the edit may show; None if that is not known.
        perceptual: built by a `PerceptualSpec`.
        device: to compute on.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for index in range(len(target_FHWC)):
        edited, target = (_tensor(frames[index], device) for frames in (edited_FHWC, target_FHWC))
        maps = {"ssim": _ssim_map(edited, target), **perceptual(edited, target)}
        for side, where_HW in _sides(None if mask_FHW is None else mask_FHW[index], edited):
            values[f"psnr{side}"].append(frame_psnr(edited[..., where_HW], target[..., where_HW]))
            for name, map_HW in maps.items():
                values[f"{name}{side}"].append(float(map_HW[where_HW].mean()))
    return {name: float(np.mean(frames)) for name, frames in values.items()}


def _sides(mask_HW: NDArray[np.bool_] | None, like: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The whole frame, and the sides of the mask that have pixels, (H, W) bool each."""
    yield "", torch.ones(like.shape[-2:], dtype=torch.bool, device=like.device)
    if mask_HW is None:
        return
    inside = torch.from_numpy(mask_HW).to(like.device)
    for side, where in (("_inside", inside), ("_outside", ~inside)):
        if where.any():
            yield side, where


def _ssim_map(edited: Tensor, target: Tensor) -> Tensor:
    """SSIM at each pixel (H, W), the mean over colours; Gaussian window of sigma 1.5."""
    _, full = structural_similarity_index_measure(edited, target, data_range=RANGE, return_full_image=True)
    return full[0].mean(0)


def _tensor(frame_HWC: Pixels, device: torch.device | str) -> Tensor:
    """A frame as float32 (1, C, H, W) in [0, 255]."""
    return torch.from_numpy(frame_HWC).to(device).permute(2, 0, 1)[None].float()
