"""Fidelity of an edit to its target: PSNR, SSIM and perceptual distances, over whole frames and inside and outside a
mask.

PSNR has two definitions whose values must not be compared: `frame_psnr` is computed per frame, and `edit_metrics`
averages it over frames, as published tables do; `clip_psnr` pools all pixels of a clip, so that frames count by their
number of pixels in the mask.

F frames, H height, W width, C = 3 colours. Frames are 8 bit, so the data range is 255.
"""

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
"""Data range of 8-bit frames."""

PSNR_CAP = 60.0
"""Cap of PSNR in dB. Identical frames have infinite PSNR, which would make any mean infinite; rounding to 8 bits alone
limits PSNR to 59 dB, so differences above the cap are meaningless."""


def frame_psnr(edited: Tensor, target: Tensor) -> float:
    """PSNR in dB, at most PSNR_CAP, of one frame or some of its pixels: any shape, values in [0, 255]."""
    return min(float(peak_signal_noise_ratio(edited, target, data_range=RANGE)), PSNR_CAP)


def clip_psnr(edited_FHWC: Pixels, target_FHWC: Pixels, mask_FHW: NDArray[np.bool_]) -> float:
    """PSNR in dB, at most PSNR_CAP, over all pixels of a clip inside a mask; NaN if the mask is empty."""
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

    The metrics are `psnr` (`frame_psnr`), `ssim` (-1 to 1) and the perceptual ones. With a mask each is also computed
    inside and outside of it (`psnr_inside`, `psnr_outside` ...), over the frames that have such pixels; metrics without
    any such frame are absent.

    Args:
        edited_FHWC: uint8 frames of the edit.
        target_FHWC: uint8 frames of the target.
        mask_FHW: pixels that the edit may change; None if unknown.
        perceptual: perceptual metrics, built by a `PerceptualSpec`.
        device: device to compute on.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for index in range(len(target_FHWC)):
        edited, target = (_to_tensor(frames[index], device) for frames in (edited_FHWC, target_FHWC))
        maps = {"ssim": _compute_ssim_map(edited, target), **perceptual(edited, target)}
        for side, pixels_HW in _split_by_mask(None if mask_FHW is None else mask_FHW[index], edited):
            values[f"psnr{side}"].append(frame_psnr(edited[..., pixels_HW], target[..., pixels_HW]))
            for name, map_HW in maps.items():
                values[f"{name}{side}"].append(float(map_HW[pixels_HW].mean()))
    return {name: float(np.mean(frames)) for name, frames in values.items()}


def _split_by_mask(mask_HW: NDArray[np.bool_] | None, like: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield suffix and pixels, (H, W) bool, of the whole frame and of the non-empty sides of the mask."""
    yield "", torch.ones(like.shape[-2:], dtype=torch.bool, device=like.device)
    if mask_HW is None:
        return
    inside = torch.from_numpy(mask_HW).to(like.device)
    for side, pixels_HW in (("_inside", inside), ("_outside", ~inside)):
        if pixels_HW.any():
            yield side, pixels_HW


def _compute_ssim_map(edited: Tensor, target: Tensor) -> Tensor:
    """Compute SSIM at each pixel, (H, W), averaged over colours; Gaussian window with sigma 1.5."""
    _, map_BCHW = structural_similarity_index_measure(edited, target, data_range=RANGE, return_full_image=True)
    return map_BCHW[0].mean(0)


def _to_tensor(frame_HWC: Pixels, device: torch.device | str) -> Tensor:
    """Convert a frame to float32 (1, C, H, W) in [0, 255]."""
    return torch.from_numpy(frame_HWC).to(device).permute(2, 0, 1)[None].float()
