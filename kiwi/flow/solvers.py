"""Solvers of the sampling ODE, d x / d sigma = velocity(x, sigma), from sigma 1 to 0."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kiwi.spec import Spec

Velocity = Callable[[Tensor, Tensor], Tensor]
"""The velocity field: a function from x and sigma (a scalar tensor) to d x / d sigma, of x's shape."""

OnStep = Callable[[int, Tensor], None]
"""Called after each step with its index (from 0) and the new x."""


def ignore_step(step: int, x: Tensor) -> None:
    """The default `OnStep`, which does nothing."""


@dataclass(frozen=True, kw_only=True)
class SolverSpec(Spec, ABC):
    """Base class of all solver specs; a solver integrates from noise (sigma 1) to a video (sigma 0)."""

    @abstractmethod
    def solve(self, velocity: Velocity, x: Tensor, sigmas: Tensor, on_step: OnStep = ignore_step) -> Tensor:
        """Integrate x from sigmas[0] down to sigmas[-1].

        Args:
            velocity: the velocity field, which the model predicts.
            x: initial value at sigmas[0], of any shape.
            sigmas: decreasing grid of shape (steps + 1,) that ends in 0.
            on_step: called after each step, for progress bars and traces.
        """


@dataclass(frozen=True, kw_only=True)
class EulerSolver(SolverSpec):
    """Euler's first-order method with one model call per step, as in the published sampler."""

    def solve(self, velocity: Velocity, x: Tensor, sigmas: Tensor, on_step: OnStep = ignore_step) -> Tensor:
        sigmas = sigmas.to(x.device)
        for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
            x = x + velocity(x, sigma) * (next_sigma - sigma)
            on_step(step, x)
        return x


@dataclass(frozen=True, kw_only=True)
class UniPCSolver(SolverSpec):
    """UniPC (arXiv 2302.04867), a multistep predictor-corrector with one model call per step.

    It needs fewer steps than Euler for the same error.

    Args:
        order: order of the method, from 1 to 3; 2 is usual.
    """

    order: int = 2

    def solve(self, velocity: Velocity, x: Tensor, sigmas: Tensor, on_step: OnStep = ignore_step) -> Tensor:
        from diffusers import UniPCMultistepScheduler

        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, solver_order=self.order
        )
        scheduler.set_timesteps(sigmas=sigmas[:-1].double().cpu().numpy())
        for step, timestep in enumerate(scheduler.timesteps):
            # The scheduler's first sigma is slightly below 1; the model gets the same, so that both agree exactly.
            sigma = scheduler.sigmas[step].to(x.device, torch.float32)
            x = scheduler.step(velocity(x, sigma), timestep, x, return_dict=False)[0]
            on_step(step, x)
        return x
