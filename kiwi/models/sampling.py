"""The denoising loop: from noise and conditions to the edited video's latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kiwi.errors import SpecError
from kiwi.flow.solvers import EulerSolver, SolverSpec
from kiwi.keyed import normal
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.text_to_video import TextToVideo
from kiwi.spec import Spec, renamed_from, require_positive


@dataclass(frozen=True, kw_only=True)
class Sampling(Spec):
    """How an edit is sampled.

    Args:
        steps: points of the sigma grid, which are the model calls.
        solver: Euler as published, or UniPC.
        sigma_min: where the grid ends before its closing 0, in linear positions. The two published samplers differ:
            the training code's has 0, the diffusers pipeline's 0.003 / 1.002.
    """

    steps: int = 50
    solver: SolverSpec = field(default_factory=EulerSolver)
    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.sigma_min < 1:
            raise SpecError("sampling needs at least one step, and sigma_min in [0, 1)", got=self)


@dataclass(frozen=True, kw_only=True)
class EditingDefaults(Spec):
    """What a model folder says about how its model is best used.

    Args:
        max_pixels: height x width that it was trained at; larger videos are edited at this size.
        max_frames: frames that it was trained at, 4k + 1.
        sampling: steps and solver.
        domain: "sandbox" for a model that was trained on nothing but the rendered world.
    """

    max_pixels: int = 720 * 1280
    max_frames: int = 81
    sampling: Sampling = field(default_factory=Sampling)
    domain: Literal["", "sandbox"] = renamed_from("world", default="")

    def __post_init__(self) -> None:
        require_positive(self, "max_pixels", "max_frames")


def denoise(
    model: KiwiEdit | TextToVideo,
    conditions: Any,
    noise_BCFHW: Tensor,
    sampling: Sampling,
    on_step: Callable[[int, Tensor], None] = lambda step, latents: None,
) -> Tensor:
    """LatentDistribution of the edited video, from noise at sigma 1 along the schedule's grid down to 0.

    No classifier-free guidance: the published sampler applies none.

    Args:
        model: the editor, or a text-to-video model; put in eval mode while it runs.
        conditions: of the model's `encode`.
        noise_BCFHW: standard normal, of the shape of the latents.
        sampling: steps and solver.
        on_step: told the latents after each step.
    """
    with eval_mode(model):
        prepared: Any = model.prepare(conditions, noise_BCFHW.shape)

        def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
            return model.velocity(latents, sigma.expand(len(latents)), prepared)

        sigmas = model.schedule.sigmas(sampling.steps, sigma_min=sampling.sigma_min)
        return sampling.solver.solve(velocity, noise_BCFHW, sigmas, on_step)


def make_noise(shape: tuple[int, ...], seed: int, ids: list[str], device: torch.device | str) -> Tensor:
    """The starting noise of a batch: each sample's is a function of (seed, its id), whatever the batch."""
    return torch.stack([normal(shape[1:], seed, "sampling", name) for name in ids]).to(device)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode without gradients, then go back to the mode before."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
