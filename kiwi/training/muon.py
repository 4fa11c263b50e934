"""Muon: momentum made orthogonal, for the matrices of a network (Jordan et al. 2024; scaled as arXiv 2502.16982).

torch's and timm's optimizers of this name make the matrices orthogonal in bfloat16, always, which on a processor
without instructions for it takes longer than the rest of the step; torch's takes no convolutions either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

STEPS = 5
"""Of the Newton-Schulz iteration."""

LONG = 1.75
"""Longer side over the shorter one from which on it saves work to leave the longer one out of the steps."""

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
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["orthogonal"]:
                updates = _shared([partial(self._orthogonal, p, self._momentum(p, group)) for p in learning], learning)
            else:
                updates = [self._adam(parameter, group) for parameter in learning]
            for parameter, update in zip(learning, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * update.to(parameter.dtype))
        return loss

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov's, of the gradient; as a matrix (out, in)."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(state["momentum"], group["momentum"]).flatten(1)

    @staticmethod
    def _orthogonal(parameter: Tensor, matrix: Tensor) -> Tensor:
        return (0.2 * max(matrix.shape) ** 0.5 * orthogonalised(matrix)).view_as(parameter)

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


def _shared(makers: Sequence[Callable[[], Tensor]], like: Sequence[Tensor]) -> list[Tensor]:
    """What the makers make, of the shapes of `like`; of several processes, which all know the same, each makes a part.

    The work is that of the steps of the iteration, which go by the cube of a matrix's shorter side.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and makers):
        return [make() for make in makers]
    work = [0.0] * dist.get_world_size()
    whole = torch.zeros(sum(tensor.numel() for tensor in like), device=like[0].device)
    parts = [part.view_as(tensor) for part, tensor in zip(whole.split([t.numel() for t in like]), like, strict=True)]
    for index in sorted(range(len(like)), key=lambda index: -_work(like[index])):
        rank = work.index(min(work))
        work[rank] += _work(like[index])
        if rank == dist.get_rank():
            parts[index].copy_(makers[index]())
    dist.all_reduce(whole)  # of what is zero elsewhere: exact
    return parts


def _work(parameter: Tensor) -> float:
    rows, columns = len(parameter), parameter[0].numel()
    return float(min(rows, columns) ** 2 * (rows + columns))


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix (N, K) with all its singular values brought near 1 (0.7 to 1.2, as the iteration leaves them).

    Every step of the iteration multiplies X by a polynomial of X X'. Of long matrices, such as convolutions, products
    are made of the shorter side alone, and X is multiplied once: less than half the work.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    unit = (matrix if wide else matrix.T).float()
    unit = unit / (unit.norm() + 1e-7)
    a, b, c = _QUINTIC
    if unit.shape[1] < LONG * len(unit):
        for _ in range(STEPS):
            gram = unit @ unit.T
            unit = a * unit + (b * gram + c * gram @ gram) @ unit
        return (unit if wide else unit.T).to(matrix.dtype)
    gram = unit @ unit.T
    product = torch.eye(len(gram), device=gram.device)
    for _ in range(STEPS):
        now = product @ gram @ product
        product = a * product + (b * now + c * now @ now) @ product
    found = product @ unit
    return (found if wide else found.T).to(matrix.dtype)
