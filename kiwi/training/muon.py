"""Muon: momentum made orthogonal, for the matrices of a network (Jordan et al. 2024; scaled as arXiv 2502.16982).

torch's and timm's optimizers of this name make the matrices orthogonal in bfloat16, always, which on a processor
without instructions for it takes longer than the rest of the step; torch's takes no convolutions either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

STEPS = 5
"""Of the Newton-Schulz iteration."""

_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Steps of equal size in all directions of a matrix; AdamW where a parameter is none.

    Args:
        groups: of parameters; those of a group with `orthogonal` true are matrices (out, in) or convolutions
            (out, in, ...), all others AdamW's.
        lr: of both: an orthogonal step is as large as AdamW's steps usually are, 0.2 lr an element.
        momentum: of the orthogonal steps, Nesterov's.
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
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._orthogonal if group["orthogonal"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(group["lr"] * update(parameter, group).to(parameter.dtype))
        return loss

    def _orthogonal(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        assert gradient is not None
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        matrix = orthogonalised(gradient.lerp(state["momentum"], group["momentum"]).flatten(1))
        return (0.2 * max(matrix.shape) ** 0.5 * matrix).view_as(parameter)

    def _adam(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        gradient = parameter.grad
        assert gradient is not None
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        deviation = (state["square"] / (1 - second ** state["step"])).sqrt() + group["eps"]
        return state["mean"] / (1 - first ** state["step"]) / deviation


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix (N, K) with all its singular values brought near 1 (0.7 to 1.2, as the iteration leaves them).

    Every step of the iteration multiplies X by a polynomial of X X', so that the products are of the shorter side
    alone, and X is multiplied once: for convolutions, which are long, less than half the work.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    unit = (matrix if wide else matrix.T).float()
    unit = unit / (unit.norm() + 1e-7)
    gram = unit @ unit.T
    product = torch.eye(len(gram), device=gram.device)
    a, b, c = _QUINTIC
    for _ in range(STEPS):
        now = product @ gram @ product
        product = a * product + (b * now + c * now @ now) @ product
    found = product @ unit
    return (found if wide else found.T).to(matrix.dtype)
