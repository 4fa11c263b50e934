"""Sampling: settings, initial noise and the denoising loop."""

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


MAX_STEPS = 10_000
"""Largest number of denoising steps: ten times as many as the schedule has; more are a mistake that would not end."""


@dataclass(frozen=True, kw_only=True)
class Sampling(Spec):
    """Settings of the sampler.

    Args:
        steps: number of denoising steps, each with one call of the model.
        solver: ODE solver; the published sampler uses Euler.
        sigma_min: see `FlowSchedule.sigmas`. The published training code samples with 0, the published diffusers
            pipeline with 0.003 / 1.002.
    """

    steps: int = 50
    solver: SolverSpec = field(default_factory=EulerSolver)
    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS or not 0 <= self.sigma_min < 1:
            raise SpecError(
                f"sampling needs steps from 1 to {MAX_STEPS} and sigma_min in [0, 1)", code="out-of-range", got=self
            )


@dataclass(frozen=True, kw_only=True)
class EditingDefaults(Spec):
    """Settings that a model folder recommends for its model.

    Args:
        max_pixels: largest height x width that the model was trained at; larger videos are resized to it for editing.
        max_frames: largest number of frames that the model was trained on, 4k + 1.
        sampling: settings of the sampler.
        domain: "sandbox" if the model was trained on the sandbox's rendered videos only.
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
    """Encode, draw noise, denoise and decode a batch of edits; returns videos (B, 3, F, H, W) in [-1, 1].

    Args:
        model: the editor; it is in eval mode during the call.
        inputs: the edits, on the model's device.
        sampling: settings of the sampler.
        seed: seed of the initial noise, which depends only on this seed and the sample's id.
        on_step: called after each denoising step with its index and the latents.
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
    """Integrate from noise at sigma 1 down to the video's latents at sigma 0.

    There is no classifier-free guidance, as in the published sampler. To be called in `eval_mode`, with `conditions`
    from the model's `encode`.
    """
    prepared: Any = model.prepare(conditions, noise_BCFHW.shape)

    def compute_velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        return model.velocity(latents, sigma.expand(len(latents)), prepared)

    sigmas = model.schedule.sigmas(sampling.steps, sigma_min=sampling.sigma_min)
    return sampling.solver.solve(compute_velocity, noise_BCFHW, sigmas, on_step)


def make_noise(shape: Sequence[int], seed: int, ids: Sequence[str], device: torch.device | str) -> Tensor:
    """Draw the initial noise of a batch; each sample's depends only on `seed` and its id, not on the batch."""
    return torch.stack([normal(shape[1:], seed, "sampling", sample_id) for sample_id in ids]).to(device)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run a block of code in eval mode and without gradients, then restore the model's mode."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
