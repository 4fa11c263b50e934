"""Muon: orthogonalized momentum for the matrices of a network (Jordan et al. 2024; scaled as in arXiv 2502.16982).

The Muon optimizers of torch and timm are not used: they always orthogonalize in bfloat16, which takes longer than the
rest of the step on a CPU without bf16 instructions, and torch's does not support convolutions.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NEWTON_SCHULZ_STEPS = 5
"""Number of Newton-Schulz iterations."""

LONG_MATRIX_RATIO = 1.75
"""Ratio of long to short side above which iterating only on (short, short) matrices saves work."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic polynomial of a Newton-Schulz iteration."""


class Muon(torch.optim.Optimizer):
    """Orthogonalized updates, of equal size in all directions, for matrices; AdamW for other parameters.

    Args:
        groups: parameter groups. Those with `orthogonal=True` have matrices (out, in) or convolutions (out, in, ...);
            AdamW updates the others.
        lr: learning rate of both. An orthogonal update has the typical size of AdamW's: 0.2 lr per element (RMS).
        momentum: Nesterov momentum of the orthogonal updates.
        betas, eps: decay rates of AdamW's moments, and the constant that avoids division by zero.
        weight_decay: decoupled weight decay, multiplied by lr.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults | {"orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["orthogonal"]:
                compute = [partial(self._orthogonal_update, p, self._update_momentum(p, group)) for p in parameters]
                updates = _compute_in_shares(compute, parameters)
            else:
                updates = [self._adamw_update(parameter, group) for parameter in parameters]
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * update.to(parameter.dtype))
        return loss

    def _update_momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Update the momentum buffer, and return the Nesterov momentum as a matrix (out, in)."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(state["momentum"], group["momentum"]).flatten(1)

    @staticmethod
    def _orthogonal_update(parameter: Tensor, matrix: Tensor) -> Tensor:
        return (0.2 * max(matrix.shape) ** 0.5 * orthogonalize(matrix)).view_as(parameter)

    def _adamw_update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        gradient = parameter.grad
        assert gradient is not None
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        denominator = (state["square"] / (1 - second ** state["step"])).sqrt() + group["eps"]
        return state["mean"] / (1 - first ** state["step"]) / denominator


def _compute_in_shares(functions: Sequence[Callable[[], Tensor]], like: Sequence[Tensor]) -> list[Tensor]:
    """Call functions, dividing the work among all processes, which must have the same inputs.

    Args:
        functions: functions that each return one tensor.
        like: tensors with the shapes of the results; their sizes determine how the work is divided.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and functions):
        return [function() for function in functions]
    work_of_rank = [0.0] * dist.get_world_size()
    buffer = torch.zeros(sum(tensor.numel() for tensor in like), device=like[0].device)
    parts = [part.view_as(tensor) for part, tensor in zip(buffer.split([t.numel() for t in like]), like, strict=True)]
    for index in sorted(range(len(like)), key=lambda index: -_estimate_work(like[index])):
        rank = work_of_rank.index(min(work_of_rank))
        work_of_rank[rank] += _estimate_work(like[index])
        if rank == dist.get_rank():
            parts[index].copy_(functions[index]())
    dist.all_reduce(buffer)  # a sum; exact, because each part is zero in all processes but one
    return parts


def _estimate_work(parameter: Tensor) -> float:
    """Relative cost of orthogonalizing a parameter as a matrix."""
    rows, columns = len(parameter), parameter[0].numel()
    return float(min(rows, columns) ** 2 * (rows + columns))


def orthogonalize(matrix: Tensor) -> Tensor:
    """Bring all singular values of a matrix (N, K) close to 1; the iteration leaves them between 0.7 and 1.2.

    Every iteration multiplies X by a polynomial of X X'. For long matrices, such as convolutions, the polynomials are
    multiplied with each other first, and with X once at the end, which is less than half the work.
    """
    is_wide = matrix.shape[0] <= matrix.shape[1]
    unit = (matrix if is_wide else matrix.T).float()
    unit = unit / (unit.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    if unit.shape[1] < LONG_MATRIX_RATIO * len(unit):
        for _ in range(NEWTON_SCHULZ_STEPS):
            gram = unit @ unit.T
            unit = a * unit + (b * gram + c * gram @ gram) @ unit
        return (unit if is_wide else unit.T).to(matrix.dtype)
    gram = unit @ unit.T
    product = torch.eye(len(gram), device=gram.device)
    for _ in range(NEWTON_SCHULZ_STEPS):
        step_gram = product @ gram @ product
        product = a * product + (b * step_gram + c * step_gram @ step_gram) @ product
    unit = product @ unit
    return (unit if is_wide else unit.T).to(matrix.dtype)
