"""Muon: orthogonalized momentum for the matrices of a network (Jordan et al. 2024; scaled as in arXiv 2502.16982).

torch's and timm's optimizers of this name always orthogonalize in bfloat16, which on a processor without instructions
for it takes longer than the rest of the step; torch's does not take convolutions either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NEWTON_SCHULZ_STEPS = 5
"""Steps of the Newton-Schulz iteration."""

LONG_MATRIX_RATIO = 1.75
"""Ratio of the sides of a matrix above which it saves work to iterate on products of the shorter side only."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Steps of equal size in all directions of a matrix; AdamW for other parameters.

    Args:
        groups: parameter groups; those with `orthogonal` true hold matrices (out, in) or convolutions (out, in, ...),
            the others are AdamW's.
        lr: of both: an orthogonal step has the usual size of AdamW's, 0.2 lr per element.
        momentum: of the orthogonal steps (Nesterov).
        betas, eps: of AdamW.
        weight_decay: decoupled, per unit of lr.
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
        """Nesterov momentum of the gradient as a matrix (out, in)."""
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
    """Results of functions, in the shapes of `like`; each of several processes with the same inputs computes a share.

    The work is that of the iteration's steps, which grows with the cube of a matrix's shorter side.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and functions):
        return [function() for function in functions]
    work = [0.0] * dist.get_world_size()
    whole = torch.zeros(sum(tensor.numel() for tensor in like), device=like[0].device)
    parts = [part.view_as(tensor) for part, tensor in zip(whole.split([t.numel() for t in like]), like, strict=True)]
    for index in sorted(range(len(like)), key=lambda index: -_estimate_work(like[index])):
        rank = work.index(min(work))
        work[rank] += _estimate_work(like[index])
        if rank == dist.get_rank():
            parts[index].copy_(functions[index]())
    dist.all_reduce(whole)  # exact: each part is zero in all other processes
    return parts


def _estimate_work(parameter: Tensor) -> float:
    rows, columns = len(parameter), parameter[0].numel()
    return float(min(rows, columns) ** 2 * (rows + columns))


def orthogonalize(matrix: Tensor) -> Tensor:
    """The matrix (N, K) with all its singular values close to 1 (the iteration leaves them between 0.7 and 1.2).

    Every step multiplies X by a polynomial of X X'. For long matrices, such as convolutions, the steps multiply only
    products of the shorter side, and X once at the end: less than half the work.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    unit = (matrix if wide else matrix.T).float()
    unit = unit / (unit.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    if unit.shape[1] < LONG_MATRIX_RATIO * len(unit):
        for _ in range(NEWTON_SCHULZ_STEPS):
            gram = unit @ unit.T
            unit = a * unit + (b * gram + c * gram @ gram) @ unit
        return (unit if wide else unit.T).to(matrix.dtype)
    gram = unit @ unit.T
    product = torch.eye(len(gram), device=gram.device)
    for _ in range(NEWTON_SCHULZ_STEPS):
        step_gram = product @ gram @ product
        product = a * product + (b * step_gram + c * step_gram @ step_gram) @ product
    unit = product @ unit
    return (unit if wide else unit.T).to(matrix.dtype)
