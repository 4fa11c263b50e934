"""Perceptual distances between frames from pretrained networks (C colours, H height, W width)."""

import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kiwi.errors import InputError
from kiwi.keyed import forked_rng
from kiwi.spec import Spec

PerceptualMaps = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Function of an edited and a target frame, (1, C, H, W) in [0, 255], that returns a map (H, W) of the distance at each
pixel for every metric."""


@dataclass(frozen=True, kw_only=True)
class PerceptualSpec(Spec, ABC):
    """Base class of all perceptual metric specs."""

    min_side: ClassVar[int] = 1
    """Smallest accepted height and width of a frame, in pixels."""

    @abstractmethod
    def build(self, device: torch.device | str = "cpu") -> PerceptualMaps:
        """Load the metric's network onto a device."""


@dataclass(frozen=True, kw_only=True)
class NoPerceptual(PerceptualSpec):
    """No perceptual metric: only PSNR and SSIM are computed."""

    def build(self, device: torch.device | str = "cpu") -> PerceptualMaps:
        return lambda edited, target: {}


@dataclass(frozen=True, kw_only=True)
class Lpips(PerceptualSpec):
    """LPIPS 0.1 (Zhang et al., 2018): 0 for identical frames, about 0.7 for unrelated ones.

    The backbone's weights are torchvision's, downloaded into torch's hub cache if missing.

    Args:
        net: backbone; distances of different backbones are not comparable.
    """

    min_side: ClassVar[int] = 32
    net: Literal["alex", "vgg", "squeeze"] = "alex"

    def build(self, device: torch.device | str = "cpu") -> PerceptualMaps:
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
            raise InputError(
                f"LPIPS needs the weights of its backbone {self.net!r}, which could not be "
                f"{'loaded' if path.exists() else 'downloaded'} ({error})",
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
