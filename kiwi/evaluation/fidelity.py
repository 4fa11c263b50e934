"""Fidelity of an edit to its target: PSNR, SSIM and perceptual distances, over whole frames and inside and outside a
mask.

PSNR has two definitions whose values must not be compared: `frame_psnr` is computed per frame, and
`compute_edit_metrics` averages it over frames, as published tables do; `clip_psnr` pools all pixels of a clip, so that
frames count by their number of pixels in the mask.

F frames, H height, W width, C = 3 colours. Frames are 8 bit, so the data range is 255.
"""

import pickle
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from kiwi.encoded import Pixels
from kiwi.errors import InputError
from kiwi.keyed import forked_rng
from kiwi.spec import Spec

RANGE = 255.0
"""Data range of 8-bit frames."""

PSNR_CAP = 60.0
"""Cap of PSNR in dB. Identical frames have infinite PSNR, which would make any mean infinite; rounding to 8 bits alone
limits PSNR to 59 dB, so differences above the cap are meaningless."""

PerceptualMetric = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Function of an edited and a target frame, (1, C, H, W) in [0, 255], that computes a map (H, W) of their distance at
each pixel, by name of the metric."""


def frame_psnr(edited: Tensor, target: Tensor) -> float:
    """PSNR in dB, at most PSNR_CAP, of one frame or some of its pixels: any shape, values in [0, 255]."""
    return min(float(peak_signal_noise_ratio(edited, target, data_range=RANGE)), PSNR_CAP)


def clip_psnr(edited_FHWC: Pixels, target_FHWC: Pixels, mask_FHW: NDArray[np.bool_]) -> float:
    """PSNR in dB, at most PSNR_CAP, over all pixels of a clip inside a mask; NaN if the mask is empty."""
    if not mask_FHW.any():
        return nan
    return frame_psnr(*(torch.from_numpy(clip[mask_FHW]).float() for clip in (edited_FHWC, target_FHWC)))


def no_perceptual_metric(edited: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The `PerceptualMetric` that computes no distances."""
    return {}


def compute_edit_metrics(
    edited_FHWC: Pixels,
    target_FHWC: Pixels,
    mask_FHW: NDArray[np.bool_] | None = None,
    compute_distance_maps: PerceptualMetric = no_perceptual_metric,
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
        compute_distance_maps: perceptual metric, built by a `PerceptualSpec` on `device`.
        device: device to compute on.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for index in range(len(target_FHWC)):
        edited, target = (_to_tensor(frames[index], device) for frames in (edited_FHWC, target_FHWC))
        maps = {"ssim": _compute_ssim_map(edited, target), **compute_distance_maps(edited, target)}
        for suffix, pixels_HW in _split_by_mask(None if mask_FHW is None else mask_FHW[index], edited):
            values[f"psnr{suffix}"].append(frame_psnr(edited[..., pixels_HW], target[..., pixels_HW]))
            for name, map_HW in maps.items():
                values[f"{name}{suffix}"].append(float(map_HW[pixels_HW].mean()))
    return {name: float(np.mean(frames)) for name, frames in values.items()}


def _split_by_mask(mask_HW: NDArray[np.bool_] | None, like: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield suffix and pixels, (H, W) bool, of the whole frame and of the non-empty regions inside and outside."""
    yield "", torch.ones(like.shape[-2:], dtype=torch.bool, device=like.device)
    if mask_HW is None:
        return
    inside = torch.from_numpy(mask_HW).to(like.device)
    for suffix, pixels_HW in (("_inside", inside), ("_outside", ~inside)):
        if pixels_HW.any():
            yield suffix, pixels_HW


def _compute_ssim_map(edited: Tensor, target: Tensor) -> Tensor:
    """Compute SSIM at each pixel, (H, W), averaged over colours; Gaussian window with sigma 1.5."""
    _, map_BCHW = structural_similarity_index_measure(edited, target, data_range=RANGE, return_full_image=True)
    return map_BCHW[0].mean(0)


def _to_tensor(frame_HWC: Pixels, device: torch.device | str) -> Tensor:
    """Convert a frame to float32 (1, C, H, W) in [0, 255]."""
    return torch.from_numpy(frame_HWC).to(device).permute(2, 0, 1)[None].float()


# --- perceptual metrics -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PerceptualSpec(Spec, ABC):
    """Base class of all perceptual metric specs."""

    min_side: ClassVar[int] = 1
    """Smallest accepted height and width of a frame, in pixels."""

    @abstractmethod
    def build(self, device: torch.device | str = "cpu") -> PerceptualMetric:
        """Load the metric's network onto a device."""


@dataclass(frozen=True, kw_only=True)
class NoPerceptual(PerceptualSpec):
    """No perceptual metric: only PSNR and SSIM are computed."""

    def build(self, device: torch.device | str = "cpu") -> PerceptualMetric:
        return no_perceptual_metric


@dataclass(frozen=True, kw_only=True)
class Lpips(PerceptualSpec):
    """LPIPS 0.1 (Zhang et al., 2018): 0 for identical frames, about 0.7 for unrelated ones.

    The backbone's weights are torchvision's, downloaded into torch's hub cache if missing.

    Args:
        net: backbone; distances of different backbones are not comparable.
    """

    min_side: ClassVar[int] = 32
    net: Literal["alex", "vgg", "squeeze"] = "alex"

    def build(self, device: torch.device | str = "cpu") -> PerceptualMetric:
        """Load the network.

        Raises:
            InputError: the backbone's weights are missing and cannot be downloaded, or are damaged.
        """
        import lpips  # imports torchvision's models, which takes seconds

        try:
            # Both lpips and torchvision draw initial weights from the global generator before they load.
            with forked_rng("lpips"), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision in a deprecated way
                network = lpips.LPIPS(net=self.net, spatial=True, verbose=False)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            url, path = _locate_backbone(self.net)
            failed = "loaded" if path.exists() else "downloaded"
            raise InputError(
                f"LPIPS needs the weights of its backbone {self.net!r}, which could not be {failed} ({error})",
                code="missing-weights",
                fix=f"download {url} to {path}, or leave LPIPS out (`fit`: --quality.perceptual=NoPerceptual)",
            ) from error
        network.to(device=device, dtype=torch.float32).requires_grad_(False)
        # The network is defined on [-1, 1].
        return lambda edited, target: {"lpips": network(edited / 127.5 - 1, target / 127.5 - 1)[0, 0]}


def _locate_backbone(net: str) -> tuple[str, Path]:
    """URL of a backbone's weights and the path at which torchvision caches them."""
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights({"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[net])
    url = weights.IMAGENET1K_V1.url
    return url, Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
