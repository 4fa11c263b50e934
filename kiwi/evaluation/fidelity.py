"""How close an edit is to its target: PSNR, SSIM and LPIPS, over the whole frame, inside and outside the edit.

F frames, H height, W width, C = 3 colours, N = 1 frame at a time. Frames are 8 bit, so differences are taken on a range
of 255; LPIPS is defined on [-1, 1] and given that.
"""

from __future__ import annotations

import pickle
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
"""Of the frames that PSNR and SSIM compare."""

PSNR_CAP = 60.0
"""The most that a frame's PSNR counts, in dB. Identical frames have infinitely much, which no mean survives; the noise
of rounding to 8 bits alone is at 59 dB, so beyond this cap there is nothing to tell apart."""

Distances = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Of two frames (N, C, H, W) in [0, 255]: maps (H, W) of how far apart they are at each pixel, by measure."""


@dataclass(frozen=True, kw_only=True)
class PerceptualSpec(Spec, ABC):
    """The family of measures by a pretrained network."""

    least_side: ClassVar[int] = 1
    """Pixels that a frame must have in height and width."""

    @abstractmethod
    def build(self, device: torch.device | str = "cpu") -> Distances:
        """The measure, its network on a device."""


@dataclass(frozen=True, kw_only=True)
class NoPerceptual(PerceptualSpec):
    """No network: PSNR and SSIM alone."""

    def build(self, device: torch.device | str = "cpu") -> Distances:
        return lambda made, wanted: {}


@dataclass(frozen=True, kw_only=True)
class Lpips(PerceptualSpec):
    """LPIPS 0.1 (Zhang et al., 2018), a distance: 0 for identical frames, about 0.7 for unrelated ones.

    Its backbone is torchvision's, which is downloaded into torch's hub cache where it is not there already.

    Args:
        net: the backbone; results of different ones cannot be compared.
    """

    least_side: ClassVar[int] = 32
    net: Literal["alex", "vgg", "squeeze"] = "alex"

    def build(self, device: torch.device | str = "cpu") -> Distances:
        """The network.

        Raises:
            InputError: the backbone's weights are not there, cannot be had or are damaged; says which file goes where.
        """
        import lpips  # torchvision's models take seconds to import, and most runs do without

        try:
            # Both lpips and torchvision draw initial weights from the global generator before they load.
            with forked_rng("lpips"), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision in a deprecated way
                network = lpips.LPIPS(net=self.net, spatial=True, verbose=False)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as problem:
            url, path = _backbone(self.net)
            raise InputError(
                f"LPIPS needs the weights of its backbone {self.net!r}, which could not be "
                f"{'loaded' if path.exists() else 'downloaded'} ({problem})",
                fix=f"download {url} to {path}, or leave LPIPS out (`fit`: --quality.perceptual=NoPerceptual)",
            ) from problem
        network.to(device=device, dtype=torch.float32).requires_grad_(False)

        def distances(made: Tensor, wanted: Tensor) -> dict[str, Tensor]:
            return {"lpips": network(made / (RANGE / 2) - 1, wanted / (RANGE / 2) - 1)[0, 0]}

        return distances


def measure(
    made_FHWC: Pixels,
    wanted_FHWC: Pixels,
    mask_FHW: NDArray[np.bool_] | None,
    distances: Distances,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """What an edit is worth beside its target: means over frames, by name.

    `psnr` (dB, at most PSNR_CAP a frame), `ssim` (-1 to 1, the mean of its map), and what `distances` tells, each over
    the whole frame; where a mask is given also `psnr_inside`, `psnr_outside` and so on, over the frames that have
    pixels inside (outside) it. A side that has none in any frame is absent.

    Args:
        made_FHWC: uint8 frames to judge.
        wanted_FHWC: uint8 frames that they should be.
        mask_FHW: where the edit may show; none if that is not known.
        distances: of a `PerceptualSpec`.
        device: to compute on.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for index in range(len(wanted_FHWC)):
        made, wanted = (_tensor(frames[index], device) for frames in (made_FHWC, wanted_FHWC))
        maps = {"ssim": _ssim_map(made, wanted), **distances(made, wanted)}
        for side, where_HW in _sides(None if mask_FHW is None else mask_FHW[index], made):
            psnr = peak_signal_noise_ratio(made[..., where_HW], wanted[..., where_HW], data_range=RANGE)
            found[f"psnr{side}"].append(min(float(psnr), PSNR_CAP))
            for name, map_HW in maps.items():
                found[f"{name}{side}"].append(float(map_HW[where_HW].mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _sides(mask_HW: NDArray[np.bool_] | None, like: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The whole frame, and the sides of a mask that have pixels, (H, W) bool each."""
    yield "", torch.ones(like.shape[-2:], dtype=torch.bool, device=like.device)
    if mask_HW is None:
        return
    inside = torch.from_numpy(mask_HW).to(like.device)
    for side, where in (("_inside", inside), ("_outside", ~inside)):
        if where.any():
            yield side, where


def _ssim_map(made: Tensor, wanted: Tensor) -> Tensor:
    """SSIM at each pixel (H, W), the mean over colours; Gaussian window of sigma 1.5."""
    _, full = structural_similarity_index_measure(made, wanted, data_range=RANGE, return_full_image=True)
    return full[0].mean(0)


def _tensor(frame_HWC: Pixels, device: torch.device | str) -> Tensor:
    """A frame as float32 (1, C, H, W) in [0, 255]."""
    return torch.from_numpy(frame_HWC).to(device).permute(2, 0, 1)[None].float()


def _backbone(net: str) -> tuple[str, Path]:
    """Where torchvision takes a backbone's weights from, and where it looks for them first."""
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights({"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[net])
    url = weights.IMAGENET1K_V1.url
    return url, Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
