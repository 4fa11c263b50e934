"""Sampling: from a batch of edits, through noise and the denoising loop, to the edited videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kiwi.errors import SpecError
from kiwi.flow.solvers import EulerSolver, OnStep, SolverSpec, ignore_step
from kiwi.keyed import normal
from kiwi.models.kiwi import EditInputs, KiwiEdit
from kiwi.spec import Spec, renamed_from, require_positive

if TYPE_CHECKING:
    from kiwi.models.text_to_video import TextToVideo


@dataclass(frozen=True, kw_only=True)
class Sampling(Spec):
    """How a video is sampled.

    Args:
        steps: points of the sigma grid, which is the number of model calls.
        solver: Euler as published, or UniPC.
        sigma_min: where the grid ends before its closing 0, in linear positions. The two published samplers differ:
            the training code's has 0, the diffusers pipeline's 0.003 / 1.002.
    """

    steps: int = 50
    solver: SolverSpec = field(default_factory=EulerSolver)
    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.sigma_min < 1:
            raise SpecError("sampling needs steps >= 1 and sigma_min in [0, 1)", code="out-of-range", got=self)


@dataclass(frozen=True, kw_only=True)
class EditingDefaults(Spec):
    """Settings that a model folder recommends for its model.

    Args:
        max_pixels: height x width that the model was trained at; larger videos are edited at this size.
        max_frames: the most frames that it was trained on, 4k + 1.
        sampling: steps and solver.
        domain: "sandbox" for a model that was trained on nothing but the rendered world.
    """

    max_pixels: int = 720 * 1280
    max_frames: int = 81
    sampling: Sampling = field(default_factory=Sampling)
    domain: Literal["", "sandbox"] = renamed_from("world", default="")

    def __post_init__(self) -> None:
        require_positive(self, "max_pixels", "max_frames")


def sample_edits(
    model: KiwiEdit, inputs: EditInputs, sampling: Sampling, seed: int, on_step: OnStep = ignore_step
) -> Tensor:
    """Edit a batch: encode, draw noise, denoise, decode.

    Args:
        model: the editor; in eval mode while this runs.
        inputs: the edits, on the model's device. A sample's noise is a function of (seed, its id) alone.
        sampling: steps and solver.
        seed: of the starting noise.
        on_step: called after each denoising step with its index and the latents.

    Returns:
        The edited videos (B, 3, F, H, W) in [-1, 1].
    """
    with eval_mode(model):
        conditions = model.encode(inputs)
        noise = make_noise(conditions.source_BCFHW.shape, seed, inputs.ids, inputs.source_BCFHW.device)
        return model.vae.decode(denoise(model, conditions, noise, sampling, on_step))


def denoise(
    model: KiwiEdit | TextToVideo,
    conditions: Any,
    noise_BCFHW: Tensor,
    sampling: Sampling,
    on_step: OnStep = ignore_step,
) -> Tensor:
    """Latents of the video, integrated from noise at sigma 1 along the schedule's grid down to 0.

    There is no classifier-free guidance: the published sampler applies none.

    Args:
        model: the editor, or a text-to-video model; in eval mode while this runs.
        conditions: from the model's `encode`.
        noise_BCFHW: standard normal, of the latents' shape.
        sampling: steps and solver.
        on_step: called after each denoising step with its index and the latents.
    """
    with eval_mode(model):
        prepared: Any = model.prepare(conditions, noise_BCFHW.shape)

        def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
            return model.velocity(latents, sigma.expand(len(latents)), prepared)

        sigmas = model.schedule.sigmas(sampling.steps, sigma_min=sampling.sigma_min)
        return sampling.solver.solve(velocity, noise_BCFHW, sigmas, on_step)


def make_noise(shape: Sequence[int], seed: int, ids: Sequence[str], device: torch.device | str) -> Tensor:
    """The starting noise of a batch: each sample's is a function of (seed, its id), whatever the batch."""
    return torch.stack([normal(shape[1:], seed, "sampling", name) for name in ids]).to(device)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode and without gradients, then restore the model's mode."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
