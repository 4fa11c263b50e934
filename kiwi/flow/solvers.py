"""Solvers of the sampling ODE as functions (velocity, x, sigmas) -> x, and the specs that name them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kiwi.spec import Spec

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma as a scalar tensor) -> d x / d sigma, of x's shape."""

OnStep = Callable[[int, Tensor], None]
"""Called after each step with its index (from 0) and the new x."""


def _ignore(step: int, x: Tensor) -> None:
    del step, x


@dataclass(frozen=True, kw_only=True)
class SolverSpec(Spec, ABC):
    """How the ODE from noise (sigma 1) to a video (sigma 0) is solved."""

    @abstractmethod
    def solve(self, velocity: Velocity, x: Tensor, sigmas: Tensor, on_step: OnStep = _ignore) -> Tensor:
        """Integrate from sigmas[0] down to sigmas[-1].

        Args:
            velocity: the model.
            x: the start, of any shape.
            sigmas: falling grid of shape (steps + 1,), the last entry 0.
            on_step: told each new x, for progress bars and traces.
        """


@dataclass(frozen=True, kw_only=True)
class EulerSolver(SolverSpec):
    """First order, one model call a step; what the published sampler uses."""

    def solve(self, velocity: Velocity, x: Tensor, sigmas: Tensor, on_step: OnStep = _ignore) -> Tensor:
        sigmas = sigmas.to(x.device)
        for step, (sigma, following) in enumerate(pairwise(sigmas)):
            x = x + velocity(x, sigma) * (following - sigma)
            on_step(step, x)
        return x


@dataclass(frozen=True, kw_only=True)
class UniPCSolver(SolverSpec):
    """UniPC (arXiv 2302.04867), multistep predictor-corrector; one model call a step, fewer steps for the same error.

    Args:
        order: 1 to 3; 2 is the usual choice.
    """

    order: int = 2

    def solve(self, velocity: Velocity, x: Tensor, sigmas: Tensor, on_step: OnStep = _ignore) -> Tensor:
        from diffusers import UniPCMultistepScheduler

        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, solver_order=self.order
        )
        scheduler.set_timesteps(sigmas=sigmas[:-1].double().cpu().numpy())
        for step, timestep in enumerate(scheduler.timesteps):
            # The scheduler's own sigma (it avoids exactly 1) goes to the model, so that both agree to the last bit.
            sigma = scheduler.sigmas[step].to(x.device, torch.float32)
            x = scheduler.step(velocity(x, sigma), timestep, x, return_dict=False)[0]
            on_step(step, x)
        return x
