import pytest
import torch

from kiwi.flow.schedule import FlowSchedule
from kiwi.flow.solvers import EulerSolver, UniPCSolver

MEAN, STD = 0.7, 0.3


def velocity(x, sigma):
    """The exact velocity field of data x0 ~ N(MEAN, STD^2), whose flow has a closed form."""
    variance = (1 - sigma) ** 2 * STD**2 + sigma**2
    return (x - (1 - sigma) * MEAN) * (sigma - (1 - sigma) * STD**2) / variance - MEAN


def exact_solution(noise):
    """The flow's end at sigma 0 for noise at sigma 1; the flow preserves the Gaussian's quantiles."""
    return MEAN + STD * noise


def max_error(solver, steps):
    noise = torch.linspace(-2, 2, 41)[None]
    return float(
        (solver.solve(velocity, noise, FlowSchedule(shift=1.0).sigmas(steps)) - exact_solution(noise)).abs().max()
    )


def test_euler_converges_at_first_order():
    assert max_error(EulerSolver(), 80) == pytest.approx(max_error(EulerSolver(), 40) / 2, rel=0.15)


def test_unipc_needs_fewer_steps_for_the_same_error():
    assert max_error(UniPCSolver(), 20) < max_error(EulerSolver(), 80)


@pytest.mark.parametrize("solver", [EulerSolver(), UniPCSolver()])
def test_on_step_is_called_for_every_step_and_the_model_once_per_step(solver):
    calls, steps = [], []

    def counted(x, sigma):
        calls.append(float(sigma))
        return velocity(x, sigma)

    solver.solve(counted, torch.zeros(1, 4), FlowSchedule().sigmas(6), lambda step, x: steps.append(step))
    assert steps == [0, 1, 2, 3, 4, 5]
    assert len(calls) == 6
    assert calls[0] == pytest.approx(1.0, abs=1e-5)
